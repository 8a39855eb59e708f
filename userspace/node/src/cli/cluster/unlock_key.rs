//! `shoal unlock-key`: what managers are unlocked with, and a new one instead.

use anyhow::Context as _;
use shoal_api::GetUnlockKeyRequest;

use super::{change, key};
use crate::cli::client::Client;
use crate::cli::say;

/// Flags of `shoal unlock-key`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the key only.
    #[arg(short, long)]
    quiet: bool,
    /// Make a new key. Keep the old one until every manager has been seen with the new one: a
    /// manager that is down still asks for it.
    #[arg(long)]
    rotate: bool,
}

/// Asks the cluster and prints the key.
///
/// # Errors
/// Autolock is off, or what the daemon answered.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    if args.rotate {
        change::update(client, |cluster, request| {
            let on = cluster.spec.as_ref().is_some_and(|spec| spec.autolock);
            anyhow::ensure!(on, "cannot rotate because autolock is not turned on");
            request.rotate_unlock_key = true;
            Ok(())
        })
        .await?;
        if !args.quiet {
            say("Successfully rotated manager unlock key.\n");
        }
    }
    let key = fetch(client).await?;
    anyhow::ensure!(!key.is_empty(), "no unlock key is set");
    say(&if args.quiet { format!("{key}\n") } else { key::unlock_text(&key) });
    Ok(())
}

/// The key; empty while autolock is off.
pub(super) async fn fetch(client: &Client) -> anyhow::Result<String> {
    let answer = client.control().await?.get_unlock_key(GetUnlockKeyRequest {}).await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().unlock_key),
        Err(status) => Err(anyhow::anyhow!("{}", status.message()))
            .context("Error response from daemon: could not fetch unlock key"),
    }
}
