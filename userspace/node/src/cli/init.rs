//! `shoal init`: starts a cluster with this node as its first manager.

use shoal_api::InitRequest;

use crate::cli::client::Client;
use crate::cli::say;
use crate::config::Advertise;

/// Flags of `shoal init`.
#[derive(clap::Args)]
pub struct Args {
    /// Address that the other nodes reach this one at [default: the daemon's --advertise-addr, or
    /// the only usable address].
    #[arg(long, value_name = "IP|INTERFACE[:PORT]")]
    advertise_addr: Option<String>,
}

/// Asks the daemon and prints how others join.
///
/// # Errors
/// What the daemon answered.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let advertise_addr = args.advertise_addr.unwrap_or_default();
    if !advertise_addr.is_empty() {
        advertise_addr.parse::<Advertise>().map_err(|error| {
            super::Usage(format!(
                "invalid argument {advertise_addr:?} for \"--advertise-addr\": {error}"
            ))
        })?;
    }
    let answer = client
        .local()
        .await?
        .init(InitRequest { advertise_addr, ..InitRequest::default() })
        .await?
        .into_inner();
    say(&format!(
        "Swarm initialized: current node ({}) is now a manager.\n\n\
         To add a worker to this swarm, run the following command:\n\n    \
         shoal join {addr}\n\n\
         To add a manager to this swarm, run the following command:\n\n    \
         shoal join --role manager {addr}\n\n\
         Nodes that join are not authenticated yet: keep {addr} reachable from a trusted network \
         only.\n",
        answer.node_id,
        addr = answer.addr,
    ));
    Ok(())
}
