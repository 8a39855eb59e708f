//! `shoal info` for people, in the order of `docker info`.

use std::fmt::Write as _;

use shoal_api::{Cluster, LocalState, Node};

use super::View;
use crate::cli::cluster::tls::Roots;
use crate::cli::human::{duration, rfc3339};

pub(super) fn text(view: &View) -> String {
    let mut text = String::new();
    write(&mut text, view).expect("a string takes all that is written");
    text
}

fn write(out: &mut String, view: &View) -> std::fmt::Result {
    let info = &view.info;
    if !info.name.is_empty() {
        writeln!(out, "Name: {}", info.name)?;
    }
    writeln!(out, "Version: {}", info.version)?;
    writeln!(out, "Swarm: {}", view.state())?;
    let is_member = !matches!(info.state(), LocalState::Inactive | LocalState::Locked);
    if is_member {
        writeln!(out, " NodeID: {}", info.node_id)?;
    }
    if !view.error.is_empty() {
        writeln!(out, " Error: {}", view.error)?;
    }
    if is_member {
        writeln!(out, " Is Manager: {}", view.is_manager())?;
        if let Some((cluster, nodes)) = &view.cluster {
            write_cluster(out, cluster, nodes, &info.node_id)?;
        } else if !info.cluster_id.is_empty() {
            writeln!(out, " ClusterID: {}", info.cluster_id)?;
        }
        writeln!(out, " Node Address: {}", view.addr())?;
        let managers = view.managers();
        if !managers.is_empty() {
            writeln!(out, " Manager Addresses:")?;
            for (_, addr) in managers {
                writeln!(out, "  {addr}")?;
            }
        }
        if info.certificate_not_after_ns != 0 {
            writeln!(out, " Certificate Expiry: {}", rfc3339(info.certificate_not_after_ns))?;
        }
        writeln!(out, " Held Index: {}", info.held_index)?;
    }
    if !info.dataplane.is_empty() {
        writeln!(out, "Data plane:")?;
        for choice in &info.dataplane {
            writeln!(out, " {}", choice.replacen('=', ": ", 1))?;
        }
    }
    if !info.counters.is_empty() {
        writeln!(out, "Counters:")?;
        for counter in &info.counters {
            let (name, packets, bytes) = (&counter.name, counter.packets, counter.bytes);
            writeln!(out, " {name}: {packets} packets, {bytes} bytes")?;
        }
    }
    Ok(())
}

fn write_cluster(
    out: &mut String,
    cluster: &Cluster,
    nodes: &[Node],
    own: &str,
) -> std::fmt::Result {
    let spec = super::json::Settings::of(cluster, nodes, own);
    let managers = nodes.iter().filter(|node| node.manager.is_some()).count();
    writeln!(out, " ClusterID: {}", cluster.id)?;
    writeln!(out, " Managers: {managers}")?;
    writeln!(out, " Nodes: {}", nodes.len())?;
    writeln!(out, " Default Address Pool: {}", spec.pools.join("  "))?;
    writeln!(out, " SubnetSize: {}", spec.subnet_size)?;
    writeln!(out, " Data Path Port: {}", spec.data_path_port)?;
    writeln!(out, " Orchestration:")?;
    writeln!(out, "  Task History Retention Limit: {}", spec.task_history_limit)?;
    writeln!(out, " Raft:")?;
    writeln!(out, "  Snapshot Interval: {}", spec.snapshot_interval)?;
    writeln!(out, "  Number of Old Snapshots to Retain: {}", spec.max_snapshots)?;
    writeln!(out, " Dispatcher:")?;
    writeln!(out, "  Heartbeat Period: {}", duration(spec.heartbeat))?;
    writeln!(out, " CA Configuration:")?;
    writeln!(out, "  Expiry Duration: {}", duration(spec.cert_expiry))?;
    writeln!(out, "  Force Rotate: {}", spec.force_rotate)?;
    if !spec.external_cas.is_empty() {
        writeln!(out, "  External CAs:")?;
        for url in &spec.external_cas {
            writeln!(out, "    cfssl: {url}")?;
        }
    }
    writeln!(out, " Autolock Managers: {}", spec.autolock)?;
    writeln!(out, " Root Rotation In Progress: {}", Roots::of(cluster).rotating)
}

#[cfg(test)]
mod tests {
    use shoal_api::{InfoResponse, NodeRole};

    use super::*;
    use crate::cli::info::tests::{info, manager};

    const TAIL: &str = " Certificate Expiry: 1970-01-02T00:00:00Z
 Held Index: 7
Data plane:
 xdp: native
Counters:
 no_backend: 2 packets, 120 bytes
";

    #[test]
    fn a_manager_tells_of_the_whole_cluster() {
        let expected = "\
Name: n1
Version: 0.1.0
Swarm: active
 NodeID: n
 Is Manager: true
 ClusterID: c
 Managers: 2
 Nodes: 3
 Default Address Pool: 10.20.0.0/16  10.30.0.0/16
 SubnetSize: 24
 Data Path Port: 4789
 Orchestration:
  Task History Retention Limit: 5
 Raft:
  Snapshot Interval: 500
  Number of Old Snapshots to Retain: 0
 Dispatcher:
  Heartbeat Period: 1 second
 CA Configuration:
  Expiry Duration: 3 months
  Force Rotate: 2
  External CAs:
    cfssl: https://ca/sign
 Autolock Managers: true
 Root Rotation In Progress: true
 Node Address: 10.0.0.1
 Manager Addresses:
  10.0.0.1:2377
  10.0.0.2:2377
";
        assert_eq!(text(&manager()), format!("{expected}{TAIL}"));
    }

    #[test]
    fn a_worker_tells_of_itself_and_its_managers() {
        let worker = View { info: info(NodeRole::Worker), ..View::default() };
        let expected = "\
Name: n1
Version: 0.1.0
Swarm: active
 NodeID: n
 Is Manager: false
 ClusterID: c
 Node Address: 10.0.0.1
 Manager Addresses:
  10.0.0.1:2377
";
        assert_eq!(text(&worker), format!("{expected}{TAIL}"));
    }

    #[test]
    fn a_node_that_cannot_go_on_says_why() {
        let mut view = View { error: "it was removed".into(), ..View::default() };
        view.info = info(NodeRole::Manager);
        view.info.set_state(LocalState::Error);
        let text = text(&view);
        let start = "Name: n1\nVersion: 0.1.0\nSwarm: error\n NodeID: n\n Error: it was removed\n \
                     Is Manager: false\n";
        assert!(text.starts_with(start), "{text}");
    }

    #[test]
    fn a_node_outside_a_cluster_or_locked_says_only_so() {
        let info = InfoResponse { version: "0.1.0".into(), ..InfoResponse::default() };
        let mut view = View { info, ..View::default() };
        assert_eq!(text(&view), "Version: 0.1.0\nSwarm: inactive\n");
        view.info.set_state(LocalState::Locked);
        view.error = "it needs to be unlocked".into();
        let expected = "Version: 0.1.0\nSwarm: locked\n Error: it needs to be unlocked\n";
        assert_eq!(text(&view), expected);
    }
}
