//! `shoal service create|ls|ps|scale|rm|inspect`. One file per verb; the waiting is in `converge`.

mod converge;
mod create;
mod ls;
mod names;
mod progress;
mod rm;
mod scale;

use clap::Subcommand;

use crate::cli::client::Client;
use crate::cli::inspect;
use crate::cli::listing::Output;
use crate::cli::resolve::resolve;
use crate::cli::{say, task};

/// Verbs of `shoal service`.
#[derive(Subcommand)]
pub enum Verb {
    /// Create a service.
    #[command(override_usage = "shoal service create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Create(Box<create::Args>),
    /// List services.
    #[command(visible_alias = "list")]
    Ls(Output),
    /// List the tasks of services, the older ones of a slot under the newest.
    Ps {
        #[command(flatten)]
        list: task::List,
        /// Ids or names.
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Change how many tasks services have.
    Scale(scale::Args),
    /// Remove services and their tasks.
    #[command(visible_alias = "remove")]
    Rm {
        /// Ids or names.
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Show whole services as JSON.
    Inspect {
        /// Ids or names.
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
}

/// Does what the verb says.
///
/// # Errors
/// What the daemon answered, or a word that means nothing.
pub async fn run(client: &Client, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Create(args) => create::run(client, *args).await,
        Verb::Ls(output) => ls::run(client, output).await,
        Verb::Scale(args) => scale::run(client, args).await,
        Verb::Rm { services } => rm::run(client, &services).await,
        Verb::Inspect { services } => inspect::print(&services, &client.services().await?),
        Verb::Ps { list, services: words } => {
            let services = client.services().await?;
            let found: Vec<_> = words.iter().map(|word| resolve(word, &services)).collect();
            let ids: Vec<&str> = found.iter().flatten().map(|s| s.id.as_str()).collect();
            if !ids.is_empty() {
                let (mut tasks, nodes) = (client.tasks().await?, client.nodes().await?);
                tasks.retain(|task| ids.contains(&task.service_id.as_str()));
                say(&task::show(client, tasks, &nodes, &list).await?);
            }
            for service in found {
                service?;
            }
            Ok(())
        }
    }
}
