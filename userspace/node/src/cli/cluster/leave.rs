//! `shoal leave`: this node is no longer a member.

use shoal_api::LeaveRequest;

use crate::cli::client::Client;
use crate::cli::say;

/// Flags of `shoal leave`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave even if the cluster loses its managers or what they know.
    #[arg(short, long)]
    force: bool,
}

/// Asks the daemon, which stops this node's tasks and forgets the cluster.
///
/// # Errors
/// What the daemon answered.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    client.local().await?.leave(LeaveRequest { force: args.force }).await?;
    say("Node left the swarm.\n");
    Ok(())
}
