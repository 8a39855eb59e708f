//! `cargo xtask lab`: the lab library from the command line.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use shoal_tests::lab::{DEFAULT_PREFIX, Lab, registry};

use crate::shell::{need_root, root};
use crate::table::Table;
use crate::{build, setup};

/// Hosts on one switch.
#[derive(clap::Args)]
pub struct Args {
    /// Which lab, where several are up.
    #[arg(long, global = true, default_value = DEFAULT_PREFIX)]
    prefix: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the hosts, start their daemons and form one cluster, joined by tokens.
    Up {
        /// How many hosts run a daemon.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// How many of them are managers, the others are workers [default: all of up to 3 hosts, 3
        /// of up to 6, 5 of more].
        #[arg(long, conflicts_with = "bare")]
        managers: Option<usize>,
        /// Make only the hosts and their links.
        #[arg(long)]
        bare: bool,
    },
    /// Show hosts, links, daemons and nodes.
    Status,
    /// Run a command on a host; `shoal` and its socket are on its path.
    Exec {
        /// `n1`, `n2`, … or `client`.
        host: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Take a host's link away.
    Cut {
        /// `n1`, `n2`, … or `client`.
        host: String,
    },
    /// Bring a host's link back.
    Heal {
        /// `n1`, `n2`, … or `client`.
        host: String,
    },
    /// Kill a host's daemon; its tasks live on.
    Kill {
        /// Kill the whole host instead: its link goes, and every process on it.
        #[arg(long)]
        host: bool,
        /// `n1`, `n2`, …
        #[arg(value_name = "HOST")]
        name: String,
    },
    /// Start a host's daemon again.
    Start {
        /// `n1`, `n2`, …
        host: String,
    },
    /// Take the lab away, and those that crashed runs left behind.
    Down {
        /// Only those that crashed runs left behind.
        #[arg(long)]
        orphans: bool,
    },
}

/// Runs one verb.
pub fn run(args: Args) -> Result<ExitCode> {
    let open = || Lab::open(&root(), &args.prefix).map(|lab| lab.with_binary(binary()));
    match args.verb {
        Verb::Up { nodes, bare: true, .. } => bare(&args.prefix, nodes)?,
        Verb::Up { nodes, managers, bare: false } => {
            up(&args.prefix, nodes, managers.unwrap_or_else(|| managers_of(nodes)))?;
        }
        Verb::Status => print!("{}", status(&open()?)),
        Verb::Exec { host, command } => return exec(&open()?, &host, &command),
        Verb::Cut { host } => open()?.cut(&host)?,
        Verb::Heal { host } => open()?.heal(&host)?,
        Verb::Kill { host: true, name } => open()?.kill_host(&name)?,
        Verb::Kill { host: false, name } => open()?.kill(&name)?,
        Verb::Start { host } => open()?.start(&host)?,
        Verb::Down { orphans: true } => down_orphans()?,
        Verb::Down { orphans: false } => {
            Lab::new(&root(), &args.prefix, 1)?.down()?;
            down_orphans()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes away the labs of this workspace whose owner is gone; the user's own lab stays.
pub fn down_orphans() -> Result<()> {
    for lab in registry::orphans(&root())? {
        eprintln!("lab: taking away {}, left behind by a run that ended early", lab.prefix());
        lab.down()?;
    }
    Ok(())
}

fn binary() -> std::path::PathBuf {
    build::target().join("debug/shoal")
}

/// How many managers a lab has unless told otherwise: an odd number, since one more would bear no
/// more losses, and few, since each of them stores every write.
fn managers_of(nodes: usize) -> usize {
    match nodes {
        0..=3 => nodes,
        4..=6 => 3,
        _ => 5,
    }
}

fn bare(prefix: &str, nodes: usize) -> Result<()> {
    need_root("a lab")?;
    setup::for_lab()?;
    let lab = Lab::new(&root(), prefix, nodes)?;
    lab.up()?;
    print!("{}", status(&lab));
    Ok(())
}

fn up(prefix: &str, nodes: usize, managers: usize) -> Result<()> {
    need_root("a lab")?;
    // Said before anything is built or made.
    ensure!(
        (1..=nodes).contains(&managers),
        "{managers} of {nodes} hosts cannot be managers: give --managers from 1 to {nodes}"
    );
    setup::for_lab()?;
    let lab = Lab::new(&root(), prefix, nodes)?.with_binary(build::shoal(false)?);
    lab.up()?;
    lab.form_with(managers, nodes - managers)
        .context("the hosts are up and stay so: `cargo xtask lab down` removes them")?;
    print!("{}", status(&lab));
    Ok(())
}

fn status(lab: &Lab) -> String {
    let mut nodes = Vec::new();
    for host in lab.nodes() {
        if lab.daemon_pid(&host).is_some()
            && let Ok(listed) = lab.shoal_json(&host, &["node", "ls", "--format", "json"])
        {
            nodes = listed;
            break;
        }
    }
    let mut table =
        Table::new(&["HOST", "ADDRESSES", "LINK", "DAEMON", "NODE", "MANAGER", "TASKS"]);
    let tasks = lab.tasks();
    for host in lab.hosts() {
        let [v4, v6] = lab.addrs(&host);
        let link = match lab.is_linked(&host) {
            Ok(true) => "up",
            Ok(false) => "cut",
            Err(_) => "gone",
        };
        let daemon = lab.daemon_pid(&host).map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let node = nodes.iter().find(|node| node["Hostname"] == host.as_str());
        let field = |name: &str| {
            let value = node.and_then(|node| node[name].as_str()).unwrap_or_default();
            if value.is_empty() { "-".to_owned() } else { value.to_owned() }
        };
        let own: Vec<&str> =
            tasks.iter().filter(|task| task.host == host).map(|task| &*task.name).collect();
        table.row(vec![
            host.clone(),
            format!("{v4} {v6}"),
            link.to_owned(),
            daemon,
            field("Status"),
            field("ManagerStatus"),
            if own.is_empty() { "-".to_owned() } else { own.join(" ") },
        ]);
    }
    table.render()
}

fn exec(lab: &Lab, host: &str, command: &[String]) -> Result<ExitCode> {
    lab.check_host(host)?;
    let (program, args) = command.split_first().context("a command is missing")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let folder = lab.binary().parent().context("the binary lies in a folder")?;
    let mut child = Command::new(program);
    child.args(args).env("PATH", format!("{}:{path}", folder.display()));
    child.env("SHOAL_SOCKET", lab.socket(host));
    let status = lab.inside(host, || child.status())?;
    let status = status.with_context(|| format!("cannot run {program} on {host}"))?;
    ensure!(status.code().is_some(), "{program}: {status}");
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::managers_of;

    #[test]
    fn a_lab_of_many_hosts_has_few_managers() {
        let managers = [1, 2, 3, 4, 5, 6, 7, 64].map(managers_of);
        assert_eq!(managers, [1, 2, 3, 3, 3, 3, 5, 5]);
    }
}
