//! `shoal service scale`.

use shoal_api::{Service, ServiceSpec, UpdateServiceRequest};

use super::converge::{self, Goal};
use crate::cli::Usage;
use crate::cli::client::{Client, out_of_sequence};
use crate::cli::resolve::resolve;
use crate::cli::say;

/// Flags and arguments of `shoal service scale`.
#[derive(clap::Args)]
pub struct Args {
    /// Return at once instead of waiting until the services have converged.
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, action = clap::ArgAction::Set)]
    detach: bool,
    /// What to scale to how many tasks.
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    scales: Vec<String>,
}

/// Writers that take turns with others give up after so many lost races.
const ATTEMPTS: usize = 5;

/// Changes all services, then waits for each.
///
/// # Errors
/// A word that is not `SERVICE=REPLICAS` (nothing is changed then), or what the daemon answered.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let scales: Vec<(&str, u64)> =
        args.scales.iter().map(|scale| parse(scale)).collect::<Result<_, _>>()?;
    let services = client.services().await?;
    let ids: Vec<&str> = scales
        .iter()
        .map(|(word, _)| resolve(word, &services).map(|service| service.id.as_str()))
        .collect::<Result<_, _>>()?;
    let mut changed = Vec::new();
    for ((word, replicas), id) in scales.into_iter().zip(ids) {
        changed.push(update(client, id, replicas).await?);
        say(&format!("{word} scaled to {replicas}\n"));
    }
    if !args.detach {
        for service in changed {
            converge::wait(client, service, Goal::Change).await?;
        }
    }
    Ok(())
}

fn parse(scale: &str) -> Result<(&str, u64), Usage> {
    let (word, replicas) = scale
        .split_once('=')
        .ok_or_else(|| Usage(format!("invalid scale specifier '{scale}': use SERVICE=REPLICAS")))?;
    let number = replicas.parse().map_err(|_| {
        Usage(format!("invalid replicas value {replicas} in '{scale}': use a number"))
    })?;
    Ok((word, number))
}

/// Compare and swap, again when another writer was faster.
async fn update(client: &Client, id: &str, replicas: u64) -> anyhow::Result<Service> {
    let mut control = client.control().await?;
    for attempt in 1.. {
        let services = client.services().await?;
        let service = resolve(id, &services)?;
        let spec = service.spec.clone().unwrap_or_default();
        let request = UpdateServiceRequest {
            service_id: service.id.clone(),
            version: service.version(),
            spec: Some(ServiceSpec { replicas, ..spec }),
        };
        match control.update_service(request).await {
            Ok(answer) => return Ok(answer.into_inner().service.unwrap_or_default()),
            Err(status) if attempt < ATTEMPTS && out_of_sequence(&status) => {}
            Err(status) => return Err(status.into()),
        }
    }
    unreachable!("the last attempt returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_service_and_a_number() {
        assert_eq!(parse("web=5").unwrap(), ("web", 5));
        let error = |scale| parse(scale).unwrap_err().to_string();
        assert_eq!(error("web"), "invalid scale specifier 'web': use SERVICE=REPLICAS");
        assert_eq!(error("web=-1"), "invalid replicas value -1 in 'web=-1': use a number");
    }
}
