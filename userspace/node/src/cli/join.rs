//! `shoal join`: makes this node a member of a cluster.

use clap::ValueEnum;
use shoal_api::{JoinClusterRequest, NodeRole};

use crate::cli::client::Client;
use crate::cli::say;

/// Flags and arguments of `shoal join`.
#[derive(clap::Args)]
pub struct Args {
    /// Addresses of managers; one is enough.
    #[arg(required = true, value_name = "HOST:PORT")]
    addrs: Vec<String>,
    /// What this node becomes.
    #[arg(long, value_enum, default_value_t = Role::Worker)]
    role: Role,
    /// Address that the other nodes reach this one at [default: the daemon's --advertise-addr, or
    /// the only usable address].
    #[arg(long, value_name = "IP|INTERFACE[:PORT]")]
    advertise_addr: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Worker,
    Manager,
}

/// Asks the daemon and waits until the node is a member.
///
/// # Errors
/// What the daemon answered, or an address that is none.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let addrs = args.addrs.iter().map(|addr| with_port(addr)).collect::<Result<_, _>>()?;
    let role = match args.role {
        Role::Worker => NodeRole::Worker,
        Role::Manager => NodeRole::Manager,
    };
    let request = JoinClusterRequest {
        addrs,
        role: role.into(),
        advertise_addr: args.advertise_addr.unwrap_or_default(),
        ..JoinClusterRequest::default()
    };
    let answer = client.local().await?.join(request).await?.into_inner();
    let role = match answer.role() {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    };
    say(&format!("This node joined a swarm as a {role}.\n"));
    Ok(())
}

/// Managers listen on 2377 unless told otherwise.
fn with_port(addr: &str) -> Result<String, super::Usage> {
    let invalid = || super::Usage(format!("invalid manager address {addr:?}: use HOST:PORT"));
    if addr.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(format!("[{addr}]:2377"));
    }
    match addr.rsplit_once(':') {
        None if !addr.is_empty() => Ok(format!("{addr}:2377")),
        Some((host, port)) if !host.is_empty() => match port.parse::<u16>() {
            Ok(port) if port != 0 => Ok(addr.to_owned()),
            _ => Err(invalid()),
        },
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_a_host_and_maybe_a_port() {
        let check = |addr: &str, expected: Option<&str>| {
            assert_eq!(with_port(addr).ok().as_deref(), expected, "{addr}");
        };
        check("10.0.0.1", Some("10.0.0.1:2377"));
        check("10.0.0.1:99", Some("10.0.0.1:99"));
        check("n1.example", Some("n1.example:2377"));
        check("fd88::1", Some("[fd88::1]:2377"));
        check("[fd88::1]:99", Some("[fd88::1]:99"));
        for bad in ["", ":2377", "n1:", "n1:x", "n1:0", "n1:70000"] {
            check(bad, None);
        }
    }
}
