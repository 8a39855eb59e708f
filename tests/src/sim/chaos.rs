//! What goes wrong: power failures, cuts of the network, bad lines, slow disks, clocks that jump,
//! leaders that are asked to go, nodes that come and go.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use openraft_rt_sim::SimRuntime;
use shoal_api::{NodeRole, RemoveNodeRequest, UpdateNodeRequest, Write, write, write_result};

use super::front::{End, write_through};
use super::host::Host;
use super::manager::Start;
use super::network::{CLIENTS, Weather};
use super::world::{World, join_request};

const TICK: Duration = Duration::from_millis(100);
/// Managers that a run begins with and must not go below: three bear one failure.
const FEWEST: usize = 3;
const OPERATOR: u32 = 90;

/// Does harm until it is told to stop.
pub(super) async fn run(world: Arc<World>) {
    if world.rules.only_liars_fail {
        return liars_fail(&world).await;
    }
    let operator = SimRuntime::spawn(operate(world.clone()));
    while !world.is_calm() {
        harm(&world);
        SimRuntime::sleep(TICK).await;
    }
    drop(operator.await);
}

fn harm(world: &Arc<World>) {
    let dice = &world.dice;
    let hosts: Vec<Arc<Host>> = world.hosts.values().cloned().collect();
    if dice.one_in(40) {
        let host = dice.pick(&hosts).expect("there are hosts");
        fail(world, host, dice.between_ms(200, 5_000));
    }
    if dice.one_in(250) {
        // Most of them at once, or all: a blackout.
        world.seen.lock().blackouts += 1;
        let spared = dice.below(3);
        for host in hosts.iter().filter(|host| u64::from(host.number) > spared) {
            fail(world, host.clone(), dice.between_ms(200, 3_000));
        }
    }
    if dice.one_in(45) {
        partition(world);
    }
    if dice.one_in(25) {
        world.net.join_all();
    }
    if dice.one_in(40) {
        let weather =
            Weather { lost: dice.below(150), doubled: dice.below(100), delay_ms: dice.below(300) };
        world.net.set_weather(if dice.one_in(2) { weather } else { Weather::default() });
    }
    if dice.one_in(30) {
        let host = dice.pick(&hosts).expect("there are hosts");
        let slow = dice.one_in(2);
        world.seen.lock().slow_disks += u64::from(slow);
        let (least, most) = if slow { (20, 600) } else { (1, 8) };
        host.disk.set_sync_time(dice.between_ms(least, most));
    }
    if dice.one_in(60) {
        let host = dice.pick(&hosts).expect("there are hosts");
        let hours = dice.below(7_200_000_000_000);
        let ns = i64::try_from(hours).expect("two hours fit") - 3_600_000_000_000;
        host.clock.jump(ns);
        world.seen.lock().jumps += 1;
    }
    if dice.one_in(60)
        && let Some(running) = dice.pick(&world.all_running())
    {
        // Somebody asks for an election, a snapshot, or for another leader.
        // As the manager does, only to another voter: a leader whose office is on its way to nobody
        // takes no writes until the others elect one.
        let metrics = running.raft.metrics().borrow_watched().clone();
        let voters = metrics.membership_config.membership().voter_ids();
        let to = dice.pick(&voters.filter(|id| *id != running.raft_id).collect::<Vec<_>>());
        let what = dice.below(3);
        drop(SimRuntime::spawn(async move {
            let trigger = running.raft.trigger();
            drop(match what {
                0 => trigger.elect(false).await,
                1 => trigger.snapshot().await.map(drop),
                _ => match to {
                    Some(to) => trigger.transfer_leader(to).await,
                    None => Ok(()),
                },
            });
        }));
    }
}

/// Only hosts whose disks lie fail, and all else is well until they have caught up again.
async fn liars_fail(world: &Arc<World>) {
    while !world.is_calm() {
        SimRuntime::sleep(TICK).await;
        let lies = |host: &&Arc<Host>| world.rules.lies(host.number);
        let follows = |host: &&Arc<Host>| {
            world.running(host.number).is_some_and(|running| !running.desk.is_open())
        };
        let liars = world.hosts.values().filter(lies).filter(follows);
        if let Some(host) = world.dice.pick(&liars.cloned().collect::<Vec<_>>())
            && world.dice.one_in(20)
        {
            world.power_fails(&host);
            let away = world.dice.between_ms(50, 1_500);
            SimRuntime::sleep(away).await;
            world.power_on(&host).await;
            let back = world.running(host.number);
            let caught_up =
                || back.as_ref().is_none_or(|it| it.view.applied() + 1 >= world.judge.chosen());
            while !caught_up() && !world.is_calm() {
                SimRuntime::sleep(TICK).await;
            }
        }
    }
}

/// The power of a host fails, for a while.
fn fail(world: &Arc<World>, host: Arc<Host>, away: Duration) {
    if !host.is_powered() {
        return;
    }
    let world = world.clone();
    drop(SimRuntime::spawn(async move {
        // Often just when it hurts.
        let patience = if world.dice.one_in(2) { 300 } else { 0 };
        for _ in 0..patience {
            if host.disk.has_unsynced() {
                break;
            }
            SimRuntime::sleep(Duration::from_millis(1)).await;
        }
        if world.is_calm() || !host.is_powered() {
            return;
        }
        world.power_fails(&host);
        SimRuntime::sleep(away).await;
        world.power_on(&host).await;
    }));
}

fn partition(world: &World) {
    let numbers: Vec<u32> = world.dice.shuffled(world.hosts.keys().copied().collect());
    let inside = 1 + world.dice.below(numbers.len() as u64 - 1);
    let (some, others) = numbers.split_at(usize::try_from(inside).expect("there are few hosts"));
    let one_way = world.dice.one_in(3);
    for from in some {
        for to in others {
            world.net.cut(*from, *to);
            if !one_way {
                world.net.cut(*to, *from);
            }
        }
    }
    world.trace.note(format_args!("cut off: {some:?}, one way: {one_way}"));
    let mut seen = world.seen.lock();
    seen.partitions += 1;
    seen.one_way += u64::from(one_way);
}

/// Whoever makes nodes join, managers of workers and workers of managers, and removes nodes.
async fn operate(world: Arc<World>) {
    while !world.is_calm() {
        let pause = world.dice.between_ms(500, 4_000);
        SimRuntime::sleep(pause).await;
        let outside = world.hosts.values().filter(|host| !host.is_member() && host.is_powered());
        if let Some(host) = world.dice.pick(&outside.cloned().collect::<Vec<_>>()) {
            let role = if world.dice.one_in(2) { NodeRole::Manager } else { NodeRole::Worker };
            join(&world, &host, role).await;
            continue;
        }
        change(&world).await;
    }
}

/// A new node on a host: it asks until it is let in.
pub(super) async fn join(world: &Arc<World>, host: &Arc<Host>, role: NodeRole) {
    let node_id = {
        let mut state = host.state.lock();
        state.nodes += 1;
        format!("n{}x{}", host.number, state.nodes)
    };
    let request = join_request(host.number, &node_id, role);
    let write = Write { write: Some(write::Write::Join(request)) };
    for _ in 0..20 {
        let end = write_through(world, host.number, world.any_host(), write.clone()).await;
        world.trace.note(format_args!("{node_id} joins: {}", word(&end)));
        if let End::Stored(result) = end {
            let Some(write_result::Result::Joined(joined)) = result.result else { return };
            world.seen.lock().node_changes += 1;
            let start = (joined.raft_id != 0).then(|| Start {
                node_id: node_id.clone(),
                raft_id: joined.raft_id,
                founding: None,
            });
            let powered = {
                let mut state = host.state.lock();
                state.node_id = Some(node_id);
                state.manager = start.clone();
                state.powered
            };
            if let (Some(start), true) = (start, powered) {
                world.start(host, start).await;
            }
            return;
        }
        SimRuntime::sleep(TICK).await;
    }
}

async fn change(world: &Arc<World>) {
    let Some(newest) = world.newest() else { return };
    let store = newest.view.store();
    let nodes: Vec<_> = store.nodes().cloned().collect();
    let managers = nodes.iter().filter(|node| node.role() == NodeRole::Manager).count();
    let Some(node) = world.dice.pick(&nodes) else { return };
    let of_node = |host: &&Arc<Host>| host.state.lock().node_id.as_ref() == Some(&node.id);
    let Some(host) = world.hosts.values().find(of_node).cloned() else { return };
    let is_manager = node.role() == NodeRole::Manager;
    if is_manager && managers <= FEWEST {
        return;
    }
    if !is_manager && world.dice.one_in(2) {
        let request = RemoveNodeRequest { node_id: node.id.clone(), force: true };
        let write = Write { write: Some(write::Write::RemoveNode(request)) };
        let end = write_through(world, CLIENTS + OPERATOR, world.any_host(), write).await;
        world.trace.note(format_args!("{} is removed: {}", node.id, word(&end)));
        if matches!(end, End::Stored(_)) {
            world.seen.lock().node_changes += 1;
            world.leave(&host);
        }
        return;
    }
    let mut spec = node.spec.clone().unwrap_or_default();
    spec.set_role(if is_manager { NodeRole::Worker } else { NodeRole::Manager });
    let request =
        UpdateNodeRequest { node_id: node.id.clone(), version: node.version(), spec: Some(spec) };
    let write = Write { write: Some(write::Write::UpdateNode(request)) };
    let end = write_through(world, CLIENTS + OPERATOR, world.any_host(), write).await;
    world.trace.note(format_args!("{} changes its role: {}", node.id, word(&end)));
    world.seen.lock().node_changes += u64::from(matches!(end, End::Stored(_)));
}

fn word(end: &End) -> String {
    match end {
        End::Stored(_) => "done".into(),
        End::Refused(refusal) => refusal.to_string(),
        End::Unknown => "unknown".into(),
        End::NotTaken => "not taken".into(),
    }
}

/// Everything works from now on, but what was lost stays lost.
pub(super) async fn heal(world: &Arc<World>) {
    world.net.join_all();
    world.net.set_weather(Weather::default());
    let hosts: Vec<_> = world.hosts.values().cloned().collect();
    for host in hosts {
        host.disk.set_sync_time(Duration::from_millis(2));
        host.disk.lie(false);
        world.power_on(&host).await;
    }
}
