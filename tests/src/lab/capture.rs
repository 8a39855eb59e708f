//! Listens on the lab's switch with `tcpdump`, to see what a stranger on the wire would see.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Lab, SWITCH, wait_for};

/// A capture that is under way; dropped, it ends.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

impl Lab {
    /// Captures what matches the filter on every port of the switch.
    ///
    /// # Errors
    /// There is no `tcpdump`, or it does not begin.
    pub fn capture(&self, filter: &str) -> Result<Capture> {
        let file = self.dir().join("capture.pcap");
        let notes = self.dir().join("capture.log");
        let stderr = fs::File::create(&notes)?;
        let mut command = Command::new("tcpdump");
        // Every packet passes the bridge once; -U writes each at once, -Z keeps root's file access.
        command.args(["-i", "br0", "-p", "-U", "-s", "0", "-Z", "root", "-w"]).arg(&file);
        command.args(filter.split(' ')).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        // The bridge hands packets to listeners only while it may hear those for others.
        self.run(SWITCH, &["ip", "link", "set", "br0", "promisc", "on"])?;
        let tcpdump = self
            .inside(SWITCH, || command.spawn())?
            .context("cannot run tcpdump: `cargo xtask setup` installs it")?;
        let capture = Capture { tcpdump, file };
        wait_for("tcpdump to listen", Duration::from_secs(10), || {
            let text = fs::read_to_string(&notes)?;
            ensure!(text.contains("listening on"), "it says: {text}");
            Ok(())
        })?;
        Ok(capture)
    }
}

impl Capture {
    /// Ends it and gives the captured bytes, with the file's own headers.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.end();
        fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))
    }

    fn end(&mut self) {
        // SIGINT lets it write what it has.
        if let Ok(pid) = i32::try_from(self.tcpdump.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.tcpdump.wait();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if matches!(self.tcpdump.try_wait(), Ok(None)) {
            self.end();
        }
    }
}
