//! Makes one manager's state a cluster of its own, offline: the way back when the others are lost.
//!
//! All that this manager has stored is applied, also what was not known to be committed: it may
//! have been, and then it was acknowledged. The result is one snapshot with a membership of this manager
//! alone, under a Raft id that nobody had, and an empty log. Who is a manager in the store follows
//! when it leads (`shoal_control::Input::ForceNew`).
//!
//! New files are written beside the old ones, then a marker says that they count; a crash before it
//! leaves all as it was, one after it is made good by [`finish`] at the next start.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use openraft::EntryPayload;
use shoal_api::JoinRequest;
use shoal_control::Store;
use tracing::{info, warn};

use crate::error::ManagerError;
use crate::files::{self, Disk, Os};
use crate::identity::{self, Identity, LOG, explain};
use crate::log_store::{Beginning, Contents, LogStore};
use crate::snapshot;
use crate::types::{LogId, Membership, Peer, SnapshotMeta, StoredMembership, Vote};
use crate::vault::Vault;

/// Says that the new files count.
const MARKER: &str = "force";
/// What is replaced, each by a file of the same name and this ending.
const FILES: [&str; 4] = [LOG, snapshot::FILE, identity::FILE, identity::FORCED];
const ENDING: &str = ".forced";

/// What a crash can come between.
pub type Steps<'a> = &'a mut dyn FnMut(&'static str) -> io::Result<()>;

/// Rewrites the state in `folder` and gives its new owner.
///
/// * `node` - this manager's own.
/// * `addr` - `host:port` that it is reached by.
///
/// # Errors
/// The state is damaged, or never held the cluster; the disk refused.
pub fn rewrite(
    folder: &Path,
    vault: &Vault,
    old: &Identity,
    node: &JoinRequest,
    addr: &str,
    steps: Steps<'_>,
) -> Result<Identity, ManagerError> {
    let failed = |e: io::Error| ManagerError::io("write", folder, e);
    let state = read(folder, vault, old)?;
    let members = state.store.nodes().filter_map(|node| node.manager.as_ref());
    let given = members.map(|manager| manager.raft_id).chain(state.members).chain([old.raft_id]);
    let cursor = state.store.cluster().and_then(|cluster| cluster.last.as_ref());
    let given = given.chain(cursor.map(|last| last.raft_id)).max().unwrap_or_default();
    let new = Identity { node_id: old.node_id.clone(), raft_id: given + 1 };
    let peer = Peer { addr: addr.into() };
    let nodes = BTreeMap::from([(new.raft_id, peer)]);
    let membership = Membership::new(vec![[new.raft_id].into()], nodes)
        .expect("the one voter is among the nodes");
    let meta = SnapshotMeta {
        last_log_id: Some(state.last),
        last_membership: StoredMembership::new(Some(state.last), membership),
    };
    let term = state.vote.map_or(0, |vote| vote.leader_id.term).max(state.last.leader_id.term);
    let beginning = Beginning {
        owner: new.clone(),
        purged: Some(state.last),
        vote: Some(Vote::new(term, new.raft_id)),
    };

    steps("node").map_err(failed)?;
    identity::force(&staged(folder, identity::FORCED), vault, node)?;
    steps("snapshot").map_err(failed)?;
    let bytes = snapshot::encode(&meta, &state.store).map_err(failed)?;
    snapshot::save_as(&Os, &staged(folder, snapshot::FILE), vault, &bytes).map_err(failed)?;
    steps("log").map_err(failed)?;
    let log = staged(folder, LOG);
    LogStore::create(&log, vault, &beginning).map_err(|e| explain(e, &log))?;
    steps("identity").map_err(failed)?;
    let text = identity::text(&new);
    files::replace(&Os, &staged(folder, identity::FILE), text.as_bytes()).map_err(failed)?;
    steps("marker").map_err(failed)?;
    files::replace(&Os, &folder.join(MARKER), b"version=1\n").map_err(failed)?;
    warn!(raft.id = new.raft_id, index = state.last.index, "goes on as the only manager");
    finish_with(folder, steps)?;
    Ok(new)
}

/// Ends what a crash broke off: the new files take their places if they count, and go if not.
///
/// # Errors
/// The disk refused; the next start tries again.
pub fn finish(folder: &Path) -> Result<(), ManagerError> {
    finish_with(folder, &mut |_| Ok(()))
}

fn finish_with(folder: &Path, steps: Steps<'_>) -> Result<(), ManagerError> {
    let marker = folder.join(MARKER);
    let mut finish = || -> io::Result<()> {
        let counts = files::read(&marker)?.is_some();
        for name in FILES {
            let new = staged(folder, name);
            if !counts {
                Os.remove(&new)?;
            } else if new.try_exists()? {
                steps("rename")?;
                Os.rename(&new, &folder.join(name))?;
            }
        }
        if counts {
            Os.sync_folder(folder)?;
            steps("unmark")?;
            Os.remove(&marker)?;
            Os.sync_folder(folder)?;
            info!("the state of a single manager is in its place");
        }
        Ok(())
    };
    if !folder.exists() {
        return Ok(());
    }
    finish().map_err(|e| ManagerError::io("write", folder, e))
}

fn staged(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{ENDING}"))
}

/// All that the manager has stored.
struct State {
    store: Store,
    last: LogId,
    vote: Option<Vote>,
    /// Raft ids of whoever was a member at any time that the folder remembers.
    members: Vec<u64>,
}

fn read(folder: &Path, vault: &Vault, owner: &Identity) -> Result<State, ManagerError> {
    let path = folder.join(snapshot::FILE);
    let bytes = snapshot::load(folder, vault).map_err(|e| snapshot::explain(e, &path))?;
    let (meta, mut store) = match bytes {
        Some(bytes) => snapshot::decode(&bytes).map_err(|e| snapshot::explain(e, &path))?,
        None => (SnapshotMeta::default(), Store::default()),
    };
    let log = folder.join(LOG);
    let contents = LogStore::read(&log, vault, owner).map_err(|e| explain(e, &log))?;
    let Contents { entries, vote, purged } = contents;
    let mut last = meta.last_log_id;
    if purged > last {
        return Err(ManagerError::Lost { path });
    }
    let mut members: Vec<u64> = meta.last_membership.nodes().map(|(id, _)| *id).collect();
    for entry in entries {
        if Some(entry.log_id) <= last {
            continue;
        }
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                members.extend(membership.nodes().map(|(id, _)| *id));
            }
            // One that the store refuses was refused on every manager.
            EntryPayload::Normal(proposal) => {
                drop(store.apply(entry.log_id.index, &proposal.0));
            }
        }
        last = Some(entry.log_id);
    }
    match last {
        Some(last) if store.cluster().is_some() => Ok(State { store, last, vote, members }),
        _ => Err(ManagerError::Refused {
            reason: "this manager has not received the cluster's state, it cannot go on alone"
                .into(),
        }),
    }
}

#[cfg(test)]
mod tests;
