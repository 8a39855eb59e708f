//! Clusters with real certificates, and servers and raw clients on loopback.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shoal_api::ca_client::CaClient;
use shoal_api::ca_server::{Ca, CaServer};
use shoal_api::time::Timestamp;
use shoal_api::{
    IssuedCertificate, JoinRequest, JoinResponse, NodeRole, RenewRequest, RenewResponse,
};
use shoal_identity::{Csr, Identity, JoinToken, Key, Root, csr};
use shoal_transport::{Credentials, Dial, DialError, Peer, accept};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

pub const DAY: Duration = Duration::from_secs(86_400);

pub fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(now.as_nanos()).unwrap())
}

/// A cluster's root, and the next one while it is rolled over.
pub struct Cluster {
    pub id: &'static str,
    pub root: Root,
    pub next: Option<Root>,
}

impl Cluster {
    pub fn found(id: &'static str) -> Self {
        let mut seed = [0; 32];
        seed[..id.len()].copy_from_slice(id.as_bytes());
        Self { id, root: Root::found(&seed, now()), next: None }
    }

    /// Begins a roll-over.
    pub fn rotate(&mut self) {
        self.next = Some(Root::found(&self.root.digest(), now()));
    }

    /// Ends it.
    pub fn rotated(&mut self) {
        self.root = self.next.take().unwrap();
    }

    pub fn roots_pem(&self) -> String {
        let next = self.next.as_ref().map(Root::cert_pem).unwrap_or_default();
        self.root.cert_pem() + &next
    }

    pub fn token(&self) -> JoinToken {
        JoinToken::new(&self.root.digest(), &[7; 16])
    }

    pub fn identity(&self, key: &Key, role: NodeRole) -> Identity {
        Identity { node_id: key.node_id(), role, cluster_id: self.id.to_owned() }
    }

    /// A chain for a key, as the cluster issues it now.
    pub fn chain(&self, key: &Key, role: NodeRole) -> String {
        self.chain_at(key, &self.identity(key, role), now())
    }

    pub fn chain_at(&self, key: &Key, identity: &Identity, at: Timestamp) -> String {
        let csr = Csr::parse(&csr::request(key)).unwrap();
        let serial = serial();
        match &self.next {
            None => self.root.issue(&csr, identity, at, DAY, serial, ""),
            Some(next) => {
                let link = self.root.cross_sign(next.certificate(), at, serial);
                next.issue(&csr, identity, at, DAY, serial, &link)
            }
        }
    }

    pub fn member(&self, key: &Key, role: NodeRole) -> Credentials {
        Credentials::new(&self.chain(key, role), key, &self.roots_pem()).unwrap()
    }

    pub fn manager(&self) -> Credentials {
        self.member(&key(1), NodeRole::Manager)
    }

    pub fn worker(&self) -> Credentials {
        self.member(&key(2), NodeRole::Worker)
    }
}

/// Each certificate has its own.
fn serial() -> [u8; 16] {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let mut serial = [1; 16];
    serial[15] = NEXT.fetch_add(1, Ordering::Relaxed);
    serial
}

pub fn key(number: u8) -> Key {
    Key::from_seed(&[number; 32])
}

/// A port with a service that says who calls.
pub struct Server {
    pub addr: String,
    pub credentials: Credentials,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(credentials: Credentials) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let serving = tonic::transport::Server::builder()
            .add_service(CaServer::new(Mirror))
            .serve_with_incoming(accept(listener, &credentials));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { addr, credentials, task }
    }

    /// Who `credentials` are to this server; dials anew.
    pub async fn asked_by(&self, credentials: &Credentials) -> Result<Seen, DialError> {
        let channel = shoal_transport::connect(credentials, &self.addr, &patient()).await?;
        Ok(seen(&channel).await.unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A loaded machine is slow, not gone.
pub fn patient() -> Dial {
    let (connect_timeout, handshake_timeout) = (Duration::from_secs(8), Duration::from_secs(8));
    Dial { connect_timeout, handshake_timeout, ..Dial::default() }
}

/// What a service saw of its caller.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// Node, cluster and role; `None` for a stranger.
    pub identity: Option<(String, String, NodeRole)>,
    /// Digest of the certificate.
    pub certificate: String,
}

pub async fn seen(channel: &Channel) -> Result<Seen, Status> {
    let answer = CaClient::new(channel.clone()).join(JoinRequest::default()).await?.into_inner();
    let certificate = answer.certificate.unwrap();
    let role = certificate.role();
    let identity = answer.managers.first().map(|id| (id.clone(), answer.cluster_id, role));
    Ok(Seen { identity, certificate: certificate.chain_pem })
}

struct Mirror;

#[tonic::async_trait]
impl Ca for Mirror {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        let role = peer.identity.as_ref().map(|identity| identity.role).unwrap_or_default();
        let cluster_id = peer.identity.as_ref().map(|identity| identity.cluster_id.clone());
        let digest = peer.certificate.map(|own| shoal_identity::digest_hex(&own.der));
        Ok(Response::new(JoinResponse {
            cluster_id: cluster_id.unwrap_or_default(),
            managers: peer.identity.into_iter().map(|identity| identity.node_id).collect(),
            certificate: Some(IssuedCertificate {
                chain_pem: digest.unwrap_or_default(),
                role: role.into(),
                ..IssuedCertificate::default()
            }),
            ..JoinResponse::default()
        }))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// Polls until `condition` gives something; panics with `what` after twenty seconds.
pub async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within twenty seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
