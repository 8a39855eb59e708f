//! What can go wrong, with what and where.
//!
//! A message holds the whole chain of causes, since one line is what a person gets to see.

use std::error::Error as StdError;
use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why the data plane could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The process may not do what must be done.
    #[error("needs root (CAP_BPF, CAP_NET_ADMIN): {missing} is missing")]
    Privilege {
        /// The capability that is missing.
        missing: &'static str,
    },
    /// There is no bpffs where pins should be, and none could be mounted.
    #[error("{}: not a bpffs, and none can be mounted there: {cause}", dir.display())]
    Bpffs {
        /// The pin folder.
        dir: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The kernel lacks something that we cannot do without.
    #[error("the kernel cannot {feature}: {}; 6.1 is the oldest that works", chain(cause.as_ref()))]
    Feature {
        /// What it cannot do.
        feature: &'static str,
        /// What it said.
        cause: Box<dyn StdError + Send + Sync>,
    },
    /// No interface holds the data-path address, or the chosen one does not exist.
    #[error("no uplink: {0}")]
    Uplink(String),
    /// Another VXLAN device holds the port.
    #[error("UDP port {port} has another VXLAN device already: choose another port or remove it")]
    VxlanPort {
        /// The port.
        port: u16,
    },
    /// Any other failure on the way.
    #[error(transparent)]
    Other(#[from] Error),
}

/// Why the kernel could not be made equal to what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A map could not be read or written.
    #[error("map {map}: {}", chain(cause))]
    Map {
        /// Name of the map.
        map: &'static str,
        /// Why.
        cause: aya::maps::MapError,
    },
    /// The object lacks a map or a program, or holds one of another kind.
    #[error("eBPF object: {what} {name} is missing or of another kind")]
    Object {
        /// `map` or `program`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The verifier refused a program.
    #[error("program {name}: {}", chain(cause))]
    Program {
        /// Its name.
        name: String,
        /// Why.
        cause: aya::programs::ProgramError,
    },
    /// A program could not be attached.
    #[error("program {program} on interface {interface}: {}", chain(cause.as_ref()))]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Name or index of the interface.
        interface: String,
        /// Why.
        cause: Box<dyn StdError + Send + Sync>,
    },
    /// An interface could not be made, changed or read.
    #[error("interface {interface}: cannot {what}: {cause}")]
    Interface {
        /// Name or index of the interface.
        interface: String,
        /// What was tried.
        what: &'static str,
        /// Why.
        cause: rtnetlink::Error,
    },
    /// An interface of that name belongs to someone else.
    #[error("interface {interface} exists and is not ours (alias {alias:?}): remove it")]
    Taken {
        /// Name of the interface.
        interface: String,
        /// Its alias.
        alias: String,
    },
    /// The interface is gone.
    #[error("interface {interface} does not exist")]
    Missing {
        /// Name of the interface.
        interface: String,
    },
    /// Task and gateway addresses are of different families.
    #[error("task address {address} and gateway {gateway} are not of one family")]
    Family {
        /// The task's address.
        address: IpAddr,
        /// Its gateway.
        gateway: IpAddr,
    },
    /// Something outside BPF and netlink failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        cause: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}

/// An error and its causes: aya's own messages leave out what the kernel said.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            write!(text, ": {cause_text}").expect("a string takes everything");
        }
        next = cause.source();
    }
    text
}
