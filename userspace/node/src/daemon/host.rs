//! Facts of this machine: its addresses, its name, what it has, where its cgroups are.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use shoal_api::NodeDescription;

use crate::config::{Advertise, Config, IpOrInterface};

/// Why no address can be chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is none that others could reach.
    #[error("could not find the system's IP address - specify one with --advertise-addr")]
    None,
    /// There are several and the user must choose.
    #[error(
        "could not choose an IP address to advertise since this system has multiple addresses \
         ({}) - specify one with --advertise-addr",
        found.join(", ")
    )]
    Several {
        /// `10.0.0.1 on eth0`.
        found: Vec<String>,
    },
    /// The interface is not there or has no address.
    #[error("interface {interface} has no IP address")]
    Interface {
        /// Its name.
        interface: String,
    },
    /// It is another machine's, or nobody's.
    #[error(
        "{address} is not an address of this machine ({}): give one that is, or an interface",
        if found.is_empty() { "it has none".to_owned() } else { found.join(", ") }
    )]
    NotHere {
        /// As given.
        address: IpAddr,
        /// `10.0.0.1 on eth0`.
        found: Vec<String>,
    },
    /// `0.0.0.0` cannot be reached.
    #[error("{address} cannot be advertised: give the address that others reach this node at")]
    Unspecified {
        /// As given.
        address: IpAddr,
    },
}

/// An interface's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    interface: String,
    address: IpAddr,
}

impl Address {
    /// Whether another machine might reach it, so that it can be chosen without being named.
    fn is_usable(&self) -> bool {
        match self.address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        }
    }

    fn show(&self) -> String {
        format!("{} on {}", self.address, self.interface)
    }
}

/// Addresses of this network namespace.
///
/// # Errors
/// The system refuses to list them.
pub fn addresses() -> anyhow::Result<Vec<Address>> {
    let mut found = Vec::new();
    for entry in getifaddrs()? {
        let up = entry.flags.contains(InterfaceFlags::IFF_UP);
        let Some(storage) = entry.address.filter(|_| up) else { continue };
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = || storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        if let Some(address) = v4.or_else(v6) {
            found.push(Address { interface: entry.interface_name, address });
        }
    }
    Ok(found)
}

/// The address that this node has the others use, with its port.
///
/// # Errors
/// None or several could be meant.
pub fn advertise(
    wanted: Option<&Advertise>,
    listen: SocketAddr,
    addresses: &[Address],
) -> Result<SocketAddr, AddressError> {
    let port = wanted.and_then(|wanted| wanted.port).unwrap_or_else(|| listen.port());
    let address = match wanted {
        Some(wanted) => lookup(&wanted.host, addresses)?,
        // Who listens on one address only can be reached at no other.
        None if !listen.ip().is_unspecified() => listen.ip(),
        None => only(addresses)?,
    };
    if address.is_unspecified() {
        return Err(AddressError::Unspecified { address });
    }
    here(address, addresses)?;
    Ok(SocketAddr::new(address, port))
}

/// Where a manager's port is opened; `0.0.0.0` is everywhere.
///
/// # Errors
/// The interface has no address.
pub fn listen(
    wanted: &Advertise,
    port: u16,
    addresses: &[Address],
) -> Result<SocketAddr, AddressError> {
    let address = lookup(&wanted.host, addresses)?;
    Ok(SocketAddr::new(address, wanted.port.unwrap_or(port)))
}

/// The address that carries packets between nodes.
///
/// # Errors
/// The interface has none.
pub fn data_path(
    wanted: Option<&IpOrInterface>,
    advertised: SocketAddr,
    addresses: &[Address],
) -> Result<IpAddr, AddressError> {
    let Some(wanted) = wanted else { return Ok(advertised.ip()) };
    let address = lookup(wanted, addresses)?;
    here(address, addresses)?;
    Ok(address)
}

/// Others would be sent to a machine that does not know this cluster.
fn here(address: IpAddr, addresses: &[Address]) -> Result<(), AddressError> {
    if addresses.iter().any(|here| here.address == address) {
        return Ok(());
    }
    let found = addresses.iter().filter(|here| here.is_usable()).map(Address::show).collect();
    Err(AddressError::NotHere { address, found })
}

fn lookup(wanted: &IpOrInterface, addresses: &[Address]) -> Result<IpAddr, AddressError> {
    match wanted {
        IpOrInterface::Ip(ip) => Ok(*ip),
        IpOrInterface::Interface(name) => {
            let on = |v4: bool| {
                let of = |a: &&Address| a.interface == *name && a.address.is_ipv4() == v4;
                let mut all = addresses.iter().filter(of);
                // A link-local address is worth taking only where there is no other.
                let usable = all.clone().find(|a| a.is_usable());
                usable.or_else(|| all.next()).map(|a| a.address)
            };
            let none = || AddressError::Interface { interface: name.clone() };
            on(true).or_else(|| on(false)).ok_or_else(none)
        }
    }
}

/// IPv4 is preferred, as Docker does; two of one family are a choice that is not ours.
fn only(addresses: &[Address]) -> Result<IpAddr, AddressError> {
    for v4 in [true, false] {
        let usable = addresses.iter().filter(|a| a.is_usable() && a.address.is_ipv4() == v4);
        let family: Vec<_> = usable.collect();
        match family[..] {
            [] => {}
            [only] => return Ok(only.address),
            _ => {
                let found = family.iter().map(|a| a.show()).collect();
                return Err(AddressError::Several { found });
            }
        }
    }
    Err(AddressError::None)
}

/// What the managers are told about this machine.
pub fn description(config: &Config) -> NodeDescription {
    let host = || nix::unistd::gethostname().ok()?.into_string().ok();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    NodeDescription {
        hostname: config.name.clone().or_else(host).unwrap_or_default(),
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nano_cpus: cpus as u64 * 1_000_000_000,
        memory_bytes: memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()),
    }
}

/// `MemTotal` of `/proc/meminfo`, which is in KiB.
fn memory(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The parent of the tasks' cgroups: as told, or `shoal` below the cgroup2 mount.
pub fn cgroup_root(config: &Config) -> Option<PathBuf> {
    let mounted = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        Some(cgroup2_mount(&mounts)?.join("shoal"))
    };
    config.cgroup_root.clone().or_else(mounted)
}

/// Fields before the dash: id, parent, device, root, mount point, options; after it: type, …
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mount = mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("cgroup2")).then(|| before.split(' ').nth(4))?
    });
    mount.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(addresses: &[(&str, &str)]) -> Vec<Address> {
        let address = |&(interface, address): &(&str, &str)| Address {
            interface: interface.to_owned(),
            address: address.parse().unwrap(),
        };
        addresses.iter().map(address).collect()
    }

    fn check(
        wanted: Option<&str>,
        listen: &str,
        on: &[(&str, &str)],
        expected: Result<&str, &str>,
    ) {
        let wanted = wanted.map(|wanted| wanted.parse().unwrap());
        let got = advertise(wanted.as_ref(), listen.parse().unwrap(), &machine(on));
        let got = got.map(|got| got.to_string()).map_err(|error| error.to_string());
        assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned));
    }

    const ANY: &str = "0.0.0.0:2377";

    #[test]
    fn the_only_address_is_advertised_and_ipv4_goes_first() {
        check(None, ANY, &[("eth0", "10.0.0.1")], Ok("10.0.0.1:2377"));
        check(None, ANY, &[("eth0", "fd88::1"), ("eth0", "10.0.0.1")], Ok("10.0.0.1:2377"));
        check(None, ANY, &[("eth0", "fd88::1")], Ok("[fd88::1]:2377"));
        check(None, "10.0.0.9:99", &[("eth0", "10.0.0.9")], Ok("10.0.0.9:99"));
        let with_own = [("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", "10.0.0.1")];
        check(None, ANY, &with_own, Ok("10.0.0.1:2377"));
    }

    #[test]
    fn several_addresses_are_the_users_choice() {
        check(
            None,
            ANY,
            &[("eth0", "10.0.0.1"), ("eth1", "10.1.0.1")],
            Err("could not choose an IP address to advertise since this system has multiple \
                 addresses (10.0.0.1 on eth0, 10.1.0.1 on eth1) - specify one with \
                 --advertise-addr"),
        );
        check(
            Some("eth1"),
            ANY,
            &[("eth0", "10.0.0.1"), ("eth1", "10.1.0.1")],
            Ok("10.1.0.1:2377"),
        );
        check(Some("10.0.0.1:5"), ANY, &[("eth0", "10.0.0.1")], Ok("10.0.0.1:5"));
        check(Some("127.0.0.1"), ANY, &[("lo", "127.0.0.1")], Ok("127.0.0.1:2377"));
    }

    #[test]
    fn an_address_that_cannot_be_reached_is_refused() {
        check(
            None,
            ANY,
            &[],
            Err("could not find the system's IP address - specify one with --advertise-addr"),
        );
        check(Some("eth7"), ANY, &[], Err("interface eth7 has no IP address"));
        check(
            Some("0.0.0.0"),
            ANY,
            &[],
            Err("0.0.0.0 cannot be advertised: give the address that others reach this node at"),
        );
        check(
            Some("10.9.9.9"),
            ANY,
            &[("lo", "127.0.0.1"), ("eth0", "10.0.0.1")],
            Err(
                "10.9.9.9 is not an address of this machine (10.0.0.1 on eth0): give one that is, \
                 or an interface",
            ),
        );
        let advertised = "10.0.0.1:2377".parse().unwrap();
        let data_path = |wanted: &str| {
            let on = machine(&[("eth0", "10.0.0.1"), ("eth1", "10.1.0.1")]);
            data_path(Some(&wanted.parse().unwrap()), advertised, &on)
        };
        assert_eq!(data_path("eth1"), Ok("10.1.0.1".parse().unwrap()));
        assert!(matches!(data_path("10.9.9.9"), Err(AddressError::NotHere { .. })));
    }

    #[test]
    fn the_cgroup2_mount_is_found_among_others() {
        let mounts = "\
            24 23 0:20 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs rw\n\
            25 24 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            26 24 0:22 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount(""), None);
        assert_eq!(memory("MemTotal:        2048 kB\nMemFree: 1 kB\n"), 2 << 20);
    }
}
