//! `Control`: what users ask. Reads come from this manager's own store, once it has caught up with
//! the leader; writes go to the leader.

use std::sync::Arc;

use shoal_api::control_server::Control;
use shoal_api::write::Write as Kind;
use shoal_api::write_result::Result as Of;
use shoal_api::{
    CreateServiceRequest, CreateServiceResponse, ListNetworksResponse, ListNodesResponse,
    ListRequest, ListServicesResponse, ListTasksResponse, RemoveServiceRequest,
    RemoveServiceResponse, StatusRequest, StatusResponse, UpdateNodeRequest, UpdateNodeResponse,
    UpdateServiceRequest, UpdateServiceResponse, WatchRequest, Write,
};
use shoal_control::Store;
use tonic::{Request, Response, Status};

use super::caller::caller;
use super::watching::{self, Watch};
use super::{Shared, status, to_leader};

/// The service.
pub struct ControlRpc(pub Arc<Shared>);

impl ControlRpc {
    async fn write<T>(&self, request: Request<T>, kind: fn(T) -> Kind) -> Result<Of, Status> {
        let caller = caller(&request);
        let write = Write { write: Some(kind(request.into_inner())) };
        let result = to_leader::write(&self.0, caller, write).await?;
        result.result.ok_or_else(status::unexpected)
    }

    /// All objects of a kind, as of now.
    async fn read<T: Clone>(&self, list: impl Fn(&Store) -> Vec<Arc<T>>) -> Result<Vec<T>, Status> {
        to_leader::catch_up(&self.0).await?;
        Ok(list(&self.0.view.store()).into_iter().map(Arc::unwrap_or_clone).collect())
    }

    fn leader_id(&self) -> String {
        let leader = to_leader::leader(&self.0);
        leader.and_then(|(raft_id, _)| self.0.node_of(raft_id)).unwrap_or_default()
    }
}

#[tonic::async_trait]
impl Control for ControlRpc {
    async fn create_service(
        &self,
        request: Request<CreateServiceRequest>,
    ) -> Result<Response<CreateServiceResponse>, Status> {
        match self.write(request, Kind::CreateService).await? {
            Of::Service(service) => {
                Ok(Response::new(CreateServiceResponse { service: Some(service) }))
            }
            _ => Err(status::unexpected()),
        }
    }

    async fn update_service(
        &self,
        request: Request<UpdateServiceRequest>,
    ) -> Result<Response<UpdateServiceResponse>, Status> {
        match self.write(request, Kind::UpdateService).await? {
            Of::Service(service) => {
                Ok(Response::new(UpdateServiceResponse { service: Some(service) }))
            }
            _ => Err(status::unexpected()),
        }
    }

    async fn remove_service(
        &self,
        request: Request<RemoveServiceRequest>,
    ) -> Result<Response<RemoveServiceResponse>, Status> {
        match self.write(request, Kind::RemoveService).await? {
            Of::Removed(_) => Ok(Response::new(RemoveServiceResponse {})),
            _ => Err(status::unexpected()),
        }
    }

    async fn update_node(
        &self,
        request: Request<UpdateNodeRequest>,
    ) -> Result<Response<UpdateNodeResponse>, Status> {
        match self.write(request, Kind::UpdateNode).await? {
            Of::Node(node) => Ok(Response::new(UpdateNodeResponse { node: Some(node) })),
            _ => Err(status::unexpected()),
        }
    }

    async fn remove_node(
        &self,
        _request: Request<shoal_api::RemoveNodeRequest>,
    ) -> Result<Response<shoal_api::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn get_cluster(
        &self,
        _request: Request<shoal_api::GetClusterRequest>,
    ) -> Result<Response<shoal_api::GetClusterResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn update_cluster(
        &self,
        _request: Request<shoal_api::UpdateClusterRequest>,
    ) -> Result<Response<shoal_api::UpdateClusterResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn get_unlock_key(
        &self,
        _request: Request<shoal_api::GetUnlockKeyRequest>,
    ) -> Result<Response<shoal_api::GetUnlockKeyResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn list_nodes(
        &self,
        _request: Request<ListRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let nodes = self.read(|store| store.nodes().cloned().collect()).await?;
        Ok(Response::new(ListNodesResponse {
            nodes,
            leader_id: self.leader_id(),
            ..ListNodesResponse::default()
        }))
    }

    async fn list_services(
        &self,
        _request: Request<ListRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let services = self.read(|store| store.services().cloned().collect()).await?;
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn list_tasks(
        &self,
        _request: Request<ListRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let tasks = self.read(|store| store.tasks().cloned().collect()).await?;
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn list_networks(
        &self,
        _request: Request<ListRequest>,
    ) -> Result<Response<ListNetworksResponse>, Status> {
        let networks = self.read(|store| store.networks().cloned().collect()).await?;
        Ok(Response::new(ListNetworksResponse { networks }))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let nodes = to_leader::progress(&self.0).await?;
        let applied_index = *self.0.view.events.applied().borrow();
        Ok(Response::new(StatusResponse { leader_id: self.leader_id(), applied_index, nodes }))
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Watch>, Status> {
        let after = request.into_inner().after_index;
        Ok(Response::new(watching::from(self.0.view.clone(), after)?))
    }
}
