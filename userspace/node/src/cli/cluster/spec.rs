//! The flags that change a cluster's spec, shared by `init`, `update` and `ca`.
//!
//! A flag that was not given changes nothing. Limits are the managers' to check.

use std::time::Duration;

use shoal_api::{CaSpec, ClusterSpec, ExternalCa, RaftSpec};

use super::pem;
use crate::cli::human::parse_duration;

/// What `init` and `update` may set.
#[derive(clap::Args, Debug, Default)]
pub struct SpecFlags {
    /// How many old tasks are kept in each slot, all if negative [default: 5].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    task_history_limit: Option<i64>,
    /// How often an agent sends a heartbeat; after three missed ones its node is down
    /// [default: 1s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    dispatcher_heartbeat: Option<Duration>,
    /// How many Raft snapshots are kept beside the newest [default: 0].
    #[arg(long, value_name = "N")]
    max_snapshots: Option<u64>,
    /// How many log entries lie between two Raft snapshots [default: 10000].
    #[arg(long, value_name = "N")]
    snapshot_interval: Option<u64>,
    #[command(flatten)]
    pub ca: CaFlags,
}

/// What `ca` may set, too.
#[derive(clap::Args, Debug, Default)]
pub struct CaFlags {
    /// How long a node's certificate is valid, at least an hour [default: 2160h0m0s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub cert_expiry: Option<Duration>,
    /// A signer outside of the cluster: protocol=cfssl,url=https://HOST/PATH[,cacert=FILE].
    #[arg(long, value_name = "SPEC", value_parser = external_ca)]
    pub external_ca: Vec<ExternalCa>,
}

impl SpecFlags {
    /// Writes what was given into a spec; tells whether that was anything.
    pub fn merge(&self, spec: &mut ClusterSpec) -> bool {
        let mut given = false;
        let mut set = |given_here: bool| given |= given_here;
        if let Some(limit) = self.task_history_limit {
            spec.task_history_limit = Some(limit);
            set(true);
        }
        if let Some(period) = self.dispatcher_heartbeat {
            spec.dispatcher_heartbeat_ns = Some(nanos(period));
            set(true);
        }
        let raft = (self.max_snapshots, self.snapshot_interval);
        if raft != (None, None) {
            let spec = spec.raft.get_or_insert_with(RaftSpec::default);
            spec.max_snapshots = raft.0.or(spec.max_snapshots);
            spec.snapshot_interval = raft.1.or(spec.snapshot_interval);
            set(true);
        }
        set(self.ca.merge(spec));
        given
    }
}

impl CaFlags {
    /// Writes what was given into a spec; tells whether that was anything.
    pub fn merge(&self, spec: &mut ClusterSpec) -> bool {
        if self.cert_expiry.is_none() && self.external_ca.is_empty() {
            return false;
        }
        let ca = spec.ca.get_or_insert_with(CaSpec::default);
        if let Some(expiry) = self.cert_expiry {
            ca.node_cert_expiry_ns = Some(nanos(expiry));
        }
        if !self.external_ca.is_empty() {
            ca.external_cas = self.external_ca.clone();
        }
        true
    }
}

/// At most a century, by [`parse_duration`].
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads `protocol=cfssl,url=https://HOST/PATH[,cacert=FILE]`.
fn external_ca(text: &str) -> Result<ExternalCa, String> {
    let (mut protocol, mut url, mut cacert_pem) = (false, None, String::new());
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?;
        match key.to_lowercase().as_str() {
            "protocol" if value.eq_ignore_ascii_case("cfssl") => protocol = true,
            "protocol" => return Err(format!("unrecognized external CA protocol {value}")),
            "url" => url = Some(value.to_owned()),
            "cacert" => {
                cacert_pem = pem::read(value).map_err(|error| {
                    format!("unable to read CA cert for external CA: {value}: {error}")
                })?;
            }
            _ => return Err(format!("unknown field '{key}': use protocol, url and cacert")),
        }
    }
    if !protocol {
        return Err("the external-ca option needs a protocol= parameter".to_owned());
    }
    let url = url.ok_or("the external-ca option needs a url= parameter")?;
    // What is asked for there is a manager's trust; nobody may read or change it on its way.
    if !url.starts_with("https://") || url.len() == "https://".len() {
        return Err(format!("invalid external CA url {url:?}: use https://HOST/PATH"));
    }
    Ok(ExternalCa { url, cacert_pem })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: SpecFlags,
    }

    fn merged(arguments: &[&str], mut spec: ClusterSpec) -> Option<ClusterSpec> {
        let line = Line::try_parse_from(["x"].iter().chain(arguments)).unwrap();
        line.flags.merge(&mut spec).then_some(spec)
    }

    #[test]
    fn only_what_was_given_changes() {
        let before = ClusterSpec {
            name: "default".into(),
            task_history_limit: Some(7),
            raft: Some(RaftSpec { max_snapshots: Some(3), ..RaftSpec::default() }),
            autolock: true,
            ..ClusterSpec::default()
        };
        assert_eq!(merged(&[], before.clone()), None);
        let arguments = ["--snapshot-interval", "500", "--dispatcher-heartbeat", "2s"];
        let after = merged(&arguments, before.clone()).unwrap();
        let raft = RaftSpec {
            max_snapshots: Some(3),
            snapshot_interval: Some(500),
            ..RaftSpec::default()
        };
        let expected = ClusterSpec {
            raft: Some(raft),
            dispatcher_heartbeat_ns: Some(2_000_000_000),
            ..before
        };
        assert_eq!(after, expected);
    }

    #[test]
    fn a_negative_history_keeps_all() {
        let after = merged(&["--task-history-limit", "-1"], ClusterSpec::default()).unwrap();
        assert_eq!(after.task_history_limit, Some(-1));
    }

    #[test]
    fn an_expiry_is_read_as_go_reads_it() {
        let expiry = |text| {
            let line = Line::try_parse_from(["x", "--cert-expiry", text]).ok()?;
            let mut spec = ClusterSpec::default();
            line.flags.merge(&mut spec);
            spec.ca?.node_cert_expiry_ns
        };
        assert_eq!(expiry("2160h0m0s"), Some(7_776_000_000_000_000));
        assert_eq!(expiry("90d"), None);
    }

    #[test]
    fn an_external_ca_needs_protocol_and_an_https_url() {
        let check = |text: &str, expected: &str| {
            assert_eq!(external_ca(text).unwrap_err(), expected, "{text}");
        };
        check("cfssl", "invalid field 'cfssl' must be a key=value pair");
        check("url=https://a/", "the external-ca option needs a protocol= parameter");
        check("protocol=cfssl", "the external-ca option needs a url= parameter");
        check("protocol=acme,url=https://a/", "unrecognized external CA protocol acme");
        check(
            "protocol=cfssl,url=http://a/",
            "invalid external CA url \"http://a/\": use https://HOST/PATH",
        );
        check(
            "protocol=cfssl,url=https://a/,cacert=/nonexistent",
            "unable to read CA cert for external CA: /nonexistent: No such file or directory \
             (os error 2)",
        );
        let read = external_ca("protocol=CFSSL,url=https://a:8888/sign").unwrap();
        assert_eq!(read.url, "https://a:8888/sign");
        assert_eq!(read.cacert_pem, "");
    }
}
