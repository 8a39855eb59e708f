//! Whole objects as JSON with Docker's field names, for `inspect`.
//!
//! An array with an object for each word, as Docker prints it. A word that means nothing is told on
//! stderr after the objects that were found.

use serde_json::{Value, json};
use shoal_api::{
    ContainerSpec, Meta, Network, Node, NodeAvailability, NodeRole, NodeState, PortConfig,
    RestartCondition, RestartPolicy, Service, ServiceSpec, Task, TaskSpec,
};

use crate::cli::human::rfc3339;
use crate::cli::resolve::{Named, resolve};
use crate::cli::say;

/// An object that can be shown whole.
pub trait Document: Named {
    /// All of it, with Docker's names.
    fn document(&self) -> Value;
}

/// Prints the objects that the words mean.
///
/// # Errors
/// The first word that means nothing, or too much.
pub fn print<T: Document>(words: &[String], all: &[T]) -> anyhow::Result<()> {
    let found: Vec<_> = words.iter().map(|word| resolve(word, all)).collect();
    let documents: Vec<Value> = found.iter().flatten().map(|object| object.document()).collect();
    say(&format!("{}\n", serde_json::to_string_pretty(&documents)?));
    for object in found {
        object?;
    }
    Ok(())
}

fn with_meta(id: &str, meta: Option<&Meta>, rest: Value) -> Value {
    let meta = meta.copied().unwrap_or_default();
    let mut document = json!({
        "ID": id,
        "Version": { "Index": meta.version },
        "CreatedAt": rfc3339(meta.created_at_ns),
        "UpdatedAt": rfc3339(meta.updated_at_ns),
    });
    if let (Value::Object(document), Value::Object(rest)) = (&mut document, rest) {
        document.extend(rest);
    }
    document
}

fn ports(ports: &[PortConfig]) -> Value {
    let port = |port: &PortConfig| {
        let mut value = json!({
            "Protocol": port.protocol().word(),
            "TargetPort": port.target_port,
            "PublishMode": "ingress",
        });
        if port.published_port != 0 {
            value["PublishedPort"] = port.published_port.into();
        }
        value
    };
    ports.iter().map(port).collect()
}

fn container(spec: &ContainerSpec, grace_ns: u64) -> Value {
    json!({
        "Image": spec.image,
        "Command": spec.command,
        "Args": spec.args,
        "Env": spec.env,
        "Dir": spec.dir,
        "StopGracePeriod": grace_ns,
    })
}

fn task_spec(spec: &TaskSpec) -> Value {
    let restart = spec.restart.unwrap_or_default();
    let grace_ns = u64::try_from(spec.stop_grace_period().as_nanos()).unwrap_or(u64::MAX);
    let container = spec.container.as_ref().map(|spec| container(spec, grace_ns));
    json!({
        "ContainerSpec": container.unwrap_or_default(),
        "RestartPolicy": {
            "Condition": condition(restart),
            "Delay": u64::try_from(restart.delay().as_nanos()).unwrap_or(u64::MAX),
            "MaxAttempts": 0,
        },
        "ForceUpdate": spec.force_update,
        "Runtime": "container",
    })
}

fn condition(policy: RestartPolicy) -> &'static str {
    match policy.condition() {
        RestartCondition::Any => "any",
        RestartCondition::OnFailure => "on-failure",
        RestartCondition::None => "none",
    }
}

fn service_spec(spec: &ServiceSpec) -> Value {
    json!({
        "Name": spec.name,
        "Labels": spec.labels,
        "TaskTemplate": spec.task.as_ref().map(task_spec).unwrap_or_default(),
        "Mode": { "Replicated": { "Replicas": spec.replicas } },
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": ports(spec.endpoint.as_ref().map_or(&[], |endpoint| &endpoint.ports)),
        },
    })
}

impl Document for Service {
    fn document(&self) -> Value {
        let spec = self.spec.as_ref().map(service_spec).unwrap_or_default();
        let endpoint = json!({ "Spec": spec["EndpointSpec"], "Ports": ports(&self.ports) });
        with_meta(&self.id, self.meta.as_ref(), json!({ "Spec": spec, "Endpoint": endpoint }))
    }
}

impl Document for Task {
    fn document(&self) -> Value {
        let status = self.status.clone().unwrap_or_default();
        let mut shown = json!({
            "Timestamp": rfc3339(status.timestamp_ns),
            "State": status.state().word(),
            "Message": status.message,
            "ContainerStatus": { "PID": status.pid, "ExitCode": status.exit_code.unwrap_or(0) },
        });
        if !status.err.is_empty() {
            shown["Err"] = status.err.into();
        }
        let attachments: Value = self
            .attachments
            .iter()
            .map(|attachment| {
                json!({
                    "Network": { "ID": attachment.network_id },
                    "Addresses": [attachment.address],
                    "MacAddress": attachment.mac,
                })
            })
            .collect();
        with_meta(
            &self.id,
            self.meta.as_ref(),
            json!({
                "Name": self.name(),
                "Spec": self.spec.as_ref().map(task_spec).unwrap_or_default(),
                "ServiceID": self.service_id,
                "Slot": self.slot,
                "NodeID": self.node_id,
                "Status": shown,
                "DesiredState": self.desired_state().word(),
                "NetworksAttachments": attachments,
            }),
        )
    }
}

impl Document for Node {
    fn document(&self) -> Value {
        let spec = self.spec.clone().unwrap_or_default();
        let description = self.description.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let addr = match status.addr.as_str() {
            "" => &self.data_path_addr,
            addr => addr,
        };
        let rest = json!({
            "Spec": {
                "Name": spec.name,
                "Labels": spec.labels,
                "Role": role(spec.role()),
                "Availability": availability(spec.availability()),
            },
            "Description": {
                "Hostname": description.hostname,
                "Platform": { "Architecture": description.arch, "OS": description.os },
                "Resources": {
                    "NanoCPUs": description.nano_cpus,
                    "MemoryBytes": description.memory_bytes,
                },
                "Engine": { "EngineVersion": description.version },
            },
            "Status": {
                "State": state(status.state()),
                "Message": status.message,
                "Addr": addr,
            },
        });
        with_meta(&self.id, self.meta.as_ref(), rest)
    }
}

impl Document for Network {
    fn document(&self) -> Value {
        let spec = self.spec.clone().unwrap_or_default();
        let gateway = self.gateway.split('/').next().unwrap_or_default();
        let mut document = with_meta(
            &self.id,
            self.meta.as_ref(),
            json!({
                "Name": spec.name,
                "Scope": "swarm",
                "Driver": "overlay",
                "Ingress": spec.ingress,
                "IPAM": { "Config": [{ "Subnet": spec.subnet, "Gateway": gateway }] },
            }),
        );
        document["Id"] = self.id.clone().into();
        document
    }
}

/// `worker` or `manager`.
pub fn role(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// `active`, `pause` or `drain`.
pub fn availability(availability: NodeAvailability) -> &'static str {
    match availability {
        NodeAvailability::Active => "active",
        NodeAvailability::Pause => "pause",
        NodeAvailability::Drain => "drain",
    }
}

/// `unknown`, `down` or `ready`.
pub fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::{EndpointSpec, Protocol, TaskState, TaskStatus};

    use super::*;

    #[test]
    fn a_service_shows_defaults_and_both_port_lists() {
        let port = |published_port| PortConfig {
            protocol: Protocol::Tcp.into(),
            target_port: 80,
            published_port,
        };
        let service = Service {
            id: "s".into(),
            meta: Some(Meta { version: 9, ..Meta::default() }),
            spec: Some(ServiceSpec {
                name: "web".into(),
                replicas: 3,
                task: Some(TaskSpec {
                    container: Some(ContainerSpec {
                        image: "rootfs:/".into(),
                        ..ContainerSpec::default()
                    }),
                    ..TaskSpec::default()
                }),
                endpoint: Some(EndpointSpec { ports: vec![port(0)] }),
                ..ServiceSpec::default()
            }),
            ports: vec![port(30_000)],
            ..Service::default()
        };
        let document = service.document();
        assert_eq!(document["Version"]["Index"], 9);
        assert_eq!(document["Spec"]["Mode"]["Replicated"]["Replicas"], 3);
        let template = &document["Spec"]["TaskTemplate"];
        assert_eq!(template["ContainerSpec"]["StopGracePeriod"], 10_000_000_000u64);
        assert_eq!(template["RestartPolicy"]["Delay"], 5_000_000_000u64);
        assert_eq!(document["Endpoint"]["Ports"][0]["PublishedPort"], 30_000);
        assert_eq!(document["Endpoint"]["Spec"]["Ports"][0].get("PublishedPort"), None);
    }

    #[test]
    fn a_task_shows_an_error_only_when_there_is_one() {
        let mut task = Task {
            service_name: "web".into(),
            slot: 2,
            status: Some(TaskStatus { state: TaskState::Running.into(), ..TaskStatus::default() }),
            ..Task::default()
        };
        let document = task.document();
        assert_eq!(document["Status"]["State"], "running");
        assert_eq!(document["Status"].get("Err"), None);
        assert_eq!(document["Name"], "web.2");
        task.status = Some(TaskStatus { err: "boom".into(), ..TaskStatus::default() });
        assert_eq!(task.document()["Status"]["Err"], "boom");
    }
}
