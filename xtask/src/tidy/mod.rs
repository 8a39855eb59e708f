//! Checks what the compiler does not: the rules of the design that would otherwise rot.
//!
//! * [`imports`]: crates import only downward, by one table.
//! * [`source`]: every file has a header and a bearable size; what decides never acts.
//! * [`abi`]: whoever changes what kernel and user share also changes its version.
//! * [`promises`]: every line of the specification names a test that exists.
//!
//! Each check is a function from text to problems, and each has a test that it can fail.

mod abi;
mod imports;
mod promises;
mod source;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::shell::root;

/// What to do beside checking.
#[derive(clap::Args)]
pub struct Args {
    /// Record the ABI's hash for its new version.
    #[arg(long)]
    bless_abi: bool,
}

/// A file of the workspace, read once.
struct File {
    /// Path from the workspace's root.
    path: String,
    text: String,
}

/// Checks the workspace and prints every problem.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.bless_abi {
        abi::bless(&root())?;
    }
    let problems = problems(&root())?;
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} problems", problems.len());
    Ok(ExitCode::FAILURE)
}

fn problems(root: &Path) -> Result<Vec<String>> {
    let files = files(root)?;
    let mut problems = Vec::new();
    for file in &files {
        problems.extend(source::machine_paths(file, root));
        if file.path.ends_with("Cargo.toml") {
            problems.extend(imports::check(file));
        }
        if file.path.ends_with(".rs") {
            problems.extend(source::check(file));
        }
    }
    problems.extend(abi::check(root)?);
    problems.extend(promises::check(&files));
    Ok(problems)
}

/// Every text file that is tracked or could be: what git ignores is left out.
fn files(root: &Path) -> Result<Vec<File>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().context("cannot run git")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files = Vec::new();
    for path in names.split('\0').filter(|name| !name.is_empty()) {
        // A file may be deleted but still tracked, or not be text: neither is of interest.
        if let Ok(text) = std::fs::read_to_string(root.join(path)) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let problems = problems(&root()).unwrap();
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn this_file_is_among_those_checked() {
        let files = files(&root()).unwrap();
        assert!(files.iter().any(|file| file.path == "xtask/src/tidy/mod.rs"));
    }
}
