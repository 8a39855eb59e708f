//! `shoal node inspect --pretty`: one node for people, laid out as Docker lays it out.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::human::{bytes, capitalized};

/// The text of a node's document.
pub(super) fn text(node: &Value) -> String {
    let mut text = String::new();
    write(&mut text, node).expect("a string takes all that is written");
    text
}

fn write(out: &mut String, node: &Value) -> std::fmt::Result {
    let word = |path: &str| {
        let value = node.pointer(path);
        value.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let number = |path: &str| node.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    writeln!(out, "ID:\t\t\t{}", word("/ID"))?;
    if !word("/Spec/Name").is_empty() {
        writeln!(out, "Name:\t\t\t{}", word("/Spec/Name"))?;
    }
    if let Some(Value::Object(labels)) = node.pointer("/Spec/Labels")
        && !labels.is_empty()
    {
        writeln!(out, "Labels:")?;
        for (key, value) in labels {
            match value.as_str() {
                None | Some("") => writeln!(out, " - {key}")?,
                Some(value) => writeln!(out, " - {key}={value}")?,
            }
        }
    }
    writeln!(out, "Hostname:              \t{}", word("/Description/Hostname"))?;
    let joined = word("/CreatedAt").replace('T', " ").replace('Z', " +0000 utc");
    writeln!(out, "Joined at:             \t{joined}")?;
    writeln!(out, "Status:")?;
    writeln!(out, " State:\t\t\t{}", capitalized(&word("/Status/State")))?;
    if !word("/Status/Message").is_empty() {
        writeln!(out, " Message:              \t{}", capitalized(&word("/Status/Message")))?;
    }
    writeln!(out, " Availability:         \t{}", capitalized(&word("/Spec/Availability")))?;
    if !word("/Status/Addr").is_empty() {
        writeln!(out, " Address:\t\t{}", word("/Status/Addr"))?;
    }
    if let Some(manager) = node.get("ManagerStatus") {
        let leader = if manager["Leader"] == true { "Yes" } else { "No" };
        writeln!(out, "Manager Status:")?;
        writeln!(out, " Address:\t\t{}", word("/ManagerStatus/Addr"))?;
        writeln!(out, " Raft Status:\t\t{}", capitalized(&word("/ManagerStatus/Reachability")))?;
        writeln!(out, " Leader:\t\t{leader}")?;
    }
    writeln!(out, "Platform:")?;
    writeln!(out, " Operating System:\t{}", word("/Description/Platform/OS"))?;
    writeln!(out, " Architecture:\t\t{}", word("/Description/Platform/Architecture"))?;
    writeln!(out, "Resources:")?;
    let cpus = number("/Description/Resources/NanoCPUs") / 1_000_000_000;
    writeln!(out, " CPUs:\t\t\t{cpus}")?;
    let memory = number("/Description/Resources/MemoryBytes");
    writeln!(out, " Memory:\t\t{}", if memory == 0 { String::new() } else { bytes(memory) })?;
    writeln!(out, "Engine Version:\t\t{}", word("/Description/Engine/EngineVersion"))?;
    if let Some(tls) = node.pointer("/Description/TLSInfo") {
        writeln!(out, "TLS Info:")?;
        writeln!(out, " TrustRoot:\n{}", tls["TrustRoot"].as_str().unwrap_or_default())?;
        let field = |name: &str| tls[name].as_str().unwrap_or_default().to_owned();
        writeln!(out, " Issuer Subject:\t{}", field("CertIssuerSubject"))?;
        writeln!(out, " Issuer Public Key:\t{}", field("CertIssuerPublicKey"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::tls::tests::ROOT;
    use crate::cli::node::inspect::tests::manager;

    #[test]
    fn a_manager_is_laid_out_as_docker_does_it() {
        let mut node = manager();
        let tls = node["Description"].as_object_mut().unwrap().remove("TLSInfo").unwrap();
        let expected = "\
ID:\t\t\tnodeID
Labels:
 - ssd
 - zone=a
Hostname:              \tn1
Joined at:             \t1970-01-01 00:00:01 +0000 utc
Status:
 State:\t\t\tReady
 Availability:         \tActive
 Address:\t\t10.0.0.1
Manager Status:
 Address:\t\t10.0.0.1:2377
 Raft Status:\t\tReachable
 Leader:\t\tYes
Platform:
 Operating System:\tlinux
 Architecture:\t\tx86_64
Resources:
 CPUs:\t\t\t2
 Memory:\t\t20MiB
Engine Version:\t\t0.1.0
";
        assert_eq!(text(&node), expected);
        node["Description"]["TLSInfo"] = tls;
        let with_tls = text(&node);
        let rest = with_tls.strip_prefix(expected).unwrap();
        let start = format!("TLS Info:\n TrustRoot:\n{ROOT}\n Issuer Subject:\tMBMx");
        assert!(rest.starts_with(&start), "{rest}");
    }
}
