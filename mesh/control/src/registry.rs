//! Writes down what nodes say of themselves: by a new session, and with each heartbeat.

use shoal_api::{Node, NodeState, NodeStatus, SessionRequest};

use crate::draft::Draft;

/// Bytes of a text that a node reports of a task: a batch must bear some hundred reports.
const MAX_TEXT_BYTES: usize = 1 << 10;

/// Cuts a text that is too long off, between two characters.
pub(crate) fn clip(text: &mut String) {
    if let Some(end) =
        (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at))
    {
        text.truncate(end);
    }
}

/// Writes down what a session says about its node, which is ready with it.
pub(crate) fn register(draft: &mut Draft<'_>, request: &SessionRequest) {
    let Some(node) = draft.node(&request.node_id) else { return };
    let mut node = Node::clone(node);
    if request.description.is_some() {
        node.description.clone_from(&request.description);
    }
    if !request.data_path_addr.is_empty() {
        node.data_path_addr.clone_from(&request.data_path_addr);
    }
    // Where a manager is reached is between the managers.
    if !request.addr.is_empty() && !node.is_manager() {
        node.addr.clone_from(&request.addr);
    }
    let host = node.addr.rsplit_once(':').map_or("", |(host, _)| host);
    let addr = host.trim_matches(['[', ']']).to_owned();
    node.status = Some(NodeStatus { state: NodeState::Ready.into(), addr, ..Default::default() });
    draft.put(node);
}

/// Writes down under which root the certificate is that a node uses, where that is news.
pub(crate) fn holds(draft: &mut Draft<'_>, node_id: &str, digest: &str) {
    let root = draft.cluster().and_then(|cluster| cluster.root_ca.as_ref());
    if !root.is_some_and(|root| root.trusted_digests().iter().any(|trusted| trusted == digest)) {
        return;
    }
    let Some(node) = draft.node(node_id) else { return };
    if node.certificate.as_ref().is_some_and(|given| given.held_digest != digest) {
        let mut node = Node::clone(node);
        digest.clone_into(&mut node.certificate.get_or_insert_default().held_digest);
        draft.put(node);
    }
}
