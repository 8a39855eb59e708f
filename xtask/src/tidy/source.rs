//! Rules for single source files: header, size, test names, and what the deciding crates may do.

use std::path::Path;

use super::File;

/// Over this a file is a problem; half of it is the aim.
const LINES_MAX: usize = 800;

/// Crates that decide and never act.
const PURE: [&str; 2] = ["mesh/", "ebpf/datapath/"];

/// What a crate that decides must not reach for: time, randomness, threads, files, the network.
const BANNED: [&str; 14] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "std::net::Tcp",
    "std::net::Udp",
    "tokio::",
    "rand::",
    "getrandom::",
    "std::hash::RandomState",
];

/// Folders whose name says nothing about one person's machine.
const COMMON: [&str; 8] = ["/", "/tmp", "/usr", "/usr/src", "/opt", "/srv", "/var/tmp", "/root"];

/// Problems of one source file.
pub(super) fn check(file: &File) -> Vec<String> {
    let mut problems = Vec::new();
    if !has_header(&file.text) {
        let path = &file.path;
        problems.push(format!("{path}: no header: begin with `//!` and what the file does"));
    }
    let lines = file.text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("{}: {lines} lines, over {LINES_MAX}: cut it in two", file.path));
    }
    problems.extend(banned(file));
    problems.extend(tests(file));
    problems
}

fn has_header(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    first
        .strip_prefix("//! ")
        .is_some_and(|words| words.len() > 15 && !words.contains("Placeholder"))
}

/// What a crate that decides reaches for in spite of the rule; its tests may.
fn banned(file: &File) -> Vec<String> {
    let pure = PURE.iter().any(|folder| file.path.starts_with(folder));
    let of_tests = file.path.contains("/tests/") || file.path.ends_with("/tests.rs");
    if !pure || of_tests || file.path.ends_with("build.rs") {
        return Vec::new();
    }
    // Tests stand last in a file.
    let code = file.text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut problems = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for word in BANNED.iter().filter(|word| contains_path(line, word)) {
            problems.push(format!(
                "{}:{}: {word} in a crate that decides: pass it in as an argument",
                file.path,
                number + 1
            ));
        }
    }
    problems
}

/// Whether a line has the path, not as the tail of a longer name.
fn contains_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            || path.starts_with("Instant")
            || path.starts_with("SystemTime")
    })
}

fn tests(file: &File) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        let place = format!("{}:{}", file.path, number + 1);
        if line.starts_with("fn test_") || line.starts_with("async fn test_") {
            problems.push(format!("{place}: a test's name is a fact, without `test_`"));
        }
        if line.starts_with("#[ignore") || line.starts_with("#[should_panic") {
            problems.push(format!("{place}: no {line}: a test runs, and asserts what it means"));
        }
    }
    problems
}

/// Paths of the machine that the file was written on.
pub(super) fn machine_paths(file: &File, root: &Path) -> Vec<String> {
    let mut needles = vec![format!("/{}/", "home")];
    for folder in [Some(root), root.parent()].into_iter().flatten() {
        let folder = folder.display().to_string();
        if !COMMON.contains(&folder.as_str()) {
            needles.push(format!("{folder}/"));
        }
    }
    let mut problems = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        if let Some(needle) = needles.iter().find(|needle| line.contains(needle.as_str())) {
            problems.push(format!("{}:{}: a path of one machine: {needle}", file.path, number + 1));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "//! Says what the file does.\n";

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: format!("{HEADER}{text}") }
    }

    #[test]
    fn a_file_without_header_is_a_problem() {
        for text in ["fn main() {}\n", "//! Placeholder for later on.\n", "//! x\n", ""] {
            let file = File { path: "a.rs".into(), text: text.into() };
            assert_eq!(check(&file).len(), 1, "{text:?}");
        }
        assert!(check(&file("a.rs", "")).is_empty());
    }

    #[test]
    fn a_long_file_is_a_problem() {
        assert!(check(&file("a.rs", &"\n".repeat(799))).is_empty());
        assert_eq!(check(&file("a.rs", &"\n".repeat(800))).len(), 1);
    }

    #[test]
    fn a_clock_below_userspace_is_a_problem() {
        for line in [
            "use std::time::Instant;",
            "let now = time::Instant::now();",
            "use std::fs::File;",
            "tokio::spawn(work);",
            "let dice = rand::random();",
        ] {
            assert!(!check(&file("mesh/control/src/a.rs", line)).is_empty(), "{line}");
            assert!(!check(&file("ebpf/datapath/src/a.rs", line)).is_empty(), "{line}");
            assert!(check(&file("userspace/agent/src/a.rs", line)).is_empty(), "{line}");
        }
    }

    #[test]
    fn comments_tests_and_longer_names_may_name_a_clock() {
        for text in [
            "// Instant::now() would be wrong here.",
            "#[cfg(test)]\nuse std::time::Instant;",
            "use crate::operand::Value;",
            "use std::time::Duration;",
        ] {
            assert!(check(&file("mesh/control/src/a.rs", text)).is_empty(), "{text}");
        }
        assert!(check(&file("mesh/routing/tests/a.rs", "use std::fs::File;")).is_empty());
    }

    #[test]
    fn ignored_tests_and_bad_names_are_problems() {
        assert_eq!(check(&file("a.rs", "#[ignore]\nfn a() {}")).len(), 1);
        assert_eq!(check(&file("a.rs", "#[should_panic]\nfn a() {}")).len(), 1);
        assert_eq!(check(&file("a.rs", "    fn test_a() {}")).len(), 1);
    }

    #[test]
    fn a_path_of_this_machine_is_a_problem() {
        let root = Path::new("/builds/shoal");
        assert_eq!(machine_paths(&file("a.md", "see /builds/shoal/x"), root).len(), 1);
        assert_eq!(machine_paths(&file("a.md", "see /builds/notes"), root).len(), 1);
        assert_eq!(machine_paths(&file("a.md", "see /etc/passwd"), root).len(), 0);
        assert_eq!(machine_paths(&file("a.md", "see /tmp/x"), Path::new("/tmp/shoal")).len(), 0);
    }
}
