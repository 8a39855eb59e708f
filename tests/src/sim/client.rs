//! Users who create, scale, remove and read services through any manager, and write down what they
//! were told.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use shoal_api::{
    ContainerSpec, CreateServiceRequest, EndpointSpec, PortConfig, RemoveServiceRequest,
    RestartPolicy, ServiceSpec, TaskSpec, UpdateServiceRequest, Write, write,
};
use shoal_control::{RefusalKind, Store};

use super::front::{End, read_through, write_through};
use super::history::{Op, Ret, Told};
use super::invariants::Event;
use super::network::CLIENTS;
use super::world::World;

/// Label with the mark of a spec.
const MARK: &str = "mark";
/// Names in use at a time: few, so that clients meet.
const NAMES: u64 = 3;
const REPLICAS_MAX: u64 = 3;

/// One user, until the run is over.
pub(super) async fn run(world: Arc<World>, number: u32) {
    let mut known: BTreeMap<String, (u64, String, u64, ServiceSpec)> = BTreeMap::new();
    while !world.is_calm() {
        let pause = world.dice.between_ms(5, if world.rules.hurried { 30 } else { 300 });
        SimRuntime::sleep(pause).await;
        let host = world.any_host();
        let name = next_name(&world);
        let action = world.dice.below(10);
        match (action, known.get(&name).cloned()) {
            (0..=2, _) => {
                let mark = world.mark();
                let request = CreateServiceRequest { spec: Some(spec(&world, &name, mark)) };
                let write = write::Write::CreateService(request);
                ask(&world, number, host, &name, Op::Create(mark), write).await;
            }
            (3, _) => {
                let request = RemoveServiceRequest { service_id: name.clone() };
                let write = write::Write::RemoveService(request);
                ask(&world, number, host, &name, Op::Remove, write).await;
            }
            (4..=6, Some((from, service_id, version, mut spec))) => {
                let mark = world.mark();
                spec.labels.insert(MARK.into(), mark.to_string());
                spec.replicas = world.dice.below(REPLICAS_MAX + 1);
                if world.dice.one_in(3) {
                    spec.task.get_or_insert_default().force_update += 1;
                }
                let spec = Some(spec);
                let request = UpdateServiceRequest { service_id, version, spec };
                let write = write::Write::UpdateService(request);
                ask(&world, number, host, &name, Op::Update(from, mark), write).await;
            }
            _ => match look(&world, number, host, &name).await {
                Some(found) => drop(known.insert(name, found)),
                None => drop(known.remove(&name)),
            },
        }
    }
}

/// Reads every name once more, through every manager.
pub(super) async fn look_at_all(world: &Arc<World>) {
    let names = world.histories.lock().names();
    for host in world.manager_hosts() {
        for name in &names {
            look(world, 99, host, name).await;
        }
    }
}

fn next_name(world: &World) -> String {
    let mut names = world.names.lock();
    let slot = world.dice.below(if world.rules.hurried { 1 } else { NAMES });
    let name = names.entry(slot).or_insert_with(|| format!("s{slot}-0"));
    if !world.histories.lock().takes_more(name) {
        let (slot, number) = name.split_once('-').expect("names have a number");
        let number: u64 = number.parse().expect("names have a number");
        *name = format!("{slot}-{}", number + 1);
    }
    name.clone()
}

async fn ask(
    world: &Arc<World>,
    number: u32,
    host: u32,
    name: &str,
    op: Op,
    write: write::Write,
) -> bool {
    let begun = world.histories.lock().begin(name, u64::from(number), op);
    let write = Write { write: Some(write) };
    let end = write_through(world, CLIENTS + number, host, write).await;
    let told = match &end {
        End::Stored(_) => Told::Answer(Ret::Done),
        End::Unknown => Told::Unknown,
        End::NotTaken => Told::Nothing,
        End::Refused(refusal) => match refusal.kind() {
            RefusalKind::AlreadyExists => Told::Answer(Ret::Exists),
            RefusalKind::NotFound if matches!(op, Op::Update(..)) => Told::Answer(Ret::Stale),
            RefusalKind::NotFound => Told::Answer(Ret::Missing),
            // Out of sequence may also mean that the system wrote the object since.
            _ => Told::Nothing,
        },
    };
    world.histories.lock().end(&begun, told);
    {
        let mut seen = world.seen.lock();
        match &end {
            End::Stored(_) => seen.stored += 1,
            End::Refused(_) => seen.refused += 1,
            End::Unknown => seen.unknown += 1,
            End::NotTaken => seen.not_taken += 1,
        }
    }
    let told = match &end {
        End::Stored(_) => "stored".to_owned(),
        End::Refused(refusal) => refusal.to_string(),
        End::Unknown => "unknown".into(),
        End::NotTaken => "not taken".into(),
    };
    world.trace.note(format_args!("client {number} at h{host}: {name} {op:?}: {told}"));
    matches!(end, End::Stored(_))
}

/// What a client knows of a service: mark, id, version and spec.
async fn look(
    world: &Arc<World>,
    number: u32,
    host: u32,
    name: &str,
) -> Option<(u64, String, u64, ServiceSpec)> {
    let begun = world.histories.lock().begin(name, u64::from(number), Op::Read);
    let store = read_through(world, CLIENTS + number, host).await;
    let Some(store) = store else {
        world.histories.lock().end(&begun, Told::Nothing);
        return None;
    };
    let reader = u64::from(number);
    world.judge.observe(&Event::Read { reader, index: store.index() });
    world.seen.lock().read += 1;
    let found = found(&store, name);
    let mark = found.as_ref().map(|(mark, ..)| *mark);
    world.trace.note(format_args!("client {number} at h{host}: {name} is {mark:?}"));
    world.histories.lock().end(&begun, Told::Answer(Ret::Mark(mark)));
    found
}

fn found(store: &Store, name: &str) -> Option<(u64, String, u64, ServiceSpec)> {
    let service = store.service_by_name(name)?;
    let spec = service.spec.clone()?;
    let mark = spec.labels.get(MARK)?.parse().ok()?;
    Some((mark, service.id.clone(), service.version(), spec))
}

fn spec(world: &World, name: &str, mark: u64) -> ServiceSpec {
    let container = ContainerSpec { image: "rootfs:/".into(), ..ContainerSpec::default() };
    let delay_ns = [Some(0), Some(700_000_000)][usize::from(world.dice.one_in(2))];
    let restart = RestartPolicy { delay_ns, ..RestartPolicy::default() };
    let published = [0, 0, 8_080, 8_081];
    let published_port = world.dice.pick(&published).unwrap_or(0);
    let port = PortConfig { target_port: 80, published_port, ..PortConfig::default() };
    let ports = if world.dice.one_in(3) { vec![port] } else { Vec::new() };
    ServiceSpec {
        name: name.into(),
        labels: [(MARK.to_owned(), mark.to_string())].into(),
        task: Some(TaskSpec {
            container: Some(container),
            restart: Some(restart),
            ..TaskSpec::default()
        }),
        replicas: 1 + world.dice.below(REPLICAS_MAX),
        endpoint: Some(EndpointSpec { ports }),
    }
}
