//! `shoal unlock`: gives a manager its unlock key after a restart.
//!
//! The key comes from the terminal or from stdin, never from the command line, where other users
//! of the host could read it.

use shoal_api::{InfoRequest, LocalState, UnlockRequest};

use super::key;
use crate::cli::client::Client;

/// Asks for the key, but only where one is needed, and hands it to the daemon.
///
/// # Errors
/// The node is not locked, or what the daemon answered.
pub async fn run(client: &Client) -> anyhow::Result<()> {
    let info = client.local().await?.info(InfoRequest {}).await?.into_inner();
    needed(info.state())?;
    let unlock_key = key::read("Enter unlock key: ")?;
    client.local().await?.unlock(UnlockRequest { unlock_key }).await?;
    Ok(())
}

fn needed(state: LocalState) -> anyhow::Result<()> {
    match state {
        LocalState::Locked => Ok(()),
        LocalState::Inactive => anyhow::bail!("Error: This node is not part of a swarm"),
        LocalState::Pending | LocalState::Active | LocalState::Error => {
            anyhow::bail!("Error: swarm is not locked")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_for_a_key_that_opens_nothing() {
        let check = |state, expected: &str| {
            assert_eq!(needed(state).unwrap_err().to_string(), expected);
        };
        assert!(needed(LocalState::Locked).is_ok());
        check(LocalState::Inactive, "Error: This node is not part of a swarm");
        check(LocalState::Active, "Error: swarm is not locked");
        check(LocalState::Error, "Error: swarm is not locked");
    }
}
