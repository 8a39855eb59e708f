//! The addresses of a new membership, and of an old one on a machine whose addresses changed.

use anyhow::Context as _;
use shoal_api::NodeAvailability;
use tracing::{info, warn};

use super::Cluster;
use crate::config::{Advertise, IpOrInterface};
use crate::daemon::host;
use crate::daemon::state::{Availability, FORMAT, Phase, Record, Role, Token};

/// Ports that VXLAN may use (swarm.md §1.0).
const DATA_PATH_PORTS: std::ops::RangeInclusive<u32> = 1024..=49_151;

/// What `shoal init` or `shoal join` says about this node; what is empty comes from the daemon's
/// configuration.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Address or interface, and maybe a port.
    pub advertise_addr: String,
    /// `IP:PORT`.
    pub listen_addr: String,
    /// Address or interface.
    pub data_path_addr: String,
    /// 0 means the configured one.
    pub data_path_port: u32,
    /// Whether tasks may run here.
    pub availability: Availability,
}

/// What the wire says, in ours.
pub fn availability(wanted: i32) -> anyhow::Result<Availability> {
    match NodeAvailability::try_from(wanted) {
        Ok(NodeAvailability::Active) => Ok(Availability::Active),
        Ok(NodeAvailability::Pause) => Ok(Availability::Pause),
        Ok(NodeAvailability::Drain) => Ok(Availability::Drain),
        Err(_) => anyhow::bail!("invalid Availability: \"{wanted}\""),
    }
}

/// What we say, on the wire.
pub fn on_the_wire(availability: Availability) -> NodeAvailability {
    match availability {
        Availability::Active => NodeAvailability::Active,
        Availability::Pause => NodeAvailability::Pause,
        Availability::Drain => NodeAvailability::Drain,
    }
}

impl Cluster {
    /// A new membership with the addresses that this machine has.
    pub(super) fn record(
        &self,
        phase: Phase,
        role: Role,
        wishes: &Wishes,
    ) -> anyhow::Result<Record> {
        let config = &self.0.config;
        let data_path_port = match wishes.data_path_port {
            0 => config.data_path_port,
            port => {
                u16::try_from(port).ok().filter(|_| DATA_PATH_PORTS.contains(&port)).with_context(
                    || format!("Datapath port number is not in valid range (1024-49151) : {port}"),
                )?
            }
        };
        let record = Record {
            format: FORMAT,
            phase,
            node_id: String::new(),
            role,
            listen_addr: config.listen_addr,
            listen_wish: wishes.listen_addr.clone(),
            advertise_addr: String::new(),
            advertise_wish: wishes.advertise_addr.clone(),
            data_path_addr: config.listen_addr.ip(),
            data_path_wish: wishes.data_path_addr.clone(),
            data_path_port,
            availability: wishes.availability,
            cluster_id: String::new(),
            raft_id: 0,
            managers: Vec::new(),
            heard: Vec::new(),
            token: Token::default(),
        };
        self.addressed(record)
    }

    /// The membership with the addresses that it has on this machine now.
    ///
    /// # Errors
    /// None can be chosen, or a wish names one that is not this machine's.
    pub(super) fn addressed(&self, record: Record) -> anyhow::Result<Record> {
        let config = &self.0.config;
        let addresses = host::addresses()?;
        let listen_addr = match parsed::<Advertise>(&record.listen_wish, "ListenAddr")? {
            None => config.listen_addr,
            Some(wanted) => host::listen(&wanted, config.listen_addr.port(), &addresses)?,
        };
        let advertise = parsed::<Advertise>(&record.advertise_wish, "advertise address")?;
        let advertise = advertise.as_ref().or(config.advertise_addr.as_ref());
        let advertised = host::advertise(advertise, listen_addr, &addresses)?;
        let data_path = parsed::<IpOrInterface>(&record.data_path_wish, "data path address")?;
        let data_path = data_path.as_ref().or(config.data_path_addr.as_ref());
        let data_path_addr = host::data_path(data_path, advertised, &addresses)?;
        let advertise_addr = advertised.to_string();
        Ok(Record { listen_addr, advertise_addr, data_path_addr, ..record })
    }

    /// The membership of a daemon that starts again: its machine may have other addresses by now.
    pub(super) fn readdressed(&self, record: Record) -> anyhow::Result<Record> {
        match self.addressed(record.clone()) {
            Ok(new) if new == record => Ok(record),
            Ok(new) => {
                info!(
                    before = record.advertise_addr,
                    now = new.advertise_addr,
                    "this machine's address is another one"
                );
                self.save(&new)?;
                Ok(new)
            }
            // They may come back; the others know this node by them.
            Err(error) => {
                warn!(%error, address = record.advertise_addr, "keeps the address it had");
                Ok(record)
            }
        }
    }
}

fn parsed<T: std::str::FromStr<Err = String>>(text: &str, what: &str) -> anyhow::Result<Option<T>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map_err(|error| anyhow::anyhow!("invalid {what} {text:?}: {error}"));
    parsed.map(Some)
}
