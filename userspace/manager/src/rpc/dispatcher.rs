//! `Dispatcher`: the nodes' sessions. Only the leader has them; the others say where it is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use shoal_api::dispatcher_server::Dispatcher;
use shoal_api::id::from_bits;
use shoal_api::{
    Caller, HeartbeatRequest, HeartbeatResponse, SessionMessage, SessionRequest,
    UpdateTaskStatusRequest, UpdateTaskStatusResponse,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use super::{Shared, caller, status, to_leader};
use crate::leader::{Command, Desk, SESSION_QUEUE};

/// The service.
pub struct DispatcherRpc(pub Arc<Shared>);

impl DispatcherRpc {
    fn send(&self, command: Command) -> Result<(), Status> {
        self.0.desk.send(command).map_err(|_| not_here(&self.0))
    }
}

/// Where to go instead.
fn not_here(shared: &Shared) -> Status {
    match to_leader::leader(shared) {
        Some((id, addr)) if id != shared.raft_id => status::not_leader(&addr),
        // Elected and not ready yet, overrun, or nobody leads: a moment later it is known.
        _ => status::no_leader(),
    }
}

#[tonic::async_trait]
impl Dispatcher for DispatcherRpc {
    type SessionStream = Session;

    async fn session(&self, request: Request<SessionRequest>) -> Result<Response<Session>, Status> {
        let Caller { node_id: caller, .. } = caller::member(&self.0, &request)?;
        let request = request.into_inner();
        if request.node_id != caller {
            return Err(status::another_node(&caller, &request.node_id));
        }
        let session_id = from_bits(rand::random());
        let (queue, messages) = mpsc::channel(SESSION_QUEUE);
        self.send(Command::Open { session_id: session_id.clone(), request, messages: queue })?;
        Ok(Response::new(Session { session_id, messages, desk: self.0.desk.clone() }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let Caller { node_id: caller, .. } = caller::member(&self.0, &request)?;
        let (reply, known) = oneshot::channel();
        self.send(Command::Heartbeat { caller, request: request.into_inner(), reply })?;
        match known.await {
            Ok(Some(heartbeat_period_ns)) => {
                Ok(Response::new(HeartbeatResponse { heartbeat_period_ns }))
            }
            Ok(None) => Err(status::no_session()),
            Err(_dropped) => Err(not_here(&self.0)),
        }
    }

    async fn update_task_status(
        &self,
        request: Request<UpdateTaskStatusRequest>,
    ) -> Result<Response<UpdateTaskStatusResponse>, Status> {
        let Caller { node_id: caller, .. } = caller::member(&self.0, &request)?;
        let UpdateTaskStatusRequest { session_id, updates } = request.into_inner();
        let (reply, stored) = oneshot::channel();
        self.send(Command::Statuses { session_id, caller, updates, reply })?;
        match stored.await {
            Ok(Ok(_)) => Ok(Response::new(UpdateTaskStatusResponse {})),
            Ok(Err(refusal)) => Err(status::refused(&refusal)),
            Err(_dropped) => Err(not_here(&self.0)),
        }
    }
}

/// What an agent hears; the loop learns when nobody listens any more.
pub struct Session {
    session_id: String,
    messages: mpsc::Receiver<Result<SessionMessage, Status>>,
    desk: Desk,
}

impl Stream for Session {
    type Item = Result<SessionMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(cx)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let session_id = std::mem::take(&mut self.session_id);
        // Without a loop there is no session to close; with a full queue its next message fails.
        drop(self.desk.send(Command::Close { session_id }));
    }
}
