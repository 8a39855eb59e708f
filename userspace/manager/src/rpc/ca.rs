//! `Ca`: how nodes get their certificates, the first one by a token and the next by the one before.

use std::sync::Arc;

use shoal_api::ca_server::Ca;
use shoal_api::write::Write as Kind;
use shoal_api::write_result::Result as Of;
use shoal_api::{
    Caller, JoinRequest, JoinResponse, RenewRequest, RenewResponse, RenewWrite, Write,
};
use tonic::{Request, Response, Status};

use super::{Shared, caller, status, to_leader};

/// The service.
pub struct CaRpc(pub Arc<Shared>);

impl CaRpc {
    async fn write(&self, caller: Caller, kind: Kind) -> Result<JoinResponse, Status> {
        let write = Write { write: Some(kind) };
        match to_leader::write(&self.0, caller, write).await?.result {
            Some(Of::Joined(response)) => Ok(response),
            _ => Err(status::unexpected()),
        }
    }
}

#[tonic::async_trait]
impl Ca for CaRpc {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        caller::stranger(&request);
        // Its token speaks for it, and its key says who it is.
        let caller = Caller::default();
        self.write(caller, Kind::Join(request.into_inner())).await.map(Response::new)
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let caller = caller::member(&self.0, &request)?;
        let RenewRequest { csr } = request.into_inner();
        let renew = RenewWrite { node_id: caller.node_id.clone(), csr };
        let JoinResponse { certificate, raft_id, .. } =
            self.write(caller, Kind::Renew(renew)).await?;
        Ok(Response::new(RenewResponse { certificate, raft_id }))
    }
}
