//! `shoal service rm`.

use shoal_api::RemoveServiceRequest;

use crate::cli::client::Client;
use crate::cli::resolve::resolve;
use crate::cli::{say, sentence};

/// Removes what the words mean and prints each word when it is done; goes on after an error.
///
/// # Errors
/// The first word that means nothing or could not be removed.
pub async fn run(client: &Client, words: &[String]) -> anyhow::Result<()> {
    let services = client.services().await?;
    let mut control = client.control().await?;
    let mut failed = Ok(());
    for word in words {
        let removed = match resolve(word, &services) {
            Ok(service) => {
                let request = RemoveServiceRequest { service_id: service.id.clone() };
                control.remove_service(request).await.map(drop).map_err(anyhow::Error::from)
            }
            Err(error) => Err(error.into()),
        };
        match removed {
            Ok(()) => say(&format!("{word}\n")),
            Err(error) if failed.is_ok() => failed = Err(error),
            Err(error) => eprintln!("{}", sentence(&error)),
        }
    }
    failed
}
