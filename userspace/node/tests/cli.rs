//! The command line from outside: exit codes and the sentences on stderr.
//!
//! Needs no daemon and no privilege; what needs a daemon is in `daemon.rs`.

use std::process::{Command, Output};

/// Runs `shoal` without any of this process's `SHOAL_*`.
fn shoal(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHOAL_") {
            command.env_remove(name);
        }
    }
    command.env("SHOAL_SOCKET", "/nonexistent/shoal.sock").args(arguments);
    command.output().expect("the binary was built for this test")
}

/// Checks the exit code and stderr; nothing may be on stdout.
fn check(arguments: &[&str], code: i32, stderr: &str) {
    let output = shoal(arguments);
    assert_eq!(String::from_utf8_lossy(&output.stderr), stderr, "{arguments:?}");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn a_daemon_that_is_not_running_is_named_with_its_socket() {
    let sentence = "Cannot connect to the Shoal daemon at unix:///nonexistent/shoal.sock. \
                    Is the shoal daemon running?\n";
    for arguments in [
        &["info"][..],
        &["init"],
        &["join", "--token", "SWMTKN-1-a-b", "10.0.0.1"],
        &["join-token", "worker"],
        &["leave"],
        &["unlock"],
        &["unlock-key", "--rotate"],
        &["ca"],
        &["ca", "--rotate"],
        &["update", "--autolock=true"],
        &["backup", "/nonexistent/folder/file"],
        &["node", "ls"],
        &["node", "promote", "n1"],
        &["node", "rm", "n1"],
        &["service", "ls"],
        &["service", "scale", "web=2"],
        &["service", "create", "--name", "web", "-p", "8080:80", "rootfs:/", "sleep", "-1"],
        &["task", "ls"],
        &["network", "ls"],
    ] {
        check(arguments, 1, sentence);
    }
}

#[test]
fn a_wrong_command_line_ends_with_125_and_where_to_read() {
    check(
        &["service", "create", "--nope", "rootfs:/"],
        125,
        "unknown flag: --nope\nSee 'shoal service create --help'.\n",
    );
    check(
        &["service", "create", "-p", "8080:http", "rootfs:/"],
        125,
        "invalid argument \"8080:http\" for \"--publish\": invalid target port 'http': \
         use a number from 1 to 65535\nSee 'shoal service create --help'.\n",
    );
    check(&["nope"], 125, "shoal: 'nope' is not a shoal command.\nSee 'shoal --help'.\n");
    check(
        &["service", "scale", "web"],
        125,
        "invalid scale specifier 'web': use SERVICE=REPLICAS\n",
    );
    check(
        &["init", "--advertise-addr", "a b"],
        125,
        "invalid argument \"a b\" for \"--advertise-addr\": expected an IP address or an interface \
         name, and maybe :PORT\nSee 'shoal init --help'.\n",
    );
    check(&["join", "--token", "t", ":1"], 125, "invalid manager address \":1\": use HOST:PORT\n");
    check(
        &["join", "10.0.0.1"],
        125,
        "invalid join token: give the one that `shoal join-token worker` prints on a manager with \
         --token\n",
    );
}

#[test]
fn a_wrong_word_about_the_cluster_is_told_without_a_daemon() {
    check(&["join-token", "king"], 125, "unknown role king\n");
    check(
        &["init", "--availability", "maybe"],
        125,
        "invalid argument \"maybe\" for \"--availability\": invalid availability \"maybe\", only \
         active, pause and drain are supported\nSee 'shoal init --help'.\n",
    );
    check(
        &["init", "--cert-expiry", "90d"],
        125,
        "invalid argument \"90d\" for \"--cert-expiry\": use a duration such as 500ms, 10s or \
         1m30s\nSee 'shoal init --help'.\n",
    );
    check(
        &["init", "--default-addr-pool", "10.0.0.0"],
        125,
        "invalid argument \"10.0.0.0\" for \"--default-addr-pool\": use a subnet such as \
         10.20.0.0/16\nSee 'shoal init --help'.\n",
    );
    check(
        &["init", "--ca-cert", "/dev/null"],
        125,
        "invalid argument \"/dev/null\" for \"--ca-cert\": file contents must be in PEM format\n\
         See 'shoal init --help'.\n",
    );
    check(
        &["ca", "--cert-expiry", "2h"],
        125,
        "`--cert-expiry` flag requires the `--rotate` flag to update the CA\n",
    );
    check(&["node", "ls", "-f", "bad=1"], 1, "Invalid filter 'bad'\n");
    check(&["node", "ls", "-f", "role=king"], 1, "Invalid role filter: 'king'\n");
    check(
        &["node", "update", "n1"],
        125,
        "\"shoal node update\" requires at least 1 flag.\nSee 'shoal node update --help'.\n",
    );
    check(
        &["node", "inspect", "--pretty", "-f", "{{.ID}}", "self"],
        125,
        "cannot supply extra formatting options to the pretty template\n",
    );
    check(
        &["node", "ls", "--format", "{{range .}}"],
        125,
        "invalid argument \"{{range .}}\" for \"--format\": template parsing error: {{range .}} is \
         not understood: use {{.Field}}, {{.Field.Field}} or {{json .Field}}\n\
         See 'shoal node ls --help'.\n",
    );
}

#[test]
fn a_backup_touches_no_file_that_exists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b");
    std::fs::write(&path, "old").unwrap();
    let file = path.to_str().unwrap();
    let expected = format!("{file} exists already: give another name, or --force to replace it\n");
    check(&["backup", file], 1, &expected);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    let missing = dir.path().join("no");
    let missing = missing.to_str().unwrap();
    let expected = format!("cannot read {missing}: No such file or directory (os error 2)\n");
    check(&["restore", missing], 1, &expected);
    let expected = format!("cannot read the key file {missing}: no such file\n");
    check(&["restore", "--key-file", missing, file], 1, &expected);
}

#[test]
fn a_wrong_spec_is_told_without_a_daemon() {
    check(
        &["service", "create", "--name", "web", "nginx"],
        1,
        "ContainerSpec: \"nginx\" is not an image that this release can run: use rootfs:/DIR\n",
    );
    check(
        &["service", "create", "--name", "a.b", "rootfs:/"],
        1,
        "name must be valid as a DNS name component\n",
    );
    check(
        &["service", "create", "-p", "80:1", "-p", "80:2", "rootfs:/"],
        1,
        "EndpointSpec: duplicate published ports provided\n",
    );
}

#[test]
fn help_version_and_completions_need_nothing() {
    for (arguments, expected) in [
        (&["--version"][..], "shoal 0.1.0\n"),
        (&["service", "create", "--help"], "Usage: shoal service create [OPTIONS] IMAGE"),
        (&["join", "--help"], "--token <TOKEN>"),
        (&["update", "--help"], "--autolock"),
        (&["completion", "bash"], "_shoal()"),
        (&["completion", "zsh"], "#compdef shoal"),
        (&["completion", "fish"], "complete -c shoal"),
    ] {
        let output = shoal(arguments);
        assert!(output.status.success(), "{arguments:?}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains(expected), "{arguments:?}: {stdout}");
    }
    let help = shoal(&["--help"]).stdout;
    assert!(!String::from_utf8_lossy(&help).contains("responder"), "hidden verbs stay hidden");
}

#[test]
fn a_configuration_file_that_was_named_must_be_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shoal.toml");
    let file = path.to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.env_remove("SHOAL_SOCKET").args(["--config", file, "service", "ls"]);
    let mut stderr = || String::from_utf8(command.output().unwrap().stderr).unwrap();
    let missing = stderr();
    let expected = format!(
        "cannot read the configuration file {file}: No such file or directory (os error 2)\n"
    );
    assert_eq!(missing, expected);
    std::fs::write(&path, "socket = '/s'\nsockets = 1\n").unwrap();
    let unknown = stderr();
    assert!(
        unknown.starts_with(&format!("configuration file {file}: line 2: unknown key `sockets`")),
        "{unknown}"
    );
    std::fs::write(&path, "socket = '/nonexistent/other.sock'\n").unwrap();
    assert!(stderr().contains("unix:///nonexistent/other.sock"));
}
