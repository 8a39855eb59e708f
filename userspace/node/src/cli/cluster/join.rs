//! `shoal join`: makes this node a member of a cluster. The token decides as what.

use shoal_api::{JoinClusterRequest, NodeAvailability, NodeRole};

use super::{Availability, addrs};
use crate::cli::client::Client;
use crate::cli::{Usage, say};

/// Flags and arguments of `shoal join`.
#[derive(clap::Args)]
pub struct Args {
    /// What `shoal join-token` printed on a manager; it decides whether this node becomes a worker
    /// or a manager.
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    token: String,
    /// Address that the other nodes reach this one at [default: the daemon's --advertise-addr, or
    /// the only usable address].
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", value_parser = addrs::advertise)]
    advertise_addr: Option<String>,
    /// Address that a manager listens on here [default: the daemon's --listen-addr].
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", value_parser = addrs::listen)]
    listen_addr: Option<String>,
    /// Address that carries the packets between nodes [default: the daemon's --data-path-addr, or
    /// the advertised one].
    #[arg(long, value_name = "IP|INTERFACE", value_parser = addrs::data_path)]
    data_path_addr: Option<String>,
    /// What this node does: active, pause or drain.
    #[arg(long, default_value = "active", value_parser = Availability::parse)]
    availability: Availability,
    /// Addresses of managers; one is enough. Names are looked up again whenever they are needed.
    #[arg(required = true, value_name = "HOST:PORT", value_delimiter = ',')]
    addrs: Vec<String>,
}

/// Asks the daemon and waits until the node is a member.
///
/// # Errors
/// What the daemon answered, or an address that is none.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let request = request(args)?;
    let answer = client.local().await?.join(request).await?.into_inner();
    say(text(answer.role()));
    Ok(())
}

fn request(args: Args) -> Result<JoinClusterRequest, Usage> {
    let addrs: Result<Vec<String>, String> =
        args.addrs.iter().map(|addr| addrs::manager(addr.trim())).collect();
    if args.token.trim().is_empty() {
        return Err(Usage(
            "invalid join token: give the one that `shoal join-token worker` prints on a manager \
             with --token"
                .to_owned(),
        ));
    }
    Ok(JoinClusterRequest {
        addrs: addrs.map_err(Usage)?,
        token: args.token.trim().to_owned(),
        advertise_addr: args.advertise_addr.unwrap_or_default(),
        listen_addr: args.listen_addr.unwrap_or_default(),
        data_path_addr: args.data_path_addr.unwrap_or_default(),
        availability: NodeAvailability::from(args.availability).into(),
    })
}

fn text(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "This node joined a swarm as a worker.\n",
        NodeRole::Manager => "This node joined a swarm as a manager.\n",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn check(arguments: &[&str]) -> Result<JoinClusterRequest, String> {
        let line = Line::try_parse_from(["join"].iter().chain(arguments));
        request(line.map_err(|error| error.to_string())?.args).map_err(|error| error.to_string())
    }

    #[test]
    fn several_managers_are_given_apart_or_with_commas() {
        let request = check(&["--token", "t", "n1.example,10.0.0.2:99", "fd88::3"]).unwrap();
        assert_eq!(request.addrs, ["n1.example:2377", "10.0.0.2:99", "[fd88::3]:2377"]);
        assert_eq!(request.token, "t");
    }

    #[test]
    fn a_join_without_token_or_with_a_bad_address_is_refused_here() {
        let refused = check(&["10.0.0.1"]).unwrap_err();
        assert!(refused.starts_with("invalid join token: "), "{refused}");
        let refused = check(&["--token", "t", "10.0.0.1,"]).unwrap_err();
        assert_eq!(refused, "invalid manager address \"\": use HOST:PORT");
    }

    #[test]
    fn the_role_is_told_in_dockers_words() {
        assert_eq!(text(NodeRole::Worker), "This node joined a swarm as a worker.\n");
        assert_eq!(text(NodeRole::Manager), "This node joined a swarm as a manager.\n");
    }
}
