//! What end-to-end tests do again and again: a cluster, a service, questions from the client.
//!
//! Helpers panic, as assertions do, and print the daemons' logs first.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::lab::asker::TIMEOUT;
use crate::lab::http::{self, Answer};
use crate::lab::{CLIENT, Lab};
use crate::{root, unique};

/// A running cluster; it ends with this value, after a look at every checksum counter.
pub struct Cluster {
    /// Its hosts.
    pub lab: Lab,
}

impl Cluster {
    /// Brings up `nodes` hosts with their daemons as one cluster of managers.
    ///
    /// # Panics
    /// There is no `shoal` binary, or the cluster does not form.
    pub fn up(letter: &str, nodes: usize) -> Self {
        Self::up_with(letter, nodes, 0)
    }

    /// Brings up hosts as one cluster, managers first.
    ///
    /// # Panics
    /// There is no `shoal` binary, or the cluster does not form.
    pub fn up_with(letter: &str, managers: usize, workers: usize) -> Self {
        let cluster = Self::hosts(letter, managers + workers);
        cluster.must(cluster.lab.form_with(managers, workers));
        cluster
    }

    /// Makes hosts without starting anything on them.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn hosts(letter: &str, nodes: usize) -> Self {
        let binary = std::env::var_os("SHOAL_BINARY")
            .map_or_else(|| root().join("target/debug/shoal"), PathBuf::from);
        let lab = Lab::owned(&root(), &unique(letter), nodes).expect("root can make a lab");
        Self { lab: lab.with_binary(binary) }
    }

    /// Runs `shoal` against the daemon of `n1` and gives what it printed.
    ///
    /// # Panics
    /// The command fails.
    pub fn shoal(&self, args: &[&str]) -> String {
        self.must(self.lab.shoal("n1", args))
    }

    /// Creates a service of responders and waits until it converged.
    ///
    /// # Panics
    /// It cannot be created.
    pub fn create(&self, name: &str, replicas: usize, publish: &str, responder: &[&str]) {
        let (image, binary) = self.must(self.lab.image());
        let replicas = replicas.to_string();
        let create = ["service", "create", "--name", name, "--replicas", &replicas, "-p", publish];
        let task = [&image, &binary, "responder", "--port", "80"];
        self.shoal(&[create.as_slice(), &task, responder].concat());
    }

    /// Asks a host's port from the client `times` times, each on a new connection.
    pub fn ask(&self, host: &str, port: u16, times: usize) -> Vec<Result<Answer>> {
        let addr = SocketAddr::new(self.lab.addr(host).into(), port);
        let asked = self
            .lab
            .inside(CLIENT, || (0..times).map(|_| http::ask(addr, TIMEOUT)).collect::<Vec<_>>());
        self.must(asked)
    }

    /// The tasks that answer `times` requests to a host's port, all of which must be answered.
    ///
    /// # Panics
    /// A request fails, or a task sees another client than the client.
    pub fn answering(&self, host: &str, port: u16, times: usize) -> BTreeSet<String> {
        let answers = self.ask(host, port, times).into_iter().map(|answer| {
            let answer = self.must(answer);
            assert_eq!(answer.client.ip(), crate::lab::CLIENT_ADDR, "through {host}");
            answer.task
        });
        answers.collect()
    }

    /// Polls until `condition` holds.
    ///
    /// # Panics
    /// The deadline passes.
    pub fn wait<T>(&self, what: &str, seconds: u64, condition: impl FnMut() -> Result<T>) -> T {
        self.must(crate::lab::wait_for(what, Duration::from_secs(seconds), condition))
    }

    /// Takes the value, or prints the daemons' logs and panics.
    ///
    /// # Panics
    /// There is no value.
    pub fn must<T>(&self, outcome: Result<T>) -> T {
        outcome.unwrap_or_else(|error| {
            for host in self.lab.nodes() {
                eprintln!("{}", self.lab.log_tail(&host));
            }
            panic!("{error:#}");
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.must(self.lab.check_checksums());
        }
    }
}
