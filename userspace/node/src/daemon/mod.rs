//! The daemon. Not there yet.

use crate::config::Config;

/// Refuses.
///
/// # Errors
/// Always.
pub fn main(_: Config) -> anyhow::Result<()> {
    anyhow::bail!("shoal daemon is not there yet")
}
