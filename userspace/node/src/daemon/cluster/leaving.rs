//! `shoal leave`: this node's tasks, data plane and state go; the others see it as down.
//!
//! A manager that leaves may take the quorum or the whole cluster along, so it wants `--force`.

use std::time::Duration;

use shoal_api::control_client::ControlClient;
use shoal_api::{ListRequest, NodeRole, NodeState};
use tonic::Status;
use tracing::{info, warn};

use super::Cluster;
use crate::daemon::gate::Behind;
use crate::daemon::state::{Phase, Role};

/// How long a leaving manager tries to be taken out of Raft in order.
const FAREWELL: Duration = Duration::from_secs(5);
/// Between two looks whether they did.
const LOOK: Duration = Duration::from_millis(50);
/// How long it may take to hear who the managers are; without a quorum nobody says.
const ASK: Duration = Duration::from_secs(5);

/// The managers as a leaving one sees them, itself among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Managers {
    reachable: usize,
    unreachable: usize,
}

impl Managers {
    fn all(self) -> usize {
        self.reachable + self.unreachable
    }

    /// Whether this one is all there is.
    fn is_last(self) -> bool {
        self.reachable == 1 && self.unreachable == 0
    }

    /// Whether the others are too few to decide, counted by the present size of the group.
    fn lose_quorum(self) -> bool {
        self.reachable.saturating_sub(1) < self.all() / 2 + 1
    }

    /// What `--force` would do; facts of Docker's `Cluster.Leave`.
    fn warning(this: Option<Self>) -> String {
        let begin = "You are attempting to leave the swarm on a node that is participating as a \
                     manager. ";
        let restore = "The only way to restore a swarm that has lost consensus is to reinitialize \
                       it with `--force-new-cluster`. Use `--force` to suppress this message.";
        let effect = match this {
            Some(managers) if managers.is_last() => {
                return format!(
                    "{begin}Removing the last manager erases all current state of the swarm. Use \
                     `--force` to ignore this message."
                );
            }
            Some(managers) if managers.lose_quorum() => format!(
                "Removing this node leaves {} managers out of {}. Without a Raft quorum your swarm \
                 will be inaccessible. ",
                managers.reachable.saturating_sub(1),
                managers.all()
            ),
            Some(_) => String::new(),
            None => "Doing so may lose the consensus of your cluster. ".to_owned(),
        };
        format!("{begin}{effect}{restore}")
    }
}

impl Cluster {
    /// Leaves the cluster.
    ///
    /// # Errors
    /// There is none to leave, or this node is a manager and `force` was not given.
    pub async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let _changing = self.change().await?;
        let seen = self.look();
        let Some(record) = seen.record else { anyhow::bail!("This node is not part of a swarm") };
        if seen.locked && !force {
            anyhow::bail!(
                "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore \
                 this message."
            );
        }
        let manages = record.role == Role::Manager && record.phase != Phase::Restored;
        if manages && !force {
            anyhow::bail!(Managers::warning(self.count_managers(&record.node_id).await));
        }
        if manages {
            self.say_farewell(&record.node_id).await;
        }
        info!(node.id = record.node_id, "leaves the cluster");
        self.0.gate.set(Behind::Pending);
        let agent = self.0.running.lock().await.agent.take();
        self.stop().await;
        if let Some(agent) = agent {
            agent.remove_all().await;
        }
        self.forget(record).await
    }

    /// Has the others take this manager out, so that they keep their quorum; without a leader they
    /// cannot, and it goes all the same.
    async fn say_farewell(&self, own: &str) {
        let Some(manager) = self.manager().await else { return };
        let others = self.count_managers(own).await.filter(|managers| !managers.is_last());
        if others.is_none() {
            return;
        }
        let farewell = async {
            manager.leave().await?;
            // Until then its vote counts, and the others may need it to let it go.
            while !self.is_let_go().await {
                tokio::time::sleep(LOOK).await;
            }
            Ok::<_, Status>(())
        };
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => info!("the other managers go on without this one"),
            Ok(Err(error)) => warn!(%error, "the other managers did not take the farewell"),
            Err(_late) => warn!("the other managers did not take the farewell in time"),
        }
    }

    /// Whether Raft has this node's manager no more.
    async fn is_let_go(&self) -> bool {
        let told = {
            let running = self.0.running.lock().await;
            running.agent.as_ref().and_then(|agent| agent.standing().borrow().clone())
        };
        told.is_some_and(|standing| standing.role() == NodeRole::Worker)
    }

    /// `None` while this node does not take part, or nobody leads.
    async fn count_managers(&self, own: &str) -> Option<Managers> {
        let Behind::Manager(routes) = self.0.gate.get() else { return None };
        let mut control = ControlClient::new(routes);
        let listed = tokio::time::timeout(ASK, control.list_nodes(ListRequest {})).await;
        let listed = listed.ok()?.ok()?.into_inner();
        let managers = listed.nodes.iter().filter(|node| node.manager.is_some());
        let (mut reachable, mut unreachable) = (0, 0);
        for node in managers {
            let down = node.status.as_ref().is_some_and(|s| s.state() == NodeState::Down);
            let answers = if listed.reachable.is_empty() {
                !down
            } else {
                listed.reachable.contains(&node.id)
            };
            if answers || node.id == own {
                reachable += 1;
            } else {
                unreachable += 1;
            }
        }
        Some(Managers { reachable, unreachable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(managers: Option<(usize, usize)>, expected: &str) {
        let managers = managers.map(|(reachable, unreachable)| Managers { reachable, unreachable });
        let warning = Managers::warning(managers);
        assert!(
            warning.starts_with(
                "You are attempting to leave the swarm on a node that is participating as a manager."
            ),
            "{warning}"
        );
        assert!(warning.contains(expected), "{managers:?}: {warning}");
    }

    #[test]
    fn a_leaving_manager_hears_what_it_would_do() {
        check(Some((1, 0)), "Removing the last manager erases all current state of the swarm.");
        check(Some((2, 0)), "leaves 1 managers out of 2. Without a Raft quorum");
        check(Some((2, 1)), "leaves 1 managers out of 3. Without a Raft quorum");
        check(Some((1, 2)), "leaves 0 managers out of 3. Without a Raft quorum");
        check(Some((3, 0)), "manager. The only way to restore a swarm");
        check(Some((5, 0)), "manager. The only way to restore a swarm");
        check(Some((3, 2)), "leaves 2 managers out of 5. Without a Raft quorum");
        check(None, "manager. Doing so may lose the consensus of your cluster. The only way");
    }
}
