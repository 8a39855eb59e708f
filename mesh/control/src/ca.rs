//! Ends a roll-over to a new root once every node uses a certificate under it.
//!
//! While it is under way certificates are issued under the next root, with a cross-signed
//! certificate in their chain, and both roots are trusted. A certificate that was given is not one
//! that is used: the answer may have been lost. So the end waits until each node says that it uses
//! one; a node that never will must be removed by a user, as in Docker.
//!
//! Source: `SwarmKit`, ca/reconciler.go.

use std::collections::BTreeSet;

use shoal_api::{Cluster, NodeCertificate, RootCa};

use crate::cluster::tokens_under;
use crate::draft::{Draft, Touched};

/// Ends roll-overs.
#[derive(Debug, Default)]
pub(crate) struct Ca {
    /// The next turn must look, whatever was touched.
    due: bool,
}

impl Ca {
    pub(crate) fn reset(&mut self) {
        self.due = true;
    }

    pub(crate) fn step(&mut self, draft: &mut Draft<'_>, news: &BTreeSet<Touched>) {
        let concerns = |touched: &Touched| matches!(touched, Touched::Node(_) | Touched::Other);
        if !(std::mem::take(&mut self.due) || news.iter().any(concerns)) {
            return;
        }
        let Some(cluster) = draft.cluster() else { return };
        let Some(root) = cluster.root_ca.as_ref() else { return };
        let Some(rotation) = &root.rotation else { return };
        let holds = |given: Option<&NodeCertificate>| {
            given.is_some_and(|given| given.is_held_under(&rotation.digest))
        };
        if !draft.nodes().all(|node| holds(node.certificate.as_ref())) {
            return;
        }
        let tokens = root.tokens.as_ref();
        let done = RootCa {
            signing: rotation.next.clone(),
            digest: rotation.digest.clone(),
            tokens: tokens.and_then(|tokens| tokens_under(tokens, &rotation.digest)),
            rotation: None,
            last_forced: root.last_forced,
        };
        draft.put(Cluster { root_ca: Some(done), ..Cluster::clone(cluster) });
    }
}
