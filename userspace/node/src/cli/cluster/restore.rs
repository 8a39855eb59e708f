//! `shoal restore`: puts a backup into this node's empty state directory.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::PathBuf;

use anyhow::Context as _;
use shoal_api::{RestoreRequest, RestoreResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{backup, key};
use crate::cli::client::Client;
use crate::cli::human::rfc3339;
use crate::cli::say;

/// Bytes of one message: far below gRPC's limit of 4 MiB, and few enough to be in memory twice.
const PIECE_BYTES: u64 = 512 << 10;

/// Flags and arguments of `shoal restore`.
#[derive(clap::Args)]
pub struct Args {
    /// File that has the backup's key; without it the key is asked for.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// File that holds the backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Hands the file to the daemon and tells how to go on.
///
/// # Errors
/// A file that cannot be read, or what the daemon answered; nothing was changed then.
pub async fn run(client: &Client, args: Args) -> anyhow::Result<()> {
    let shown = args.file.display().to_string();
    let file = File::open(&args.file).with_context(|| format!("cannot read {shown}"))?;
    let key = match &args.key_file {
        Some(path) => backup::read_key(path)?.with_context(|| {
            format!("cannot read the key file {}: no such file", path.display())
        })?,
        None => key::read("Enter backup key: ")?,
    };
    let mut local = client.local().await?;
    let (send, pieces) = mpsc::channel(1);
    let reader = tokio::task::spawn_blocking(move || feed(file, key, &send));
    let answer = local.restore(ReceiverStream::new(pieces)).await;
    // A file that ended early is the reason for whatever the daemon says then.
    reader.await?.with_context(|| format!("cannot read {shown}"))?;
    say(&text(&answer?.into_inner()));
    Ok(())
}

/// Sends the file in pieces, the key in the first one. A receiver that is gone wants no more.
fn feed(file: File, mut key: String, send: &mpsc::Sender<RestoreRequest>) -> std::io::Result<()> {
    let mut reader = BufReader::new(file);
    loop {
        let mut data = Vec::new();
        reader.by_ref().take(PIECE_BYTES).read_to_end(&mut data)?;
        let last = data.is_empty();
        let request = RestoreRequest { key: std::mem::take(&mut key), data };
        let empty = request.key.is_empty() && last;
        if empty || send.blocking_send(request).is_err() || last {
            return Ok(());
        }
    }
}

fn text(answer: &RestoreResponse) -> String {
    format!(
        "Restored manager {} of cluster {} from a backup of {}.\n\n\
         To start the cluster from it, run the following command:\n\n    \
         shoal init --force-new-cluster\n\n",
        answer.node_id,
        answer.cluster_id,
        rfc3339(answer.created_at_ns),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_key_goes_first_and_the_file_follows_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let check = |bytes: Vec<u8>| {
            std::fs::write(&path, &bytes).unwrap();
            let (file, (send, mut pieces)) = (File::open(&path).unwrap(), mpsc::channel(1));
            async move {
                let fed = tokio::task::spawn_blocking(move || feed(file, "k".into(), &send));
                let mut got = Vec::new();
                let mut keys = Vec::new();
                while let Some(piece) = pieces.recv().await {
                    keys.push(piece.key);
                    got.extend(piece.data);
                }
                fed.await.unwrap().unwrap();
                assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
                assert_eq!(keys.remove(0), "k");
                assert!(keys.iter().all(String::is_empty));
                keys.len() + 1
            }
        };
        let piece = usize::try_from(PIECE_BYTES).unwrap();
        assert_eq!(check(Vec::new()).await, 1);
        assert_eq!(check(vec![1; 10]).await, 1);
        assert_eq!(check((0..=255).cycle().take(piece + 3).collect()).await, 2);
    }

    #[test]
    fn how_to_go_on_is_told() {
        let answer = RestoreResponse {
            cluster_id: "c".into(),
            node_id: "n".into(),
            created_at_ns: 1_795_206_632_500_000_000,
        };
        assert_eq!(
            text(&answer),
            "Restored manager n of cluster c from a backup of 2026-11-20T20:30:32.5Z.\n\n\
             To start the cluster from it, run the following command:\n\n    \
             shoal init --force-new-cluster\n\n"
        );
    }
}
