//! `Control` on the local socket, whatever this node is at the moment.
//!
//! A manager's own routes answer while there is a manager. A node that is none says so in Docker's
//! words (swarm.md CL13, §1.13), so that a caller never sees a connection that leads nowhere.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;

/// What a locked manager answers to everything (swarm.md CL6).
pub const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. \
     Please use \"shoal unlock\" to unlock it.";

/// What stands behind the gate.
#[derive(Clone, Default)]
pub enum Behind {
    /// This node is in no cluster.
    #[default]
    Nothing,
    /// It is being let in.
    Pending,
    /// It is a worker.
    Worker,
    /// It is a manager that waits for its unlock key.
    Locked,
    /// It is a manager, with these routes.
    Manager(Routes),
}

/// The service; clones share what stands behind.
#[derive(Clone, Default)]
pub struct Gate(Arc<RwLock<Behind>>);

impl Gate {
    /// Changes what stands behind; calls that are under way end as they began.
    pub fn set(&self, behind: Behind) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = behind;
    }

    /// What stands behind.
    pub fn get(&self) -> Behind {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Behind {
    /// Why there is no answer.
    pub fn refusal(&self) -> Status {
        let text = match self {
            Self::Nothing => {
                "This node is not a swarm manager. Use \"shoal init\" or \"shoal join\" to connect \
                 this node to swarm and try again."
            }
            Self::Pending => {
                "This node is not a swarm manager yet: it is still joining. Use \"shoal info\" to \
                 see how far it is."
            }
            Self::Worker => {
                "This node is not a swarm manager. Worker nodes can't be used to view or modify \
                 cluster state. Please run this command on a manager node or promote the current \
                 node to a manager."
            }
            Self::Locked => LOCKED,
            Self::Manager(_) => "the manager answers",
        };
        Status::new(Code::FailedPrecondition, text)
    }
}

impl NamedService for Gate {
    const NAME: &'static str = "shoal.v1.Control";
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.get() {
            Behind::Manager(mut routes) => Box::pin(async move {
                std::future::poll_fn(|cx| Service::<Request<Body>>::poll_ready(&mut routes, cx))
                    .await?;
                routes.call(request).await
            }),
            closed => {
                let response = closed.refusal().into_http();
                Box::pin(std::future::ready(Ok(response)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn message(gate: &Gate) -> String {
        let request = Request::new(Body::default());
        let response = gate.clone().call(request).await.unwrap();
        Status::from_header_map(response.headers()).unwrap().message().to_owned()
    }

    #[tokio::test]
    async fn a_node_says_why_it_cannot_answer() {
        let gate = Gate::default();
        assert!(message(&gate).await.contains("Use \"shoal init\""));
        gate.set(Behind::Worker);
        assert!(message(&gate).await.contains("Worker nodes can't be used"));
        gate.set(Behind::Pending);
        assert!(message(&gate).await.contains("still joining"));
    }
}
