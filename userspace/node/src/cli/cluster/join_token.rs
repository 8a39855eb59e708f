//! `shoal join-token`: what newcomers present, and a new one instead.

use shoal_api::InfoRequest;

use super::{change, token};
use crate::cli::client::Client;
use crate::cli::{Usage, say};

/// Flags and arguments of `shoal join-token`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the token only.
    #[arg(short, long)]
    quiet: bool,
    /// Make a new token: the old one lets nobody in any more. Members stay.
    #[arg(long)]
    rotate: bool,
    /// `worker` or `manager`.
    #[arg(value_name = "worker|manager")]
    role: String,
}

/// Asks the cluster and prints how others join.
///
/// # Errors
/// What the daemon answered, or a role that there is not.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let manager = match args.role.as_str() {
        "worker" => false,
        "manager" => true,
        other => return Err(Usage(format!("unknown role {other}")).into()),
    };
    if args.rotate {
        change::update(client, |_, request| {
            request.rotate_manager_token = manager;
            request.rotate_worker_token = !manager;
            Ok(())
        })
        .await?;
        if !args.quiet {
            say(&format!("Successfully rotated {} join token.\n\n", args.role));
        }
    }
    let cluster = client.cluster().await?;
    let token = token(&cluster, manager);
    if args.quiet {
        say(&format!("{token}\n"));
        return Ok(());
    }
    let own = client.local().await?.info(InfoRequest {}).await?.into_inner();
    let listed = client.list_nodes().await?;
    let addr_of = |id: &str| {
        let node = listed.nodes.iter().find(|node| node.id == id)?;
        node.manager.as_ref().map(|manager| manager.addr.clone())
    };
    let addr = addr_of(&own.node_id).or_else(|| addr_of(&listed.leader_id)).unwrap_or(own.addr);
    say(&text(&args.role, token, &addr));
    Ok(())
}

/// How a node joins, with the empty line after it.
pub(super) fn text(role: &str, token: &str, addr: &str) -> String {
    format!(
        "To add a {role} to this swarm, run the following command:\n\n    \
         shoal join --token {token} {addr}\n\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_command_is_dockers() {
        assert_eq!(
            text("manager", "SWMTKN-1-a-b", "127.0.0.1:2377"),
            "To add a manager to this swarm, run the following command:\n\n    \
             shoal join --token SWMTKN-1-a-b 127.0.0.1:2377\n\n"
        );
    }
}
