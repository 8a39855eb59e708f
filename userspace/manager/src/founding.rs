//! What a new cluster starts from: its id, its root, its tokens, and its first node.
//!
//! All that only chance can give is drawn here, once, and goes into the first write as it is: so a
//! founder that is killed half-way goes on with the same root that its own certificate is under.

use std::fmt;
use std::time::Duration;

use prost::Message;
use shoal_api::time::Timestamp;
use shoal_api::token::compose;
use shoal_api::{
    Cluster, ClusterSpec, IssuedCertificate, JoinRequest, JoinTokens, NodeRole, RootCa, SigningCa,
    id,
};
use shoal_identity::token::secret_text;
use shoal_identity::{Csr, Identity, Key, Root, UnlockKey, csr, issue_for};
use zeroize::Zeroizing;

use crate::ManagerError;

/// Life of a certificate where the spec names none; `SwarmKit`'s default.
const CERT_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What the operator wants of a new cluster.
#[derive(Clone, Debug, Default)]
pub struct NewCluster {
    /// The first node; its id and request are filled in.
    pub node: JoinRequest,
    /// What the cluster should be like.
    pub spec: ClusterSpec,
    /// CIDRs that networks' subnets are cut from; none means the usual one.
    pub address_pools: Vec<String>,
    /// Prefix length of those subnets; 0 means the usual one.
    pub subnet_size: u32,
    /// The root, with its key unless an external CA signs; `None` makes one.
    pub root: Option<SigningCa>,
}

/// What a new cluster starts from.
#[derive(Clone, PartialEq)]
pub struct Founding {
    /// The first manager's own.
    pub(crate) node: JoinRequest,
    /// Id, spec, root, tokens, unlock key and pools; the rest is control's.
    pub(crate) cluster: Cluster,
}

impl fmt::Debug for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Founding").field("cluster_id", &self.cluster.id).finish_non_exhaustive()
    }
}

impl Founding {
    /// Draws a cluster, and the first manager's certificate for its key.
    ///
    /// # Errors
    /// The operator's root cannot be used.
    pub fn new(
        new: NewCluster,
        key: &Key,
        now: Timestamp,
    ) -> Result<(Self, IssuedCertificate), ManagerError> {
        let refused = |reason: String| ManagerError::Refused { reason };
        let NewCluster { mut node, spec, address_pools, subnet_size, root } = new;
        let signing = match root {
            Some(root) => root,
            None => Root::found(&rand::random(), now).signing_ca(),
        };
        let root = Root::open(&signing, now).map_err(|e| refused(e.to_string()))?;
        let digest = root.digest_hex();
        let token = || {
            let secret = secret_text(&rand::random());
            compose(&digest, &secret).expect("a root's digest is one")
        };
        let tokens = JoinTokens { worker: token(), manager: token() };
        let root_ca =
            RootCa { signing: Some(signing), digest, tokens: Some(tokens), ..RootCa::default() };
        let request = csr::request(key);
        node.node_id = key.node_id();
        node.csr = request.clone();
        let cluster_id = id::from_bits(rand::random());
        let identity = Identity {
            node_id: node.node_id.clone(),
            role: NodeRole::Manager,
            cluster_id: cluster_id.clone(),
        };
        let request = Csr::parse(&request).map_err(|e| refused(e.to_string()))?;
        let life = spec.ca.as_ref().and_then(|ca| ca.node_cert_expiry_ns);
        let life = life.map_or(CERT_LIFE, Duration::from_nanos);
        let issued = issue_for(&root_ca, life, &request, &identity, now, rand::random())
            .map_err(|e| refused(e.to_string()))?;
        let unlock_key = if spec.autolock {
            UnlockKey::from_bytes(rand::random()).to_string()
        } else {
            String::new()
        };
        let cluster = Cluster {
            id: cluster_id,
            root_ca: Some(root_ca),
            unlock_key,
            spec: Some(spec),
            address_pools,
            subnet_size,
            ..Cluster::default()
        };
        Ok((Self { node, cluster }, issued))
    }

    /// The new cluster's id.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.cluster.id
    }

    /// The first node's id.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.node.node_id
    }

    /// What newcomers present.
    #[must_use]
    pub fn tokens(&self) -> JoinTokens {
        let root_ca = self.cluster.root_ca.as_ref();
        root_ca.and_then(|root_ca| root_ca.tokens.clone()).unwrap_or_default()
    }

    /// What the vault is to be locked by; `None` without autolock.
    #[must_use]
    pub fn unlock_key(&self) -> Option<UnlockKey> {
        UnlockKey::parse(&self.cluster.unlock_key).ok()
    }

    /// For the leader's first write.
    pub(crate) fn into_control(self) -> shoal_control::Founding {
        let Self { node, cluster } = self;
        shoal_control::Founding {
            node,
            cluster_id: cluster.id,
            root_ca: cluster.root_ca.unwrap_or_default(),
            unlock_key: cluster.unlock_key,
            spec: cluster.spec,
            address_pools: cluster.address_pools,
            subnet_size: cluster.subnet_size,
        }
    }

    /// Its bytes on the disk; secret.
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(self.node.encode_length_delimited_to_vec());
        bytes.extend(self.cluster.encode_to_vec());
        bytes
    }

    /// Reads what [`Founding::encode`] wrote.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let node = JoinRequest::decode_length_delimited(&mut bytes).ok()?;
        let cluster = Cluster::decode(bytes).ok()?;
        Some(Self { node, cluster })
    }
}
