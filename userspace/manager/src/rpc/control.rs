//! `Control`: what users ask. Reads come from this manager's own store, once it has caught up with
//! the leader; writes go to the leader.

use std::sync::Arc;

use shoal_api::control_server::Control;
use shoal_api::write::Write as Kind;
use shoal_api::write_result::Result as Of;
use shoal_api::{
    Cluster, CreateServiceRequest, CreateServiceResponse, GetClusterRequest, GetClusterResponse,
    GetUnlockKeyRequest, GetUnlockKeyResponse, ListNetworksResponse, ListNodesResponse,
    ListRequest, ListServicesResponse, ListTasksResponse, RemoveNodeRequest, RemoveNodeResponse,
    RemoveServiceRequest, RemoveServiceResponse, StatusRequest, StatusResponse,
    UpdateClusterRequest, UpdateClusterResponse, UpdateClusterWrite, UpdateNodeRequest,
    UpdateNodeResponse, UpdateServiceRequest, UpdateServiceResponse, WatchRequest, Write,
};
use shoal_control::Store;
use tonic::{Request, Response, Status};

use super::watching::{self, Watch};
use super::{Shared, caller, status, to_leader};

/// The service.
pub struct ControlRpc(pub Arc<Shared>);

impl ControlRpc {
    async fn write<T: Sync>(&self, request: Request<T>, kind: fn(T) -> Kind) -> Result<Of, Status> {
        let caller = caller::manager(&self.0, &request).await?;
        let write = Write { write: Some(kind(request.into_inner())) };
        let result = to_leader::write(&self.0, caller, write).await?;
        result.result.ok_or_else(status::unexpected)
    }

    /// Lets a manager read what holds now. What this manager has just caught up with may be that the
    /// caller is none any more, and a secret that was changed for that very reason.
    async fn catch_up<T: Sync>(&self, request: &Request<T>) -> Result<to_leader::Caught, Status> {
        let caller = caller::manager(&self.0, request).await?;
        let caught = to_leader::catch_up(&self.0).await?;
        caller::still_manager(&self.0.view.store(), &caller)?;
        Ok(caught)
    }

    /// All objects of a kind, as of now.
    async fn read<T: Clone>(
        &self,
        request: &Request<ListRequest>,
        list: impl Fn(&Store) -> Vec<Arc<T>>,
    ) -> Result<Vec<T>, Status> {
        self.catch_up(request).await?;
        Ok(list(&self.0.view.store()).into_iter().map(Arc::unwrap_or_clone).collect())
    }

    /// The cluster with its secrets, as of now.
    async fn cluster<T: Sync>(&self, request: &Request<T>) -> Result<Cluster, Status> {
        self.catch_up(request).await?;
        let store = self.0.view.store();
        store.cluster().cloned().map(Arc::unwrap_or_clone).ok_or_else(status::no_leader)
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
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        match self.write(request, Kind::RemoveNode).await? {
            Of::Removed(_) => Ok(Response::new(RemoveNodeResponse {})),
            _ => Err(status::unexpected()),
        }
    }

    async fn get_cluster(
        &self,
        request: Request<GetClusterRequest>,
    ) -> Result<Response<GetClusterResponse>, Status> {
        let cluster = self.cluster(&request).await?.redacted();
        Ok(Response::new(GetClusterResponse { cluster: Some(cluster) }))
    }

    async fn update_cluster(
        &self,
        request: Request<UpdateClusterRequest>,
    ) -> Result<Response<UpdateClusterResponse>, Status> {
        // The leader draws the secrets.
        let kind = |request| {
            Kind::UpdateCluster(UpdateClusterWrite {
                request: Some(request),
                ..UpdateClusterWrite::default()
            })
        };
        match self.write(request, kind).await? {
            Of::Cluster(cluster) => {
                Ok(Response::new(UpdateClusterResponse { cluster: Some(cluster.redacted()) }))
            }
            _ => Err(status::unexpected()),
        }
    }

    async fn get_unlock_key(
        &self,
        request: Request<GetUnlockKeyRequest>,
    ) -> Result<Response<GetUnlockKeyResponse>, Status> {
        let unlock_key = self.cluster(&request).await?.unlock_key.clone();
        Ok(Response::new(GetUnlockKeyResponse { unlock_key }))
    }

    async fn list_nodes(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let caught = self.catch_up(&request).await?;
        let store = self.0.view.store();
        let nodes: Vec<_> = store.nodes().map(|node| (**node).clone()).collect();
        let managers = nodes.iter().filter_map(|node| Some((node, node.manager.as_ref()?)));
        let reachable = managers
            .filter(|(_, manager)| caught.reachable.contains(&manager.raft_id))
            .map(|(node, _)| node.id.clone())
            .collect();
        Ok(Response::new(ListNodesResponse { nodes, leader_id: self.leader_id(), reachable }))
    }

    async fn list_services(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        // One that is being removed is gone for users, as in Docker: its name may be another's.
        let there = |store: &Store| {
            store.services().filter(|service| !service.pending_delete).cloned().collect()
        };
        let services = self.read(&request, there).await?;
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn list_tasks(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let tasks = self.read(&request, |store| store.tasks().cloned().collect()).await?;
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn list_networks(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<ListNetworksResponse>, Status> {
        let networks = self.read(&request, |store| store.networks().cloned().collect()).await?;
        Ok(Response::new(ListNetworksResponse { networks }))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        caller::manager(&self.0, &request).await?;
        let nodes = to_leader::progress(&self.0).await?;
        let applied_index = *self.0.view.events.applied().borrow();
        Ok(Response::new(StatusResponse { leader_id: self.leader_id(), applied_index, nodes }))
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Watch>, Status> {
        let caller = caller::manager(&self.0, &request).await?;
        let connection = Box::new(caller::connection(&self.0, &request));
        let after = request.into_inner().after_index;
        Ok(Response::new(watching::from(self.0.view.clone(), caller, connection, after)?))
    }
}
