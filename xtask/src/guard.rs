//! Runs a chore so that it always cleans up: after success, failure, panic, Ctrl-C or SIGTERM.
//!
//! The chore runs in a child, this process waits. A signal ends the child, and only then does the
//! lab go: nobody makes anything while it is taken away. Should this process be killed, the child
//! dies with it, and the next run or `lab down` finds what is left.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use shoal_tests::lab::Lab;

use crate::shell::root;

/// Set in the child, so that it does the work instead of guarding it.
const INNER: &str = "SHOAL_XTASK_GUARDED";

/// Runs this very command line again as a guarded child, or `work` if this is that child.
pub fn guarded(prefix: &str, work: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    if std::env::var_os(INNER).is_some() {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        return work();
    }
    // Refuses a lab that another process uses; takes away what a killed one left.
    drop(Lab::claim(&root(), prefix, 1)?);
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // Blocked from here on, so that none can arrive between the check and the wait. The child
    // does not inherit this: the standard library gives it an empty mask.
    signals.thread_block()?;
    let own = std::env::current_exe().context("cannot find this program")?;
    let child = Command::new(own)
        .args(std::env::args_os().skip(1))
        .env(INNER, "1")
        .spawn()
        .context("cannot start the guarded child")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let code = wait(pid, &signals)?;
    Lab::claim(&root(), prefix, 1)?.down().context("cannot take the lab away")?;
    Ok(code)
}

fn wait(pid: Pid, signals: &SigSet) -> Result<ExitCode> {
    loop {
        let signal = signals.wait()?;
        if signal != Signal::SIGCHLD {
            eprintln!("\n{signal}: taking everything away");
            kill(pid, Signal::SIGKILL)?;
            waitpid(pid, None)?;
            return Ok(ExitCode::from(130));
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            WaitStatus::Signaled(_, signal, _) => {
                eprintln!("error: ended by {signal}");
                return Ok(ExitCode::FAILURE);
            }
            _ => {}
        }
    }
}
