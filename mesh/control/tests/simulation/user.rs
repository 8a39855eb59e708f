//! A user who creates, scales, updates and removes services, drains nodes, and sometimes is wrong.

use shoal_api::{
    ContainerSpec, CreateServiceRequest, EndpointSpec, NodeAvailability, PortConfig,
    RemoveServiceRequest, RestartPolicy, ServiceSpec, TaskSpec, UpdateNodeRequest,
    UpdateServiceRequest, write::Write,
};
use shoal_control::Store;

use crate::world::Dice;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const REPLICAS_MAX: u64 = 8;

/// A wish, right or wrong.
pub fn wish(store: &Store, dice: &mut Dice) -> Option<Write> {
    let name = NAMES[dice.below(NAMES.len())];
    let service = store.service_by_name(name);
    // A user may have read an older version.
    let stale = if dice.one_in(6) { 1 } else { 0 };
    Some(match (dice.below(8), service) {
        (0..=1, _) | (_, None) => {
            Write::CreateService(CreateServiceRequest { spec: Some(spec(name, dice)) })
        }
        (2, Some(_)) => Write::RemoveService(RemoveServiceRequest { service_id: name.into() }),
        (3, _) => {
            let nodes: Vec<_> = store.nodes().collect();
            let node = nodes.get(dice.below(nodes.len().max(1)))?;
            let mut spec = node.spec.clone()?;
            spec.set_availability(match dice.below(3) {
                0 => NodeAvailability::Drain,
                1 => NodeAvailability::Pause,
                _ => NodeAvailability::Active,
            });
            let version = node.version() - stale;
            Write::UpdateNode(UpdateNodeRequest {
                node_id: node.id.clone(),
                version,
                spec: Some(spec),
            })
        }
        (action, Some(service)) => {
            let mut spec = service.spec.clone()?;
            match action {
                4 => spec.task.as_mut()?.force_update += 1,
                5 => spec.endpoint = Some(ports(dice)),
                _ => spec.replicas = dice.up_to_number(REPLICAS_MAX),
            }
            Write::UpdateService(UpdateServiceRequest {
                service_id: service.id.clone(),
                version: service.version() - stale,
                spec: Some(spec),
            })
        }
    })
}

fn spec(name: &str, dice: &mut Dice) -> ServiceSpec {
    let container = ContainerSpec { image: "rootfs:/".into(), ..ContainerSpec::default() };
    let delay_ns = [Some(0), Some(700_000_000), None][dice.below(3)];
    let restart = RestartPolicy { delay_ns, ..RestartPolicy::default() };
    ServiceSpec {
        name: name.into(),
        task: Some(TaskSpec {
            container: Some(container),
            restart: Some(restart),
            ..TaskSpec::default()
        }),
        replicas: dice.up_to_number(REPLICAS_MAX),
        endpoint: Some(ports(dice)),
        ..ServiceSpec::default()
    }
}

fn ports(dice: &mut Dice) -> EndpointSpec {
    let published = [0, 8_080, 8_081, 30_000];
    let count = dice.below(3);
    let mut ports = Vec::new();
    for target_port in (80..).take(count) {
        let published_port = published[dice.below(published.len())];
        ports.push(PortConfig { target_port, published_port, ..PortConfig::default() });
    }
    EndpointSpec { ports }
}
