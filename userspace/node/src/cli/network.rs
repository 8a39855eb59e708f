//! `shoal network ls|inspect`.

use clap::Subcommand;

use crate::cli::client::Client;
use crate::cli::human::rfc3339;
use crate::cli::inspect;
use crate::cli::listing::{Listing, Output, short};
use crate::cli::say;

/// Verbs of `shoal network`.
#[derive(Subcommand)]
pub enum Verb {
    /// List networks.
    #[command(visible_alias = "list")]
    Ls(Output),
    /// Show whole networks as JSON.
    Inspect {
        /// Ids or names.
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
}

const COLUMNS: &[(&str, &str)] =
    &[("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope")];

/// Does what the verb says.
///
/// # Errors
/// What the daemon answered, or a word that means nothing.
pub async fn run(client: &Client, verb: Verb) -> anyhow::Result<()> {
    let mut networks = client.networks().await?;
    let output = match verb {
        Verb::Ls(output) => output,
        Verb::Inspect { networks: words } => return inspect::print(&words, &networks),
    };
    networks.sort_by_cached_key(crate::cli::resolve::Named::name);
    let mut listing = Listing::new(COLUMNS);
    for network in &networks {
        let spec = network.spec.clone().unwrap_or_default();
        let created = network.meta.as_ref().map_or(0, |meta| meta.created_at_ns);
        listing.push(
            &short(&network.id),
            vec![short(&network.id), spec.name, "overlay".to_owned(), "swarm".to_owned()],
            vec![("CreatedAt", rfc3339(created).into()), ("Subnet", spec.subnet.into())],
        );
    }
    say(&listing.render(&output));
    Ok(())
}
