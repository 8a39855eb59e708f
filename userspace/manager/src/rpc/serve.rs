//! What the leader does about a write before and after its loop.
//!
//! Before: checks the request for a certificate, and draws what only chance can give: secrets of
//! tokens, unlock keys, new roots. After: signs the certificate of a node whose join or renewal has
//! committed. Both happen on the leader only, whoever took the call.

use std::time::{SystemTime, UNIX_EPOCH};

use shoal_api::time::Timestamp;
use shoal_api::write::Write as Kind;
use shoal_api::write_result::Result as Of;
use shoal_api::{
    Caller, Cluster, IssuedCertificate, JoinResponse, RootCa, UpdateClusterWrite, Write,
    WriteResult,
};
use shoal_control::{Refusal, Store};
use shoal_identity::ca::CaError;
use shoal_identity::{Csr, Identity, Root, UnlockKey, ca, token};
use tokio::sync::oneshot;
use tonic::Status;

use super::{Shared, caller, status};
use crate::external_ca;
use crate::leader::{Command, NotServing};

/// The write as the loop takes it, and which node wants a certificate for which key.
struct Prepared {
    write: Write,
    wanted: Option<(String, Csr)>,
}

/// Why a write did not come back from the loop.
pub enum Unserved {
    /// This manager does not lead, or cannot keep up: nothing happened.
    NotHere,
    /// It was taken and there is no answer.
    Lost,
    /// It was refused.
    Refused(Status),
}

impl From<Status> for Unserved {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl From<NotServing> for Unserved {
    fn from(_: NotServing) -> Self {
        Self::NotHere
    }
}

/// Does a write here, as the leader.
///
/// # Errors
/// See [`Unserved`].
pub async fn write(shared: &Shared, caller: Caller, write: Write) -> Result<WriteResult, Unserved> {
    if !shared.desk.is_open() {
        return Err(Unserved::NotHere);
    }
    let store = shared.view.store();
    if let Some(kind) = &write.write {
        caller::may_write(&store, &caller, kind)?;
    }
    let Prepared { write, wanted } = prepare(&store, write, now())?;
    let (reply, answer) = oneshot::channel();
    shared.desk.send(Command::Write { caller, write: Box::new(write), reply })?;
    let result = match answer.await {
        Ok(Ok(result)) => result,
        Ok(Err(refusal)) => return Err(Unserved::Refused(status::refused(&refusal))),
        Err(_dropped) => return Err(Unserved::Lost),
    };
    match (wanted, result.result) {
        (Some((node_id, request)), Some(Of::Joined(joined))) => {
            let certificate = Some(sign(shared, node_id, &request).await?);
            let joined = JoinResponse { certificate, ..joined };
            Ok(WriteResult { result: Some(Of::Joined(joined)) })
        }
        (_, result) => Ok(WriteResult { result }),
    }
}

/// The wall clock: dates in certificates are compared with other machines' clocks.
fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
}

fn prepare(store: &Store, write: Write, now: Timestamp) -> Result<Prepared, Status> {
    let plain = |kind| Ok(Prepared { write: Write { write: Some(kind) }, wanted: None });
    match write.write {
        Some(Kind::Join(mut join)) => {
            let request = parse(&join.csr)?;
            // What strangers try must not keep the loop busy; it judges for good.
            if !fits(store, &join.token) {
                return Err(status::refused(&Refusal::Token));
            }
            let node_id = request.node_id();
            // Whoever names another node than its key's would be given that node's certificate.
            if !join.node_id.is_empty() && join.node_id != node_id {
                return Err(status::another_key(&join.node_id, &node_id));
            }
            join.node_id.clone_from(&node_id);
            let write = Write { write: Some(Kind::Join(join)) };
            Ok(Prepared { write, wanted: Some((node_id, request)) })
        }
        Some(Kind::Renew(renew)) => {
            let wanted = (renew.node_id.clone(), parse(&renew.csr)?);
            let write = Write { write: Some(Kind::Renew(renew)) };
            Ok(Prepared { write, wanted: Some(wanted) })
        }
        Some(Kind::UpdateCluster(update)) => {
            let cluster = store.cluster().ok_or_else(status::no_leader)?;
            plain(Kind::UpdateCluster(draw(cluster, update, now)?))
        }
        Some(kind) => plain(kind),
        None => Ok(Prepared { write, wanted: None }),
    }
}

/// Whether a token is one of the cluster's.
fn fits(store: &Store, presented: &str) -> bool {
    let root_ca = store.cluster().and_then(|cluster| cluster.root_ca.as_ref());
    let Some(tokens) = root_ca.and_then(|root_ca| root_ca.tokens.as_ref()) else { return false };
    let same = |token: &str| !token.is_empty() && token::same(token, presented);
    // Both, whatever the first one says: the time must not tell.
    same(&tokens.worker) | same(&tokens.manager)
}

fn parse(csr: &[u8]) -> Result<Csr, Status> {
    Csr::parse(csr).map_err(|reason| status::bad_request(&reason))
}

/// Draws for an update of the cluster what it may need; control takes what it does need.
fn draw(
    cluster: &Cluster,
    update: UpdateClusterWrite,
    now: Timestamp,
) -> Result<UpdateClusterWrite, Status> {
    let request = update.request.unwrap_or_default();
    let root_ca = cluster.root_ca.clone().unwrap_or_default();
    let wanted = request.spec.as_ref().and_then(|spec| spec.ca.as_ref());
    let forced = wanted.is_some_and(|ca| ca.force_rotate > root_ca.last_forced);
    let rotation = match (forced, &request.root) {
        (false, _) => None,
        (true, Some(root)) if !root.cert_pem.is_empty() => {
            Some(rotate(&root_ca, root, now).map_err(|reason| status::bad_root(&reason))?)
        }
        (true, _) => {
            let next = Root::found(&rand::random(), now).signing_ca();
            Some(rotate(&root_ca, &next, now).map_err(|reason| status::bad_root(&reason))?)
        }
    };
    let signed_by = rotation.as_ref().map(|_| root_ca.digest.clone()).unwrap_or_default();
    Ok(UpdateClusterWrite {
        request: Some(request),
        worker_secret: token::secret_text(&rand::random()),
        manager_secret: token::secret_text(&rand::random()),
        unlock_key: UnlockKey::from_bytes(rand::random()).to_string(),
        rotation,
        signed_by,
    })
}

fn rotate(
    root_ca: &RootCa,
    next: &shoal_api::SigningCa,
    now: Timestamp,
) -> Result<shoal_api::RootRotation, CaError> {
    ca::rotation(root_ca, next, now, rand::random())
}

/// Gives a member the certificate that its role asks for now.
async fn sign(
    shared: &Shared,
    node_id: String,
    request: &Csr,
) -> Result<IssuedCertificate, Status> {
    let store = shared.view.store();
    let (Some(cluster), Some(node)) = (store.cluster(), store.node(&node_id)) else {
        return Err(status::not_a_member(&node_id));
    };
    let role = node.certificate.as_ref().map(shoal_api::NodeCertificate::role).unwrap_or_default();
    let identity = Identity { node_id, role, cluster_id: cluster.id.clone() };
    issue(shared, cluster, request, &identity).await
}

async fn issue(
    shared: &Shared,
    cluster: &Cluster,
    request: &Csr,
    identity: &Identity,
) -> Result<IssuedCertificate, Status> {
    let root_ca = cluster.root_ca.clone().unwrap_or_default();
    let life = cluster.node_cert_expiry();
    match ca::issue_for(&root_ca, life, request, identity, now(), rand::random()) {
        Ok(certificate) => Ok(certificate),
        Err(CaError::NoKey) => {
            let spec = cluster.spec.as_ref().and_then(|spec| spec.ca.as_ref());
            let signers = spec.map(|ca| ca.external_cas.as_slice()).unwrap_or_default();
            external_ca::sign(signers, &shared.credentials, &root_ca, request, identity, now())
                .await
                .map_err(|reason| status::no_signature(&reason))
        }
        Err(reason) => Err(status::no_signature(&reason)),
    }
}
