//! `shoal info` for programs, in the field names of `docker info`.

use std::time::Duration;

use serde_json::{Map, Value, json};
use shoal_api::{Cluster, DATA_PATH_PORT, LocalState, Node, duration};

use super::View;
use crate::cli::cluster::tls::{Roots, TlsInfo};
use crate::cli::human::rfc3339;

/// A cluster's settings with the defaults of those that nobody set (specs.proto, objects.proto).
pub(super) struct Settings {
    pub(super) pools: Vec<String>,
    pub(super) subnet_size: u32,
    pub(super) data_path_port: u32,
    pub(super) task_history_limit: i64,
    pub(super) snapshot_interval: u64,
    pub(super) max_snapshots: u64,
    pub(super) log_entries_for_slow_followers: u64,
    pub(super) heartbeat: Duration,
    pub(super) cert_expiry: Duration,
    pub(super) force_rotate: u64,
    pub(super) external_cas: Vec<String>,
    pub(super) autolock: bool,
}

impl Settings {
    /// Reads them; the data path's port is the same on every node, so the own one tells it.
    pub(super) fn of(cluster: &Cluster, nodes: &[Node], own: &str) -> Self {
        let spec = cluster.spec.clone().unwrap_or_default();
        let raft = spec.raft.unwrap_or_default();
        let ca = spec.ca.unwrap_or_default();
        let node = nodes.iter().find(|node| node.id == own);
        let port = node.map_or(0, |node| node.data_path_port);
        let pools = match cluster.address_pools.as_slice() {
            [] => vec!["10.0.0.0/8".to_owned()],
            pools => pools.to_vec(),
        };
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let heartbeat = spec.dispatcher_heartbeat_ns.map(Duration::from_nanos);
        let expiry = ca.node_cert_expiry_ns.map(Duration::from_nanos);
        Self {
            pools,
            subnet_size: or(cluster.subnet_size, 24),
            data_path_port: or(port, DATA_PATH_PORT),
            task_history_limit: spec.task_history_limit.unwrap_or(5),
            snapshot_interval: raft.snapshot_interval.unwrap_or(10_000),
            max_snapshots: raft.max_snapshots.unwrap_or(0),
            log_entries_for_slow_followers: raft.log_entries_for_slow_followers.unwrap_or(1_000),
            heartbeat: heartbeat.unwrap_or(duration::HEARTBEAT_PERIOD),
            cert_expiry: expiry.unwrap_or(Duration::from_secs(90 * 86_400)),
            force_rotate: ca.force_rotate,
            external_cas: ca.external_cas.into_iter().map(|external| external.url).collect(),
            autolock: spec.autolock,
        }
    }
}

/// All of it as one object.
pub(super) fn document(view: &View) -> Value {
    let info = &view.info;
    let dataplane: Map<_, _> = info
        .dataplane
        .iter()
        .filter_map(|choice| choice.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    let counters: Map<_, _> = info
        .counters
        .iter()
        .map(|counter| {
            let value = json!({ "Packets": counter.packets, "Bytes": counter.bytes });
            (counter.name.clone(), value)
        })
        .collect();
    json!({
        "Name": info.name,
        "ServerVersion": info.version,
        "Swarm": swarm(view),
        "HeldIndex": info.held_index,
        "Dataplane": dataplane,
        "Counters": counters,
        "Warnings": view.warnings(),
    })
}

fn swarm(view: &View) -> Value {
    let info = &view.info;
    let managers = view.managers();
    let remote: Vec<Value> =
        managers.iter().map(|(id, addr)| json!({ "NodeID": id, "Addr": addr })).collect();
    let mut swarm = json!({
        "NodeID": info.node_id,
        "NodeAddr": view.addr(),
        "LocalNodeState": view.state(),
        "ControlAvailable": view.is_manager(),
        "Error": view.error,
        "RemoteManagers": remote,
    });
    match &view.cluster {
        Some((cluster, nodes)) => {
            swarm["Nodes"] = nodes.len().into();
            swarm["Managers"] = managers.len().into();
            swarm["Cluster"] = document_of(cluster, nodes, &info.node_id);
        }
        None if info.state() != LocalState::Inactive => {
            swarm["Cluster"] = json!({ "ID": info.cluster_id });
        }
        None => {}
    }
    if info.certificate_not_after_ns != 0 {
        swarm["CertificateExpiry"] = rfc3339(info.certificate_not_after_ns).into();
    }
    swarm
}

fn document_of(cluster: &Cluster, nodes: &[Node], own: &str) -> Value {
    let settings = Settings::of(cluster, nodes, own);
    let spec = cluster.spec.clone().unwrap_or_default();
    let meta = cluster.meta.unwrap_or_default();
    let roots = Roots::of(cluster);
    let external: Vec<Value> = settings
        .external_cas
        .iter()
        .map(|url| json!({ "Protocol": "cfssl", "URL": url }))
        .collect();
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let mut document = json!({
        "ID": cluster.id,
        "Version": { "Index": meta.version },
        "CreatedAt": rfc3339(meta.created_at_ns),
        "UpdatedAt": rfc3339(meta.updated_at_ns),
        "Spec": {
            "Name": spec.name,
            "Labels": spec.labels,
            "Orchestration": { "TaskHistoryRetentionLimit": settings.task_history_limit },
            "Raft": {
                "SnapshotInterval": settings.snapshot_interval,
                "KeepOldSnapshots": settings.max_snapshots,
                "LogEntriesForSlowFollowers": settings.log_entries_for_slow_followers,
            },
            "Dispatcher": { "HeartbeatPeriod": nanos(settings.heartbeat) },
            "CAConfig": {
                "NodeCertExpiry": nanos(settings.cert_expiry),
                "ExternalCAs": external,
                "ForceRotate": settings.force_rotate,
            },
            "EncryptionConfig": { "AutoLockManagers": settings.autolock },
        },
        "RootRotationInProgress": roots.rotating,
        "DefaultAddrPool": settings.pools,
        "SubnetSize": settings.subnet_size,
        "DataPathPort": settings.data_path_port,
    });
    if let Some(tls) = TlsInfo::of(roots.trusted_pem()) {
        document["TLSInfo"] = tls.document();
    }
    document
}

#[cfg(test)]
mod tests {
    use shoal_api::{InfoResponse, NodeRole};

    use super::*;
    use crate::cli::cluster::tls::tests::ROOT;
    use crate::cli::info::tests::{info, manager};

    #[test]
    fn a_manager_tells_of_the_cluster_in_dockers_fields() {
        let document = document(&manager());
        assert_eq!(document["ServerVersion"], "0.1.0");
        assert_eq!(document["Dataplane"]["xdp"], "native");
        assert_eq!(document["Counters"]["no_backend"]["Packets"], 2);
        assert!(document["Warnings"][0].as_str().unwrap().starts_with("WARNING: Running Swarm"));
        let swarm = &document["Swarm"];
        assert_eq!((&swarm["Nodes"], &swarm["Managers"]), (&json!(3), &json!(2)));
        assert_eq!(swarm["ControlAvailable"], true);
        assert_eq!(swarm["RemoteManagers"][1], json!({ "NodeID": "b", "Addr": "10.0.0.2:2377" }));
        assert_eq!(swarm["CertificateExpiry"], "1970-01-02T00:00:00Z");
        let cluster = &swarm["Cluster"];
        assert_eq!(cluster["ID"], "c");
        assert_eq!(cluster["Version"]["Index"], 7);
        assert_eq!(cluster["TLSInfo"]["TrustRoot"], ROOT);
        assert_eq!(cluster["RootRotationInProgress"], true);
        assert_eq!(cluster["DefaultAddrPool"], json!(["10.20.0.0/16", "10.30.0.0/16"]));
        let expected = json!({
            "Name": "default",
            "Labels": {},
            "Orchestration": { "TaskHistoryRetentionLimit": 5 },
            "Raft": {
                "SnapshotInterval": 500,
                "KeepOldSnapshots": 0,
                "LogEntriesForSlowFollowers": 1000,
            },
            "Dispatcher": { "HeartbeatPeriod": 1_000_000_000u64 },
            "CAConfig": {
                "NodeCertExpiry": 7_776_000_000_000_000u64,
                "ExternalCAs": [{ "Protocol": "cfssl", "URL": "https://ca/sign" }],
                "ForceRotate": 2,
            },
            "EncryptionConfig": { "AutoLockManagers": true },
        });
        assert_eq!(cluster["Spec"], expected);
    }

    #[test]
    fn a_worker_knows_its_managers_by_address() {
        let worker = View { info: info(NodeRole::Worker), ..View::default() };
        let swarm = &document(&worker)["Swarm"];
        assert_eq!(swarm["ControlAvailable"], false);
        assert_eq!(swarm["RemoteManagers"], json!([{ "NodeID": "", "Addr": "10.0.0.1:2377" }]));
        assert_eq!(swarm["Cluster"], json!({ "ID": "c" }));
    }

    #[test]
    fn a_node_outside_a_cluster_says_so() {
        let info = InfoResponse { version: "0.1.0".into(), ..InfoResponse::default() };
        let view = View { info, ..View::default() };
        let swarm = &document(&view)["Swarm"];
        assert_eq!(swarm["LocalNodeState"], "inactive");
        assert_eq!(swarm["ControlAvailable"], false);
        assert_eq!(swarm.get("Cluster"), None);
    }
}
