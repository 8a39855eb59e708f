//! How messages that carry secrets show themselves in logs, errors and failed tests: without them.
//!
//! A secret that is there shows as `…`, one that is not as an empty text. Each message is taken apart
//! by all of its fields, so whoever adds one must say on which side it stands.

use std::fmt;

use crate::{
    BackupPiece, BackupRequest, Cluster, GetUnlockKeyResponse, InitResponse, JoinClusterRequest,
    JoinRequest, JoinTokens, RestoreRequest, SigningCa, UnlockRequest, UpdateClusterWrite,
};

/// Stands for a secret.
struct Hidden(bool);

impl Hidden {
    fn of(secret: &str) -> Self {
        Self(!secret.is_empty())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "…" } else { "\"\"" })
    }
}

macro_rules! hides {
    ($($message:ident { $($secret:ident),+ ; $($shown:ident),* })*) => {
        $(
            impl fmt::Debug for $message {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    let Self { $($secret,)+ $($shown,)* } = self;
                    let mut shown = f.debug_struct(stringify!($message));
                    $(shown.field(stringify!($shown), $shown);)*
                    $(shown.field(stringify!($secret), &Hidden::of($secret));)+
                    shown.finish()
                }
            }
        )*
    };
}

hides! {
    BackupPiece { key; data }
    BackupRequest { key; }
    Cluster {
        unlock_key;
        id, meta, name, seed, last, spec, root_ca, removed_nodes, address_pools, subnet_size,
        changed_after
    }
    GetUnlockKeyResponse { unlock_key; }
    InitResponse { worker_token, unlock_key; node_id, cluster_id, addr }
    JoinClusterRequest {
        token;
        addrs, advertise_addr, listen_addr, data_path_addr, availability
    }
    JoinRequest {
        token;
        node_id, spec, description, addr, data_path_addr, data_path_port, csr
    }
    JoinTokens { worker, manager; }
    RestoreRequest { key; data }
    SigningCa { key_pem; cert_pem }
    UnlockRequest { unlock_key; }
    UpdateClusterWrite {
        worker_secret, manager_secret, unlock_key;
        request, rotation, signed_by
    }
}

impl Cluster {
    /// The object as reads, watches and logs may have it: without the keys of the CA and of the
    /// managers' disks. The join tokens stay, for `join-token` shows them.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        self.unlock_key.clear();
        if let Some(root) = &mut self.root_ca {
            let next = root.rotation.as_mut().and_then(|rotation| rotation.next.as_mut());
            for ca in root.signing.iter_mut().chain(next) {
                ca.key_pem.clear();
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RootCa, RootRotation};

    const SECRET: &str = "VERY-SECRET";

    fn ca() -> Option<SigningCa> {
        Some(SigningCa { cert_pem: "CERT".into(), key_pem: SECRET.into() })
    }

    fn cluster() -> Cluster {
        let tokens = JoinTokens { worker: SECRET.into(), manager: SECRET.into() };
        let rotation = RootRotation { next: ca(), ..RootRotation::default() };
        let root = RootCa {
            signing: ca(),
            tokens: Some(tokens),
            rotation: Some(rotation),
            ..RootCa::default()
        };
        Cluster { unlock_key: SECRET.into(), root_ca: Some(root), ..Cluster::default() }
    }

    #[test]
    fn a_message_does_not_show_its_secrets() {
        let join = JoinRequest { token: SECRET.into(), ..JoinRequest::default() };
        let write = UpdateClusterWrite {
            worker_secret: SECRET.into(),
            manager_secret: SECRET.into(),
            unlock_key: SECRET.into(),
            rotation: cluster().root_ca.and_then(|root| root.rotation),
            ..UpdateClusterWrite::default()
        };
        let unlock = UnlockRequest { unlock_key: SECRET.into() };
        let init = InitResponse { worker_token: SECRET.into(), ..InitResponse::default() };
        for shown in [
            format!("{:?}", cluster()),
            format!("{:?}", crate::Object::from(cluster())),
            format!("{join:?}"),
            format!("{write:?}"),
            format!("{unlock:?}"),
            format!("{init:?}"),
        ] {
            assert!(!shown.contains(SECRET) && shown.contains('…'), "{shown}");
        }
        assert_eq!(format!("{:?}", UnlockRequest::default()), "UnlockRequest { unlock_key: \"\" }");
    }

    #[test]
    fn a_redacted_cluster_has_its_tokens_and_no_key() {
        let redacted = cluster().redacted();
        assert_eq!(redacted.unlock_key, "");
        let root = redacted.root_ca.unwrap();
        assert_eq!(root.tokens.unwrap().worker, SECRET);
        for ca in [root.signing.unwrap(), root.rotation.unwrap().next.unwrap()] {
            assert_eq!((ca.cert_pem.as_str(), ca.key_pem.as_str()), ("CERT", ""));
        }
    }
}
