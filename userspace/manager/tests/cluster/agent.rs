//! A node's agent as far as its certificate goes: keeps a session with whoever leads, says which
//! root its certificate is of, and renews it when the cluster wants another.

use std::time::Duration;

use shoal_api::ca_client::CaClient;
use shoal_api::dispatcher_client::DispatcherClient;
use shoal_api::{
    HeartbeatRequest, RenewRequest, SessionMessage, SessionRequest, Standing, session_message,
};
use shoal_identity::{Key, csr};
use shoal_transport::{Credentials, Dial};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::harness::{Cluster, Member, description};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(300);

/// An agent that runs until dropped.
pub struct Agent(JoinHandle<()>);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Agent {
    pub fn run(member: &Member, cluster: &Cluster) -> Self {
        let managers = cluster.hosts.iter().map(|host| host.inner.clone()).collect();
        let node = Node { credentials: member.credentials(), managers };
        Self(tokio::spawn(async move {
            let mut next = 0;
            loop {
                // A follower, a manager that is gone: the next one may lead.
                drop(node.session(next).await);
                next += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }))
    }
}

struct Node {
    credentials: Credentials,
    managers: Vec<String>,
}

impl Node {
    fn channel(&self, of: usize) -> Channel {
        let addr = &self.managers[of % self.managers.len()];
        shoal_transport::lazy(&self.credentials, addr, &Dial::default()).unwrap()
    }

    async fn session(&self, through: usize) -> Result<(), Status> {
        let mut dispatcher = DispatcherClient::new(self.channel(through));
        let node_id = self.credentials.identity().node_id;
        let request = SessionRequest {
            description: Some(description(&node_id)),
            node_id,
            data_path_addr: "127.0.0.1".into(),
            instance: "one".into(),
            addr: "127.0.0.1:1".into(),
        };
        let mut messages = dispatcher.session(request).await?.into_inner();
        let mut session_id = String::new();
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = next(&mut messages) => match message? {
                    session_message::Message::Start(start) => session_id = start.session_id,
                    session_message::Message::Standing(standing) => self.obey(standing).await?,
                    _ => {}
                },
                _ = beat.tick() => {
                    let issuer_digest = self.credentials.issuer_digest();
                    let session_id = session_id.clone();
                    let request = HeartbeatRequest { session_id, held_index: 0, issuer_digest };
                    if !request.session_id.is_empty() {
                        dispatcher.heartbeat(request).await?;
                    }
                }
            }
        }
    }

    /// Trusts whom it should, and asks for the certificate that it should have.
    async fn obey(&self, standing: Standing) -> Result<(), Status> {
        self.credentials.trust(&standing.roots_pem).unwrap();
        let identity = self.credentials.identity();
        let issuer = self.credentials.issuer_digest();
        if identity.role == standing.role() && issuer == standing.issuer_digest {
            return Ok(());
        }
        renew(&self.credentials, self.channel(0)).await.map(drop)
    }
}

async fn next(
    messages: &mut Streaming<SessionMessage>,
) -> Result<session_message::Message, Status> {
    let message = messages.message().await?;
    let message = message.and_then(|message| message.message);
    message.ok_or_else(|| Status::unavailable("the session ended"))
}

/// Takes a certificate for a new key, and the Raft id that comes with it.
pub async fn renew(credentials: &Credentials, through: Channel) -> Result<u64, Status> {
    let key = Key::from_seed(&rand::random());
    let request = RenewRequest { csr: csr::request(&key) };
    let renewed = CaClient::new(through).renew(request).await?.into_inner();
    let issued = renewed.certificate.expect("a certificate comes with it");
    credentials.replace(&issued.chain_pem, &key, &issued.roots_pem).unwrap();
    Ok(renewed.raft_id)
}
