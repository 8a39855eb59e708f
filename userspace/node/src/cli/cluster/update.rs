//! `shoal update`: changes what the cluster was told at its beginning.

use super::spec::SpecFlags;
use super::{change, key, unlock_key};
use crate::cli::client::Client;
use crate::cli::{Usage, say};

/// Flags of `shoal update`.
#[derive(clap::Args)]
pub struct Args {
    /// Have managers ask for an unlock key when they start.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_name = "true|false", hide_possible_values = true)]
    autolock: Option<bool>,
    #[command(flatten)]
    spec: SpecFlags,
}

/// Changes the spec, and shows the unlock key when autolock was turned on by this.
///
/// # Errors
/// No flag at all, or what the daemon answered.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let any = args.autolock.is_some() || args.spec.merge(&mut shoal_api::ClusterSpec::default());
    if !any {
        let text = "\"shoal update\" requires at least 1 flag.\nSee 'shoal update --help'.";
        return Err(Usage(text.to_owned()).into());
    }
    let before = change::update(client, |_, request| {
        let spec = change::spec(request);
        args.spec.merge(spec);
        spec.autolock = args.autolock.unwrap_or(spec.autolock);
        Ok(())
    })
    .await?;
    say("Swarm updated.\n");
    let was_on = before.spec.is_some_and(|spec| spec.autolock);
    if args.autolock == Some(true) && !was_on {
        say(&key::unlock_text(&unlock_key::fetch(client).await?));
    }
    Ok(())
}
