//! The lab itself: hosts reach each other, cables can be pulled, and nothing stays behind.
//!
//! Needs root; without it every test here says that it is skipped.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use shoal_tests::lab::{CLIENT, Lab, daemon, registry, wait_for};
use shoal_tests::{needs_root, root, unique};

/// Sends a line from one host to another and gives the address that the receiver saw.
fn line_across(lab: &Lab, from: &str, to: IpAddr, listener_on: &str) -> Result<IpAddr> {
    let listener = lab.inside(listener_on, || TcpListener::bind((to, 0)))??;
    let addr = SocketAddr::new(to, listener.local_addr()?.port());
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            lab.inside(from, || -> Result<()> {
                let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
                stream.write_all(b"hello\n")?;
                Ok(())
            })?
        });
        let sent = sent.join().expect("the sender does not panic");
        sent?;
        let (mut stream, peer) = listener.accept()?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text == "hello\n", "received {text:?}");
        Ok(peer.ip())
    })
}

#[test]
fn hosts_and_client_reach_each_other_by_both_families() {
    needs_root!();
    let lab = Lab::owned(&root(), &unique("a"), 2).unwrap();
    for (from, to) in [(CLIENT, "n1"), ("n1", "n2"), ("n2", CLIENT)] {
        for (source, target) in lab.addrs(from).into_iter().zip(lab.addrs(to)) {
            assert_eq!(line_across(&lab, from, target, to).unwrap(), source, "{from} to {to}");
        }
    }
    lab.check_checksums().unwrap();
}

#[test]
fn a_cut_host_is_unreachable_until_its_link_heals() {
    needs_root!();
    let lab = Lab::owned(&root(), &unique("b"), 2).unwrap();
    let to = lab.addr("n2").into();
    assert!(lab.is_linked("n2").unwrap());
    lab.cut("n2").unwrap();
    assert!(!lab.is_linked("n2").unwrap());
    line_across(&lab, CLIENT, to, "n2").unwrap_err();
    line_across(&lab, CLIENT, lab.addr("n1").into(), "n1").unwrap();
    lab.heal("n2").unwrap();
    wait_for("the link to heal", Duration::from_secs(5), || line_across(&lab, CLIENT, to, "n2"))
        .unwrap();
}

/// Everything on this machine that carries a prefix.
fn traces(lab: &Lab) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["/run/netns".into(), daemon::cgroup_mount().unwrap_or_default()] {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", lab.prefix())) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let dir = lab.dir().display().to_string();
    found.extend(mounts.lines().filter(|line| line.contains(&dir)).map(str::to_owned));
    if lab.dir().exists() {
        found.push(dir);
    }
    let registered = Path::new("/run/shoal-lab").join(lab.prefix());
    if registered.exists() {
        found.push(registered.display().to_string());
    }
    found
}

#[test]
fn down_takes_everything_away_also_processes_that_left_their_session() {
    needs_root!();
    let lab = Lab::new(&root(), &unique("d"), 2).unwrap();
    lab.up().unwrap();
    let mut command = Command::new("setsid");
    command.args(["sleep", "1000"]);
    let mut sleeper = lab.inside("n1", || command.spawn()).unwrap().unwrap();
    assert!(!traces(&lab).is_empty());
    assert!(lab.up().unwrap_err().to_string().contains("is up already"));
    lab.down().unwrap();
    assert_eq!(traces(&lab), Vec::<String>::new());
    assert!(!sleeper.wait().unwrap().success(), "it was killed");
    lab.down().unwrap();
}

#[test]
fn a_half_made_lab_is_taken_away_by_the_next_of_its_name() {
    needs_root!();
    let prefix = unique("e");
    let half = Lab::new(&root(), &prefix, 1).unwrap();
    // What a crash between two steps would leave: a namespace, a cgroup and a folder.
    let status = Command::new("ip").args(["netns", "add", &half.netns_name("n7")]).status();
    assert!(status.unwrap().success());
    if let Some(cgroup) = half.cgroup("n7") {
        std::fs::create_dir_all(cgroup.join("a/b")).unwrap();
    }
    std::fs::create_dir_all(half.host_dir("n7")).unwrap();
    let lab = Lab::owned(&root(), &prefix, 1).unwrap();
    assert!(!lab.netns("n7").exists());
    drop(lab);
    assert_eq!(traces(&half), Vec::<String>::new());
}

#[test]
fn an_owned_lab_is_refused_to_others_and_no_orphan() {
    needs_root!();
    let prefix = unique("f");
    let lab = Lab::owned(&root(), &prefix, 1).unwrap();
    let text = Lab::claim(&root(), &prefix, 1).unwrap_err().to_string();
    assert!(text.contains("in use by another process"), "{text}");
    let orphans = registry::orphans(&root()).unwrap();
    assert!(orphans.iter().all(|orphan| orphan.prefix() != prefix));
    drop(lab);
}
