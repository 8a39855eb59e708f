//! `shoal init`: starts a cluster with this node as its first manager, or goes on from what this
//! manager, or a restored backup, holds.

use shoal_api::{ClusterSpec, InitRequest, InitResponse, NodeAvailability, SigningCa};

use super::spec::SpecFlags;
use super::{Availability, addrs, key, pem};
use crate::cli::client::Client;
use crate::cli::{Usage, say};

/// Flags of `shoal init`.
#[derive(clap::Args)]
pub struct Args {
    /// Address that the other nodes reach this one at [default: the daemon's --advertise-addr, or
    /// the only usable address].
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", value_parser = addrs::advertise)]
    advertise_addr: Option<String>,
    /// Address that managers listen on here [default: the daemon's --listen-addr].
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", value_parser = addrs::listen)]
    listen_addr: Option<String>,
    /// Address that carries the packets between nodes [default: the daemon's --data-path-addr, or
    /// the advertised one].
    #[arg(long, value_name = "IP|INTERFACE", value_parser = addrs::data_path)]
    data_path_addr: Option<String>,
    /// UDP port that carries the packets between nodes, 1024-49151; 0 for the daemon's
    /// --data-path-port.
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    data_path_port: u32,
    /// Subnet that networks' subnets are cut from; may be given several times [default:
    /// 10.0.0.0/8].
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = addrs::pool)]
    default_addr_pool: Vec<String>,
    /// Prefix length of networks' subnets.
    #[arg(long, value_name = "BITS", default_value_t = 24)]
    default_addr_pool_mask_length: u32,
    /// What this node does: active, pause or drain.
    #[arg(long, default_value = "active", value_parser = Availability::parse)]
    availability: Availability,
    /// Have managers ask for an unlock key when they start.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set,
        hide_possible_values = true)]
    autolock: bool,
    /// Go on from what this manager or a restored backup holds, without the other managers.
    #[arg(long)]
    force_new_cluster: bool,
    #[command(flatten)]
    spec: SpecFlags,
    /// The root certificate to use, in PEM [default: a new one].
    #[arg(long, value_name = "FILE", value_parser = pem::read)]
    ca_cert: Option<String>,
    /// The root certificate's key, in PEM; not needed where an external CA signs.
    #[arg(long, value_name = "FILE", value_parser = pem::read)]
    ca_key: Option<String>,
}

/// Asks the daemon and prints how others join.
///
/// # Errors
/// Flags that do not fit, or what the daemon answered.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let request = request(args)?;
    let answer = client.local().await?.init(request).await?.into_inner();
    say(&text(&answer));
    Ok(())
}

fn request(args: Args) -> Result<InitRequest, Usage> {
    let external = !args.spec.ca.external_ca.is_empty();
    let root = root(args.ca_cert, args.ca_key, external)?;
    let mut spec = ClusterSpec { name: "default".to_owned(), ..ClusterSpec::default() };
    args.spec.merge(&mut spec);
    spec.autolock = args.autolock;
    Ok(InitRequest {
        advertise_addr: args.advertise_addr.unwrap_or_default(),
        listen_addr: args.listen_addr.unwrap_or_default(),
        data_path_addr: args.data_path_addr.unwrap_or_default(),
        data_path_port: args.data_path_port,
        address_pools: args.default_addr_pool,
        subnet_size: args.default_addr_pool_mask_length,
        availability: NodeAvailability::from(args.availability).into(),
        spec: Some(spec),
        force_new_cluster: args.force_new_cluster,
        root,
    })
}

/// A root of the operator's own: with its key, or an external CA that has the key.
///
/// # Errors
/// One without the other.
pub(super) fn root(
    cert_pem: Option<String>,
    key_pem: Option<String>,
    external: bool,
) -> Result<Option<SigningCa>, Usage> {
    match (cert_pem, key_pem) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(Usage("the --ca-key flag requires that a --ca-cert flag be provided".to_owned()))
        }
        (Some(_), None) if !external => Err(Usage(
            "the --ca-cert flag requires that a --ca-key flag and/or --external-ca flag be \
             provided as well"
                .to_owned(),
        )),
        (Some(cert_pem), key_pem) => {
            Ok(Some(SigningCa { cert_pem, key_pem: key_pem.unwrap_or_default() }))
        }
    }
}

fn text(answer: &InitResponse) -> String {
    let InitResponse { node_id, addr, worker_token, unlock_key, .. } = answer;
    let mut text = format!(
        "Swarm initialized: current node ({node_id}) is now a manager.\n\n\
         {}To add a manager to this swarm, run 'shoal join-token manager' and follow the \
         instructions.\n",
        super::join_token::text("worker", worker_token, addr),
    );
    if !unlock_key.is_empty() {
        text += &key::unlock_text(unlock_key);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn check(arguments: &[&str]) -> InitRequest {
        let line = Line::try_parse_from(["init"].iter().chain(arguments));
        request(line.unwrap_or_else(|error| panic!("{error}")).args).unwrap()
    }

    #[test]
    fn the_join_command_is_printed_as_docker_prints_it() {
        let mut answer = InitResponse {
            node_id: "nodeID".into(),
            addr: "10.0.0.1:2377".into(),
            worker_token: "SWMTKN-1-a-b".into(),
            ..InitResponse::default()
        };
        let expected = "\
Swarm initialized: current node (nodeID) is now a manager.

To add a worker to this swarm, run the following command:

    shoal join --token SWMTKN-1-a-b 10.0.0.1:2377

To add a manager to this swarm, run 'shoal join-token manager' and follow the instructions.
";
        assert_eq!(text(&answer), expected);
        answer.unlock_key = "SWMKEY-1-k".into();
        let with_key = text(&answer);
        assert!(with_key.starts_with(expected));
        assert!(with_key.contains("\n    SWMKEY-1-k\n"), "{with_key}");
    }

    #[test]
    fn without_flags_the_daemon_decides() {
        let request = check(&[]);
        let spec = ClusterSpec { name: "default".into(), ..ClusterSpec::default() };
        let expected = InitRequest { subnet_size: 24, spec: Some(spec), ..InitRequest::default() };
        assert_eq!(request, expected);
    }

    #[test]
    fn every_flag_reaches_the_request() {
        let request = check(&[
            "--advertise-addr=eth0",
            "--listen-addr=10.0.0.1",
            "--data-path-addr=eth1",
            "--data-path-port=4790",
            "--default-addr-pool=10.20.0.0/16,10.30.0.0/16",
            "--default-addr-pool=10.40.0.1/16",
            "--default-addr-pool-mask-length=26",
            "--availability=Drain",
            "--autolock",
            "--force-new-cluster",
            "--cert-expiry=1h",
        ]);
        assert_eq!(request.advertise_addr, "eth0");
        assert_eq!(request.listen_addr, "10.0.0.1:2377");
        assert_eq!(request.data_path_addr, "eth1");
        assert_eq!(request.data_path_port, 4790);
        assert_eq!(request.address_pools, ["10.20.0.0/16", "10.30.0.0/16", "10.40.0.0/16"]);
        assert_eq!(request.subnet_size, 26);
        assert_eq!(request.availability(), NodeAvailability::Drain);
        assert!(request.force_new_cluster);
        let spec = request.spec.unwrap();
        assert!(spec.autolock);
        assert_eq!(spec.ca.unwrap().node_cert_expiry_ns, Some(3_600_000_000_000));
    }

    #[test]
    fn a_root_comes_with_its_key_or_with_a_signer() {
        let pem = || Some("pem".to_owned());
        let refused = |cert, key| root(cert, key, false).unwrap_err().to_string();
        assert!(root(None, None, true).unwrap().is_none());
        assert_eq!(root(pem(), pem(), false).unwrap().unwrap().key_pem, "pem");
        assert_eq!(root(pem(), None, true).unwrap().unwrap().key_pem, "");
        assert_eq!(
            refused(pem(), None),
            "the --ca-cert flag requires that a --ca-key flag and/or --external-ca flag be \
             provided as well"
        );
        assert_eq!(
            refused(None, pem()),
            "the --ca-key flag requires that a --ca-cert flag be provided"
        );
    }
}
