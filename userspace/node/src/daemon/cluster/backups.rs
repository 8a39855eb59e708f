//! `shoal backup` and `shoal restore`: a manager's state and who it is, as one sealed file.
//!
//! A backup is made while the manager runs. A restore wants a node that is in no cluster, reads the
//! whole file before it writes anything, and leaves a node that waits for `shoal init
//! --force-new-cluster`: the cluster that the file is of may have gone on since.

use std::io::Read;
use std::sync::Arc;

use anyhow::Context as _;
use shoal_api::{BackupPiece, RestoreRequest, RestoreResponse};
use shoal_identity::{BackupKey, Key};
use shoal_manager::backup::{self, NodeFiles};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};
use tracing::info;

use super::Cluster;
use super::addresses::Wishes;
use crate::daemon::certificates::Held;
use crate::daemon::state::{FORMAT, Phase, Record, Role, Token};

/// Pieces of a file on their way: some megabytes.
const AHEAD: usize = 4;

impl Cluster {
    /// A manager's state as a sealed file, in pieces; the first one names the key.
    ///
    /// * `key` - seals it; empty draws one.
    ///
    /// # Errors
    /// This node is no manager, or the key is none.
    pub async fn backup(
        &self,
        key: &str,
    ) -> anyhow::Result<impl Stream<Item = Result<BackupPiece, Status>> + Send + use<>> {
        let key = match key.trim() {
            "" => BackupKey::from_bytes(rand::random()),
            given => BackupKey::parse(given).context("the backup's key")?,
        };
        let serving = {
            let running = self.0.running.lock().await;
            let serving = running.manager.as_ref();
            serving.map(|serving| (Arc::clone(&serving.manager), serving.vault.clone()))
        };
        let record = self.look().record;
        let (Some((manager, vault)), Some(record)) = (serving, record) else {
            anyhow::bail!("{}", self.0.gate.get().refusal().message());
        };
        let held = self.0.certificates.load(Some(&vault))?;
        let files = NodeFiles {
            chain_pem: held.chain_pem,
            key_pem: held.key.to_pem(),
            roots_pem: held.roots_pem,
            record: serde_json::to_vec(&record).expect("a record is plain data"),
        };
        let first = BackupPiece { key: key.to_string(), data: Vec::new() };
        let pieces = manager.backup(key, files).await?;
        let pieces = pieces.map(|piece| match piece {
            Ok(data) => Ok(BackupPiece { key: String::new(), data }),
            Err(error) => Err(Status::internal(error.to_string())),
        });
        Ok(tokio_stream::once(Ok(first)).chain(pieces))
    }

    /// Takes a backup in, on a node that is in no cluster.
    ///
    /// # Errors
    /// This node is in one; the file is none, damaged, of a newer release or under another key.
    /// Nothing was touched then.
    pub async fn restore(
        &self,
        mut pieces: Streaming<RestoreRequest>,
    ) -> anyhow::Result<RestoreResponse> {
        let _changing = self.change().await?;
        self.ensure_inactive()?;
        let first = pieces.message().await?.context("there is no backup in this request")?;
        let key = BackupKey::parse(first.key.trim()).context("the backup's key")?;
        let (send, receive) = mpsc::channel(AHEAD);
        let reading = tokio::task::spawn_blocking(move || {
            backup::open(Pieces { receive, piece: Vec::new(), read: 0 }, &key)
        });
        // A reader that gave up says why; what is still to come does not matter then.
        if send.send(first.data).await.is_ok() {
            while let Some(piece) = pieces.message().await? {
                if send.send(piece.data).await.is_err() {
                    break;
                }
            }
        }
        drop(send);
        let restored = reading.await??;
        let files = restored.files();
        let record = self.restored_record(&files, restored.node_id(), restored.cluster_id())?;
        let key = Key::from_pem(&files.key_pem)?;
        let held = Held { chain_pem: files.chain_pem, roots_pem: files.roots_pem, key };
        let answer = RestoreResponse {
            cluster_id: restored.cluster_id().to_owned(),
            node_id: restored.node_id().to_owned(),
            created_at_ns: restored.created_at_ns(),
        };
        let folder = self.raft_dir();
        let written = async {
            // What a crash leaves of this belongs to nobody.
            self.0.state.save(&Record { phase: Phase::Leaving, ..record.clone() })?;
            let vault = tokio::task::spawn_blocking(move || restored.write(&folder)).await??;
            self.0.certificates.save(&held, Some(&vault))?;
            self.save(&record)?;
            *self.0.restored.lock().await = Some(vault);
            anyhow::Ok(())
        };
        if let Err(error) = written.await {
            self.seen().record = None;
            self.0.state.clear()?;
            return Err(error);
        }
        info!(node.id = answer.node_id, cluster.id = answer.cluster_id, "state restored");
        Ok(answer)
    }

    /// The membership that a backup tells of, on this machine.
    fn restored_record(
        &self,
        files: &NodeFiles,
        node_id: &str,
        cluster_id: &str,
    ) -> anyhow::Result<Record> {
        let then = serde_json::from_slice::<Record>(&files.record).ok();
        let then = then.filter(|record| record.format == FORMAT);
        // Its addresses were another machine's, maybe; the packets' port is the cluster's.
        let now = self.record(Phase::Restored, Role::Manager, &Wishes::default());
        let mut record = match (then, now) {
            (Some(then), Ok(now)) => Record { data_path_port: then.data_path_port, ..now },
            // The operator chooses at `init`.
            (Some(then), Err(_)) => then,
            (None, now) => now?,
        };
        record.phase = Phase::Restored;
        record.role = Role::Manager;
        record.node_id = node_id.to_owned();
        record.cluster_id = cluster_id.to_owned();
        record.token = Token::default();
        Ok(record)
    }
}

/// The pieces of a stream, for whoever reads.
struct Pieces {
    receive: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.read == self.piece.len() {
            let Some(piece) = self.receive.blocking_recv() else { return Ok(0) };
            (self.piece, self.read) = (piece, 0);
        }
        let left = &self.piece[self.read..];
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_read_as_one_file() {
        let (send, receive) = mpsc::channel(8);
        for piece in [&b"ab"[..], b"", b"cde", b"f"] {
            send.blocking_send(piece.to_vec()).unwrap();
        }
        drop(send);
        let mut text = String::new();
        Pieces { receive, piece: Vec::new(), read: 0 }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdef");
    }
}
