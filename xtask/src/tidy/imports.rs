//! Imports only go down: which crate of the workspace may use which.
//!
//! Dependencies of tests are free; those of build scripts count like any other.

use super::File;

/// Each crate and the crates of the workspace it may use. A crate that is not here is a problem:
/// whoever adds one decides where it stands.
const TABLE: [(&str, &[&str]); 16] = [
    ("shoal-datapath", &[]),
    ("shoal-programs", &["shoal-datapath"]),
    ("shoal-api", &[]),
    ("shoal-control", &["shoal-api"]),
    ("shoal-identity", &["shoal-api"]),
    ("shoal-routing", &["shoal-api", "shoal-datapath"]),
    ("shoal-dataplane", &["shoal-routing", "shoal-datapath"]),
    ("shoal-transport", &["shoal-identity", "shoal-api"]),
    ("shoal-manager", &["shoal-control", "shoal-transport", "shoal-identity", "shoal-api"]),
    ("shoal-agent", &["shoal-routing", "shoal-transport", "shoal-identity", "shoal-api"]),
    ("shoal-engine-api", &["shoal-api"]),
    (
        "shoal-node",
        &[
            "shoal-manager",
            "shoal-agent",
            "shoal-dataplane",
            "shoal-engine-api",
            "shoal-transport",
            "shoal-identity",
            "shoal-api",
        ],
    ),
    // The simulated cluster is the real control plane under simulated managers.
    ("shoal-tests", &["shoal-datapath", "shoal-control", "shoal-api"]),
    ("shoal-fuzz", &["shoal-manager", "shoal-identity", "shoal-api"]),
    ("shoal-fuzz-programs", &["shoal-fuzz"]),
    ("xtask", &["shoal-tests"]),
];

/// Problems of one manifest.
pub(super) fn check(file: &File) -> Vec<String> {
    let Some(name) = package_name(&file.text) else { return Vec::new() };
    let Some((_, allowed)) = TABLE.iter().find(|(package, _)| *package == name) else {
        return vec![format!(
            "{}: {name} has no line in the table of imports (xtask/src/tidy/imports.rs)",
            file.path
        )];
    };
    used(&file.text)
        .filter(|package| !allowed.contains(package))
        .map(|package| format!("{}: {name} must not use {package}: imports go down", file.path))
        .collect()
}

fn package_name(manifest: &str) -> Option<&str> {
    let package = manifest.split_once("[package]")?.1;
    let line = package.lines().find(|line| line.starts_with("name"))?;
    line.split('"').nth(1)
}

/// The workspace's crates among the dependencies.
fn used(manifest: &str) -> impl Iterator<Item = &str> {
    let mut counts = false;
    manifest.lines().filter_map(move |line| {
        if line.starts_with('[') {
            counts = line.contains("dependencies") && !line.contains("dev-dependencies");
        }
        let name = line.split(['.', ' ', '=']).next()?;
        (counts && name.starts_with("shoal-")).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> File {
        File { path: "x/Cargo.toml".into(), text: text.into() }
    }

    #[test]
    fn an_import_upward_is_a_problem() {
        let up =
            "[package]\nname = \"shoal-api\"\n[dependencies]\nshoal-control.workspace = true\n";
        assert_eq!(
            check(&manifest(up)),
            ["x/Cargo.toml: shoal-api must not use shoal-control: imports go down"]
        );
    }

    #[test]
    fn an_import_downward_or_for_tests_is_none() {
        let down = "[package]\nname = \"shoal-control\"\n[dependencies]\nshoal-api = { path = \"\" }\n\
                    [dev-dependencies]\nshoal-manager.workspace = true\n";
        assert!(check(&manifest(down)).is_empty());
    }

    #[test]
    fn a_crate_without_a_place_is_a_problem() {
        assert_eq!(check(&manifest("[package]\nname = \"shoal-more\"\n")).len(), 1);
    }

    #[test]
    fn a_workspace_manifest_has_no_package_and_no_problem() {
        assert!(check(&manifest("[workspace]\nmembers = []\n")).is_empty());
    }
}
