//! Keys that people type or keep: read without echo, shown once.

use std::io::{BufRead, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::Context as _;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// How a manager is unlocked, as Docker tells it.
pub fn unlock_text(key: &str) -> String {
    format!(
        "To unlock a swarm manager after it restarts, run the `shoal unlock`\n\
         command and provide the following key:\n\n    {key}\n\n\
         Remember to store this key in a password manager, since without it you\n\
         will not be able to restart the manager.\n"
    )
}

/// How a backup is read again.
pub fn backup_text(key: &str) -> String {
    format!(
        "To restore from this backup, run the `shoal restore` command and provide\n\
         the following key:\n\n    {key}\n\n\
         Remember to store this key in a password manager, since without it the\n\
         backup cannot be read.\n"
    )
}

/// Reads one line from stdin: behind a prompt and without echo where it is a terminal.
///
/// # Errors
/// Stdin cannot be read, is no text, or the user gave up.
pub fn read(prompt: &str) -> anyhow::Result<String> {
    // Longer than any key: what is piped in by mistake is not read to its end.
    const BYTES_MAX: u64 = 4096;
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let mut line = String::new();
        stdin.lock().take(BYTES_MAX).read_line(&mut line).context("cannot read the key")?;
        return Ok(line.trim().to_owned());
    }
    eprint!("{prompt}");
    std::io::stderr().flush().context("cannot write the prompt")?;
    let line = silently(stdin.as_fd(), stdin.lock());
    eprintln!();
    Ok(line?.context("no key was given")?.trim().to_owned())
}

/// What was typed at a terminal, which does not show it.
fn silently(terminal: BorrowedFd<'_>, keys: impl BufRead) -> anyhow::Result<Option<String>> {
    let _silent = Silent::new(terminal)?;
    typed(keys.bytes()).context("cannot read the key")
}

/// What was typed until the end of the line; `None` when the user interrupted.
///
/// The terminal hands over each byte, so that an interrupt does not leave it without echo.
fn typed(bytes: impl Iterator<Item = std::io::Result<u8>>) -> std::io::Result<Option<String>> {
    const INTERRUPT: u8 = 3;
    const END_OF_TEXT: u8 = 4;
    const BACKSPACE: [u8; 2] = [8, 127];
    let mut line = Vec::new();
    for byte in bytes {
        match byte? {
            INTERRUPT => return Ok(None),
            END_OF_TEXT | b'\n' | b'\r' => break,
            byte if BACKSPACE.contains(&byte) => drop(line.pop()),
            byte => line.push(byte),
        }
    }
    let line = String::from_utf8(line);
    line.map(Some).map_err(|_| std::io::Error::other("it is not UTF-8"))
}

/// A terminal without echo for as long as this lives.
struct Silent<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: BorrowedFd<'a>) -> anyhow::Result<Self> {
        let before = tcgetattr(terminal).context("cannot ask the terminal")?;
        let mut silent = before.clone();
        silent.local_flags -= LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG;
        // Waits for the prompt and keeps what was pasted before it.
        tcsetattr(terminal, SetArg::TCSADRAIN, &silent).context("cannot turn echo off")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(self.terminal, SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_typed_key_ends_with_its_line_and_can_be_corrected() {
        let check = |keys: &[u8], expected: Option<&str>| {
            let got = typed(keys.iter().map(|&key| Ok(key))).unwrap();
            assert_eq!(got.as_deref(), expected, "{keys:?}");
        };
        check(b"SWMKEY-1-a\nrest", Some("SWMKEY-1-a"));
        check(b"ab\x7fc\r", Some("ac"));
        check(b"\x7f\x08x\x04y", Some("x"));
        check(b"abc\x03\n", None);
        check(b"", Some(""));
        assert!(typed([Ok(0xff), Ok(b'\n')].into_iter()).is_err());
    }

    #[test]
    fn a_terminal_shows_nothing_of_the_key_and_echoes_again_afterwards() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let (mut master, slave) = (std::fs::File::from(pair.master), pair.slave);
        let flags = || tcgetattr(&slave).unwrap().local_flags;
        let before = flags();
        assert!(before.contains(LocalFlags::ECHO | LocalFlags::ICANON));
        let keys = std::fs::File::from(slave.try_clone().unwrap());
        let line = std::thread::scope(|scope| {
            let read = scope.spawn(|| silently(slave.as_fd(), BufReader::new(keys)));
            // Typed once the terminal is silent, or it would have been shown before.
            let started = Instant::now();
            while flags().contains(LocalFlags::ECHO) {
                assert!(started.elapsed() < Duration::from_secs(5), "it never went silent");
                std::thread::yield_now();
            }
            master.write_all(b"SWMKEY-1-secret\r").unwrap();
            read.join().unwrap().unwrap()
        });
        assert_eq!(line.as_deref(), Some("SWMKEY-1-secret"));
        assert_eq!(flags(), before);
        // What the terminal would show: only what is written to it now.
        std::fs::File::from(slave.try_clone().unwrap()).write_all(b"after\n").unwrap();
        let mut shown = [0; 64];
        let length = master.read(&mut shown).unwrap();
        assert_eq!(&shown[..length], b"after\r\n");
    }

    #[test]
    fn the_unlock_key_is_shown_in_dockers_words() {
        assert_eq!(
            unlock_text("unlock-key"),
            "To unlock a swarm manager after it restarts, run the `shoal unlock`\n\
             command and provide the following key:\n\n    unlock-key\n\n\
             Remember to store this key in a password manager, since without it you\n\
             will not be able to restart the manager.\n"
        );
    }
}
