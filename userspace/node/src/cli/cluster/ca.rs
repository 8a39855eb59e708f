//! `shoal ca`: shows the cluster's root certificate, or rolls over to another one.

use std::time::Duration;

use shoal_api::{CaSpec, Cluster, UpdateClusterRequest};

use super::rotation::{Progress, Stand};
use super::spec::CaFlags;
use super::tls::Roots;
use super::{change, init, pem};
use crate::cli::client::Client;
use crate::cli::{Usage, say};

/// How often progress is asked for, as Docker asks.
const EVERY: Duration = Duration::from_millis(200);

/// Flags of `shoal ca`.
#[derive(clap::Args)]
pub struct Args {
    /// Roll over to a new root; one is made if none is given. Every node gets a new certificate,
    /// and no connection is lost. Join tokens change with the root.
    #[arg(long)]
    rotate: bool,
    /// The root certificate to roll over to, in PEM.
    #[arg(long, value_name = "FILE", value_parser = pem::read)]
    ca_cert: Option<String>,
    /// That root certificate's key, in PEM; not needed where an external CA signs.
    #[arg(long, value_name = "FILE", value_parser = pem::read)]
    ca_key: Option<String>,
    #[command(flatten)]
    flags: CaFlags,
    /// Return at once instead of waiting until every node has its new certificate.
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set,
        hide_possible_values = true)]
    detach: bool,
    /// Print no progress.
    #[arg(short, long)]
    quiet: bool,
}

/// Prints the root, after a roll-over if that was asked for.
///
/// # Errors
/// Flags that do not fit, or what the daemon answered.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    check(&args)?;
    if !args.rotate {
        return show(&client.cluster().await?);
    }
    let mut asked = 0;
    change::update(client, |_, request| {
        asked = rotate(&args, request);
        Ok(())
    })
    .await?;
    if args.detach {
        return Ok(());
    }
    if let Some(cluster) = wait(client, asked, args.quiet).await?
        && !args.quiet
    {
        show(&cluster)?;
    }
    Ok(())
}

/// What of the flags can be said to be wrong without a cluster.
fn check(args: &Args) -> Result<(), Usage> {
    let given = [
        ("ca-cert", args.ca_cert.is_some()),
        ("ca-key", args.ca_key.is_some()),
        ("cert-expiry", args.flags.cert_expiry.is_some()),
        ("external-ca", !args.flags.external_ca.is_empty()),
    ];
    if let (false, Some((flag, _))) = (args.rotate, given.iter().find(|(_, given)| *given)) {
        return Err(Usage(format!(
            "`--{flag}` flag requires the `--rotate` flag to update the CA"
        )));
    }
    if !args.flags.external_ca.is_empty() && args.ca_cert.is_none() {
        return Err(Usage(
            "rotating to an external CA requires the `--ca-cert` flag to specify the external \
             CA's cert - to add an external CA with the current root CA certificate, use the \
             `update` command instead"
                .to_owned(),
        ));
    }
    let external = !args.flags.external_ca.is_empty();
    init::root(args.ca_cert.clone(), args.ca_key.clone(), external).map(drop)
}

/// Asks for the roll-over; gives its number.
fn rotate(args: &Args, request: &mut UpdateClusterRequest) -> u64 {
    let spec = change::spec(request);
    args.flags.merge(spec);
    let ca = spec.ca.get_or_insert_with(CaSpec::default);
    ca.force_rotate += 1;
    let asked = ca.force_rotate;
    if !args.flags.external_ca.is_empty() {
        // The signer answers with a certificate of the root that it signs under.
        let own = ca.external_cas.iter_mut().filter(|external| external.cacert_pem.is_empty());
        own.for_each(|external| external.cacert_pem = args.ca_cert.clone().unwrap_or_default());
    }
    request.root = init::root(args.ca_cert.clone(), args.ca_key.clone(), true).unwrap_or_default();
    asked
}

/// Follows the roll-over of a number to its end; `None` when the user no longer wants to.
async fn wait(client: &Client, asked: u64, quiet: bool) -> anyhow::Result<Option<Cluster>> {
    let mut progress = Progress::new(quiet);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let cluster = client.cluster().await?;
        let nodes = client.nodes().await?;
        let stand = Stand::of(&cluster, &nodes);
        progress.show(&stand);
        // Before it began, all is as well as after its end.
        let begun = cluster.root_ca.as_ref().is_some_and(|root_ca| root_ca.last_forced >= asked);
        if begun && stand.is_done() {
            progress.stop();
            return Ok(Some(cluster));
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = &mut interrupted => {
                progress.stop();
                eprintln!(
                    "Operation continuing in background.\n\
                     Use `shoal info` to check progress."
                );
                return Ok(None);
            }
        }
    }
}

fn show(cluster: &Cluster) -> anyhow::Result<()> {
    let roots = Roots::of(cluster);
    let root = roots.trusted_pem().trim();
    anyhow::ensure!(!root.is_empty(), "no CA information available");
    say(&format!("{root}\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use shoal_api::{ClusterSpec, ExternalCa};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(arguments: &[&str]) -> Args {
        let line = Line::try_parse_from(["ca"].iter().chain(arguments));
        line.unwrap_or_else(|error| panic!("{error}")).args
    }

    fn pem() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.pem");
        std::fs::write(&path, crate::cli::cluster::tls::tests::ROOT).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn flags_that_change_the_root_need_rotate() {
        let (_dir, pem) = pem();
        let refused = |arguments: &[&str]| check(&args(arguments)).unwrap_err().to_string();
        assert!(check(&args(&[])).is_ok());
        assert!(check(&args(&["--rotate"])).is_ok());
        assert_eq!(
            refused(&["--cert-expiry", "1h"]),
            "`--cert-expiry` flag requires the `--rotate` flag to update the CA"
        );
        assert_eq!(
            refused(&["--ca-cert", &pem]),
            "`--ca-cert` flag requires the `--rotate` flag to update the CA"
        );
        assert_eq!(
            refused(&["--rotate", "--ca-cert", &pem]),
            "the --ca-cert flag requires that a --ca-key flag and/or --external-ca flag be \
             provided as well"
        );
        let external = "protocol=cfssl,url=https://a/sign";
        let refused = refused(&["--rotate", "--external-ca", external]);
        assert!(refused.starts_with("rotating to an external CA requires the `--ca-cert` flag"));
    }

    #[test]
    fn a_roll_over_counts_up_and_keeps_the_rest_of_the_spec() {
        let spec = ClusterSpec {
            task_history_limit: Some(3),
            ca: Some(CaSpec { force_rotate: 4, ..CaSpec::default() }),
            ..ClusterSpec::default()
        };
        let asked = |arguments: &[&str]| {
            let mut request = UpdateClusterRequest {
                spec: Some(spec.clone()),
                ..UpdateClusterRequest::default()
            };
            assert_eq!(rotate(&args(arguments), &mut request), 5);
            request
        };
        let request = asked(&["--rotate"]);
        assert_eq!(request.root, None);
        let after = request.spec.unwrap();
        assert_eq!(after.task_history_limit, Some(3));
        assert_eq!(after.ca.unwrap().force_rotate, 5);

        let (_dir, pem) = pem();
        let external = "protocol=cfssl,url=https://a/sign";
        let request = asked(&["--rotate", "--ca-cert", &pem, "--external-ca", external]);
        let root = request.root.unwrap();
        assert!(root.cert_pem.contains("BEGIN CERTIFICATE") && root.key_pem.is_empty());
        let cas = request.spec.unwrap().ca.unwrap().external_cas;
        let url = "https://a/sign".to_owned();
        assert_eq!(cas, [ExternalCa { url, cacert_pem: root.cert_pem }]);
    }
}
