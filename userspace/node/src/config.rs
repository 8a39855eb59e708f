//! What the daemon and the command line are told: flags, then `SHOAL_*`, then one TOML file, then
//! the defaults; the first that says something wins.
//!
//! The only module that reads the environment. Nothing here touches the network or the kernel:
//! what has to be found out on the machine (addresses, the cgroup mount) stays `None` and is looked
//! up in `daemon::host`.

mod address;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Deserialize;

pub use address::{Advertise, IpOrInterface};

/// Where the configuration file is looked for when nobody names one; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/shoal/shoal.toml";
/// The daemon's socket unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/shoal/shoal.sock";

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file is not there or not readable.
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, has a key we do not know or a value of the wrong kind.
    #[error("configuration file {path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, in one line.
        message: String,
    },
    /// An environment variable does not parse.
    #[error("environment variable {variable}={value:?}: {message}")]
    Environment {
        /// Its name.
        variable: String,
        /// Its value.
        value: String,
        /// What was expected.
        message: String,
    },
}

/// How the uplink's XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// Native where the driver has it, otherwise none: TC does the work.
    #[default]
    Auto,
    /// Native or an error.
    Native,
    /// In the kernel's generic hook, which is slower than TC: for tests.
    Generic,
    /// Never.
    Off,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty, $variable:literal, $value:literal;)*) => {
        /// The daemon's flags. Each has a variable and a key of the same name.
        #[derive(Args, Clone, Debug, Default)]
        pub struct Flags {
            $(
                $(#[doc = $doc])*
                #[doc = ""]
                #[doc = concat!("Also ", $variable, " in the environment.")]
                #[arg(long, value_name = $value)]
                pub $name: Option<$type>,
            )*
        }

        /// The configuration file. A key that is not one of these is an error.
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            socket: Option<PathBuf>,
            $($name: Option<$type>,)*
        }

        /// All sources merged: what was said by the first that said it.
        #[derive(Debug, Default)]
        struct Merged {
            $($name: Option<$type>,)*
        }

        impl Merged {
            fn new(flags: Flags, env: &Environment<'_>, file: File) -> Result<Self, ConfigError> {
                Ok(Self {
                    $($name: match flags.$name {
                        Some(value) => Some(value),
                        None => match env.read::<$type>($variable)? {
                            Some(value) => Some(value),
                            None => file.$name,
                        },
                    },)*
                })
            }
        }
    };
}

settings! {
    /// Directory that keeps the node's identity, the Raft log and the tasks.
    state_dir: PathBuf, "SHOAL_STATE_DIR", "DIR";
    /// Directory on a BPF file system for pinned maps and links.
    pin_dir: PathBuf, "SHOAL_PIN_DIR", "DIR";
    /// Parent cgroup (version 2) of the tasks [default: the cgroup2 mount + /shoal].
    cgroup_root: PathBuf, "SHOAL_CGROUP_ROOT", "DIR";
    /// Address and port that a manager listens on.
    listen_addr: SocketAddr, "SHOAL_LISTEN_ADDR", "IP:PORT";
    /// Address that the other nodes reach this one at [default: the only usable address].
    advertise_addr: Advertise, "SHOAL_ADVERTISE_ADDR", "IP|INTERFACE[:PORT]";
    /// Address that carries the packets between nodes [default: the advertised one].
    data_path_addr: IpOrInterface, "SHOAL_DATA_PATH_ADDR", "IP|INTERFACE";
    /// UDP port that carries the packets between nodes, the same on all of them.
    data_path_port: u16, "SHOAL_DATA_PATH_PORT", "PORT";
    /// Interface that clients come in by [default: the one that has the data path address].
    uplink: String, "SHOAL_UPLINK", "INTERFACE";
    /// Name of this node [default: the host name].
    name: String, "SHOAL_NAME", "NAME";
    /// How the XDP program is attached to the uplink.
    xdp: Xdp, "SHOAL_XDP", "MODE";
    /// Log filter: error, warn, info, debug, trace, or one per module.
    log_level: String, "SHOAL_LOG_LEVEL", "FILTER";
    /// How log lines look.
    log_format: LogFormat, "SHOAL_LOG_FORMAT", "FORMAT";
}

/// Everything the daemon is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Identity, Raft log, tasks.
    pub state_dir: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
    /// On a BPF file system.
    pub pin_dir: PathBuf,
    /// `None`: below the cgroup2 mount.
    pub cgroup_root: Option<PathBuf>,
    /// Where a manager's gRPC server listens.
    pub listen_addr: SocketAddr,
    /// `None`: the only usable address.
    pub advertise_addr: Option<Advertise>,
    /// `None`: the advertised one.
    pub data_path_addr: Option<IpOrInterface>,
    /// VXLAN's UDP port.
    pub data_path_port: u16,
    /// `None`: the interface that has the data path address.
    pub uplink: Option<String>,
    /// `None`: the host name.
    pub name: Option<String>,
    /// How XDP is attached.
    pub xdp: Xdp,
    /// A filter of `tracing-subscriber`.
    pub log_level: String,
    /// How lines look.
    pub log_format: LogFormat,
}

/// Ports that VXLAN may use (swarm.md §1.0).
const DATA_PATH_PORTS: std::ops::RangeInclusive<u16> = 1024..=49_151;

/// The `SHOAL_*` variables, by a function so that tests can have their own.
pub struct Environment<'a>(pub &'a dyn Fn(&str) -> Option<OsString>);

/// How a variable's text becomes a value.
trait FromText: Sized {
    fn from_text(text: &str) -> Result<Self, String>;
}

macro_rules! from_text {
    ($($type:ty => $parse:expr;)*) => {
        $(impl FromText for $type {
            fn from_text(text: &str) -> Result<Self, String> {
                let parse: fn(&str) -> Result<Self, String> = $parse;
                parse(text)
            }
        })*
    };
}

from_text! {
    PathBuf => |text| Ok(PathBuf::from(text));
    String => |text| Ok(text.to_owned());
    SocketAddr => |text| text.parse().map_err(|_| "expected IP:PORT".to_owned());
    Advertise => str::parse;
    IpOrInterface => str::parse;
    u16 => |text| text.parse().map_err(|_| "expected a port number".to_owned());
    Xdp => |text| <Xdp as ValueEnum>::from_str(text, false)
        .map_err(|_| "expected auto, native, generic or off".to_owned());
    LogFormat => |text| <LogFormat as ValueEnum>::from_str(text, false)
        .map_err(|_| "expected text or json".to_owned());
}

impl Environment<'_> {
    /// This process's own environment.
    pub fn process() -> Environment<'static> {
        Environment(&|name| std::env::var_os(name))
    }

    /// An empty variable counts as one that is not set.
    fn read<T: FromText>(&self, variable: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = (self.0)(variable).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let error = |message| ConfigError::Environment {
            variable: variable.to_owned(),
            value: value.to_string_lossy().into_owned(),
            message,
        };
        let text = value.to_str().ok_or_else(|| error("expected UTF-8".to_owned()))?;
        T::from_text(text).map(Some).map_err(error)
    }
}

/// The socket that the command line talks to.
///
/// # Errors
/// A named configuration file that cannot be read, or a value that does not parse.
pub fn socket(
    flag: Option<PathBuf>,
    file: Option<&Path>,
    env: &Environment<'_>,
) -> Result<PathBuf, ConfigError> {
    if let Some(socket) = flag {
        return Ok(socket);
    }
    match env.read::<PathBuf>("SHOAL_SOCKET")? {
        Some(socket) => Ok(socket),
        None => Ok(read_file(file, env)?.socket.unwrap_or_else(|| DEFAULT_SOCKET.into())),
    }
}

/// Merges the daemon's sources.
///
/// # Errors
/// A named configuration file that cannot be read, or a value that does not parse or is out of
/// range.
pub fn load(
    flags: Flags,
    socket: Option<PathBuf>,
    file: Option<&Path>,
    env: &Environment<'_>,
) -> anyhow::Result<Config> {
    let mut read = read_file(file, env)?;
    let socket = match socket {
        Some(socket) => Some(socket),
        None => env.read("SHOAL_SOCKET")?.or_else(|| read.socket.take()),
    };
    let merged = Merged::new(flags, env, read)?;
    let config = Config {
        state_dir: merged.state_dir.unwrap_or_else(|| "/var/lib/shoal".into()),
        socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
        pin_dir: merged.pin_dir.unwrap_or_else(|| "/sys/fs/bpf/shoal".into()),
        cgroup_root: merged.cgroup_root,
        listen_addr: merged
            .listen_addr
            .unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 2377)),
        advertise_addr: merged.advertise_addr,
        data_path_addr: merged.data_path_addr,
        data_path_port: merged.data_path_port.unwrap_or(4789),
        uplink: merged.uplink,
        name: merged.name,
        xdp: merged.xdp.unwrap_or_default(),
        log_level: merged.log_level.unwrap_or_else(|| "info".to_owned()),
        log_format: merged.log_format.unwrap_or_default(),
    };
    let port = config.data_path_port;
    anyhow::ensure!(
        DATA_PATH_PORTS.contains(&port),
        "Datapath port number is not in valid range (1024-49151) : {port}"
    );
    Ok(config)
}

/// Reads the file that was named, or the default one where it exists.
fn read_file(named: Option<&Path>, env: &Environment<'_>) -> Result<File, ConfigError> {
    let named = match named {
        Some(path) => Some(path.to_owned()),
        None => env.read::<PathBuf>("SHOAL_CONFIG")?,
    };
    let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| ConfigError::File { message: one_line(&text, &error), path }),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Ok(File::default())
        }
        Err(source) => Err(ConfigError::Unreadable { path, source }),
    }
}

/// `line 3: unknown field ...`, without the excerpt that the parser would draw.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace("unknown field", "unknown key");
    match error.span() {
        Some(span) => {
            let line = text[..span.start].matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<OsString> {
        None
    }

    fn with_file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn error(text: &str) -> String {
        let (_dir, path) = with_file(text);
        let error = load(Flags::default(), None, Some(&path), &Environment(&nothing)).unwrap_err();
        error.to_string().replace(&path.display().to_string(), "FILE")
    }

    #[test]
    fn a_flag_beats_the_environment_and_that_beats_the_file() {
        let (_dir, path) = with_file("state_dir = '/f'\npin_dir = '/f'\nname = 'f'\nxdp = 'off'");
        let env = |name: &str| match name {
            "SHOAL_STATE_DIR" | "SHOAL_PIN_DIR" => Some(OsString::from("/e")),
            "SHOAL_NAME" => Some(OsString::new()),
            _ => None,
        };
        let flags = Flags { state_dir: Some("/a".into()), ..Flags::default() };
        let config = load(flags, None, Some(&path), &Environment(&env)).unwrap();
        assert_eq!(config.state_dir, Path::new("/a"));
        assert_eq!(config.pin_dir, Path::new("/e"));
        assert_eq!(config.name.as_deref(), Some("f"), "an empty variable is not set");
        assert_eq!(config.xdp, Xdp::Off);
        assert_eq!(config.listen_addr, "0.0.0.0:2377".parse().unwrap());
    }

    #[test]
    fn the_socket_follows_the_same_order() {
        let (_dir, path) = with_file("socket = '/f.sock'");
        let set = |name: &str| (name == "SHOAL_SOCKET").then(|| OsString::from("/e.sock"));
        let get = |flag: Option<&str>, env: &dyn Fn(&str) -> Option<OsString>| {
            socket(flag.map(PathBuf::from), Some(&path), &Environment(env)).unwrap()
        };
        assert_eq!(get(Some("/a.sock"), &set), Path::new("/a.sock"));
        assert_eq!(get(None, &set), Path::new("/e.sock"));
        assert_eq!(get(None, &nothing), Path::new("/f.sock"));
    }

    #[test]
    fn an_unknown_key_names_itself_and_the_file() {
        let message = error("name = 'n1'\nport = 80\n");
        assert!(
            message.starts_with("configuration file FILE: line 2: unknown key `port`"),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn a_value_that_does_not_parse_says_what_was_expected() {
        assert_eq!(
            error("advertise_addr = 'not an address'"),
            "configuration file FILE: line 1: expected an IP address or an interface name, \
             and maybe :PORT"
        );
        assert_eq!(
            error("data_path_port = 80"),
            "Datapath port number is not in valid range (1024-49151) : 80"
        );
        let env = |name: &str| (name == "SHOAL_XDP").then(|| OsString::from("maybe"));
        let error = load(Flags::default(), None, Some(&with_file("").1), &Environment(&env));
        assert!(error.is_err(), "the file is gone with its directory");
        let (_dir, path) = with_file("");
        let error = load(Flags::default(), None, Some(&path), &Environment(&env)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "environment variable SHOAL_XDP=\"maybe\": expected auto, native, generic or off"
        );
    }
}
