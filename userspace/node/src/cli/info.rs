//! `shoal info`: what this host's daemon is, what its data plane chose and what it counted.

use serde_json::json;
use shoal_api::{InfoRequest, InfoResponse, LocalState, NodeRole};

use crate::cli::client::Client;
use crate::cli::listing::Format;
use crate::cli::say;

/// Flags of `shoal info`.
#[derive(clap::Args)]
pub struct Args {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Asks the daemon and prints the answer.
///
/// # Errors
/// The daemon is not there.
pub async fn run(client: &Client, args: &Args) -> anyhow::Result<()> {
    let info = client.local().await?.info(InfoRequest {}).await?.into_inner();
    match args.format {
        Format::Json => say(&format!("{}\n", json(&info))),
        Format::Table => say(&text(&info)),
    }
    Ok(())
}

fn state(info: &InfoResponse) -> &'static str {
    match info.state() {
        LocalState::Inactive => "inactive",
        LocalState::Pending => "pending",
        LocalState::Active => "active",
        LocalState::Error => "error",
        LocalState::Locked => "locked",
    }
}

fn text(info: &InfoResponse) -> String {
    let mut text = format!("Version: {}\nSwarm: {}\n", info.version, state(info));
    if info.state() == LocalState::Inactive {
        return text;
    }
    text += &format!(
        " NodeID: {}\n Is Manager: {}\n ClusterID: {}\n Node Address: {}\n Held Index: {}\n",
        info.node_id,
        info.role() == NodeRole::Manager,
        info.cluster_id,
        info.addr,
        info.held_index
    );
    if !info.dataplane.is_empty() {
        text += "Data plane:\n";
        text.extend(
            info.dataplane.iter().map(|choice| format!(" {}\n", choice.replacen('=', ": ", 1))),
        );
    }
    if !info.counters.is_empty() {
        text += "Counters:\n";
        text.extend(info.counters.iter().map(|counter| {
            format!(" {}: {} packets, {} bytes\n", counter.name, counter.packets, counter.bytes)
        }));
    }
    text
}

fn json(info: &InfoResponse) -> serde_json::Value {
    let dataplane: serde_json::Map<_, _> = info
        .dataplane
        .iter()
        .filter_map(|choice| choice.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    let counters: serde_json::Map<_, _> = info
        .counters
        .iter()
        .map(|counter| {
            let value = json!({ "Packets": counter.packets, "Bytes": counter.bytes });
            (counter.name.clone(), value)
        })
        .collect();
    json!({
        "ServerVersion": info.version,
        "Swarm": {
            "NodeID": info.node_id,
            "NodeAddr": info.addr,
            "LocalNodeState": state(info),
            "ControlAvailable":
                info.state() == LocalState::Active && info.role() == NodeRole::Manager,
            "Cluster": { "ID": info.cluster_id },
        },
        "HeldIndex": info.held_index,
        "Dataplane": dataplane,
        "Counters": counters,
    })
}

#[cfg(test)]
mod tests {
    use shoal_api::Counter;

    use super::*;

    #[test]
    fn an_active_node_shows_its_data_plane_in_both_forms() {
        let info = InfoResponse {
            state: LocalState::Active.into(),
            node_id: "n".into(),
            cluster_id: "c".into(),
            role: NodeRole::Manager.into(),
            addr: "10.0.0.1".into(),
            version: "0.1.0".into(),
            dataplane: vec!["xdp=native".into()],
            held_index: 7,
            counters: vec![Counter { name: "no_backend".into(), packets: 2, bytes: 120 }],
            ..InfoResponse::default()
        };
        assert_eq!(
            text(&info),
            "Version: 0.1.0\nSwarm: active\n NodeID: n\n Is Manager: true\n ClusterID: c\n \
             Node Address: 10.0.0.1\n Held Index: 7\nData plane:\n xdp: native\nCounters:\n \
             no_backend: 2 packets, 120 bytes\n"
        );
        let json = json(&info);
        assert_eq!(json["Swarm"]["ControlAvailable"], true);
        assert_eq!(json["Dataplane"]["xdp"], "native");
        assert_eq!(json["Counters"]["no_backend"]["Packets"], 2);
    }

    #[test]
    fn a_node_outside_a_cluster_says_so() {
        let info = InfoResponse { version: "0.1.0".into(), ..InfoResponse::default() };
        assert_eq!(text(&info), "Version: 0.1.0\nSwarm: inactive\n");
        assert_eq!(json(&info)["Swarm"]["ControlAvailable"], false);
    }
}
