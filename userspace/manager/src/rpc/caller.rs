//! Who calls: the one place that will read certificates.
//!
//! Until there are certificates a caller on the network says who it is in its metadata, and the
//! local socket speaks for its own node.

use shoal_api::{Caller, NodeRole};
use tonic::{Request, Status};

/// Metadata key with the caller's node id.
pub const CALLER: &str = "shoal-caller";

/// Who made the request.
pub fn caller<T>(request: &Request<T>) -> Caller {
    if let Some(local) = request.extensions().get::<Caller>() {
        return local.clone();
    }
    let node_id = request.metadata().get(CALLER).and_then(|id| id.to_str().ok()).unwrap_or("");
    Caller { node_id: node_id.into(), role: NodeRole::Worker.into() }
}

/// Marks every request on the local socket as this node's own.
pub fn local(node_id: String) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |mut request| {
        let caller = Caller { node_id: node_id.clone(), role: NodeRole::Manager.into() };
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_socket_outranks_what_the_metadata_says() {
        let mut request = Request::new(());
        request.metadata_mut().insert(CALLER, "n2".parse().unwrap());
        assert_eq!(caller(&request).node_id, "n2");
        let request = local("n1".into())(request).unwrap();
        assert_eq!(caller(&request).node_id, "n1");
        assert_eq!(caller(&request).role(), NodeRole::Manager);
        assert_eq!(caller(&Request::new(())).node_id, "");
    }
}
