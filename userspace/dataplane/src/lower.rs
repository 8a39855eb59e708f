//! The upper half's calls: plans, tasks, counters.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use shoal_datapath::abi::{Backend, Config, Frontend, Slot};
use shoal_datapath::packet::Protocol;
use shoal_routing::diff::{Step, diff};
use shoal_routing::{Lower, Plan, TaskLink, TaskPort};
use tracing::warn;

use crate::error::{Error, LoadError};
use crate::load::Dataplane;

impl Lower for Dataplane {
    type Error = Error;

    async fn apply(&mut self, plan: &Plan) -> Result<usize, Error> {
        let held = match self.held.take() {
            Some(held) => held,
            None => self.read()?,
        };
        let plan = self.without_own_port(plan);
        let steps = diff(&held, &plan);
        self.wanted = Some(plan.clone());
        // On failure `held` stays unknown, so the next call reads what there really is.
        for run in steps.chunk_by(|one, next| is_ring(one) && is_ring(next)) {
            self.run(run)?;
        }
        self.held = Some(plan);
        if self.changing_over {
            self.attach_all().await.map_err(plain)?;
        }
        Ok(steps.len())
    }

    async fn resync(&mut self) -> Result<usize, Error> {
        let attached = self.refresh_interfaces().await.map_err(plain)?;
        if attached > 0 {
            warn!(attached, "programs were not attached any more: repaired");
        }
        self.neighbours.refresh_addresses(&self.net).await?;
        self.sweep_endpoints().await?;
        let mut steps = 0;
        if let Some(wanted) = self.wanted.clone() {
            self.held = None;
            steps = self.apply(&wanted).await?;
            if steps > 0 {
                warn!(steps, "the kernel held something else than the plan: repaired");
            }
        }
        self.repaired += (attached + steps) as u64;
        Ok(attached + steps)
    }

    async fn attach(&mut self, link: &TaskLink, netns: BorrowedFd<'_>) -> Result<TaskPort, Error> {
        self.attach_task(link, netns).await
    }

    async fn detach(&mut self, task_id: &str) -> Result<(), Error> {
        self.detach_task(task_id).await
    }

    fn counters(&self) -> Result<BTreeMap<String, (u64, u64)>, Error> {
        self.tables.counters()
    }

    fn choices(&self) -> Vec<(String, String)> {
        self.chosen()
    }
}

impl Dataplane {
    /// Reads what the kernel really holds.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn read(&self) -> Result<Plan, Error> {
        let nodes = self.neighbours.read()?;
        Ok(Plan { nodes, ..self.tables.read()? })
    }

    /// The plan without the one frontend that must never be: every packet of the mesh comes to this
    /// node's UDP port of VXLAN, and would be taken for a client's. The managers refuse the port;
    /// they may be of another release, or their cluster may use another one.
    fn without_own_port(&mut self, plan: &Plan) -> Plan {
        let mut plan = plan.clone();
        let port = self.options.vxlan_port;
        let key = Protocol::Udp.index() << 16 | u32::from(port);
        let dropped = plan.frontends.remove(&key);
        if let Some(frontend) = dropped.filter(|_| !self.own_port_wanted) {
            warn!(port, service = frontend.service, "the mesh's own UDP port is not published");
        }
        self.own_port_wanted = dropped.is_some();
        plan
    }

    /// Does one step, or several rings' at once.
    fn run(&mut self, steps: &[Step]) -> Result<(), Error> {
        let rings: Vec<(u16, &[Slot])> = steps
            .iter()
            .filter_map(|step| match step {
                Step::PutRing(service, ring) => Some((*service, ring.as_slice())),
                _ => None,
            })
            .collect();
        self.tables.put_rings(&rings)?;
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::PutRing(..) => Ok(()),
            Step::Own(node) => {
                let config = self.tables.config()?;
                self.tables.put_config(Config { node: *node, ..config })
            }
            Step::PutNode(number, address) => self.neighbours.put(*number, *address),
            Step::DropNode(number) => self.neighbours.remove(*number),
            Step::PutBackend(number, backend) => self.tables.put_backend(*number, *backend),
            Step::DropBackend(number) => self.tables.put_backend(*number, Backend::default()),
            Step::DropRing(service) => self.tables.drop_ring(*service),
            Step::PutFrontend(key, frontend) => self.tables.put_frontend(*key, *frontend),
            Step::DropFrontend(key) => self.tables.put_frontend(*key, Frontend::default()),
        }
    }
}

/// What can fail at load, met later.
fn plain(error: LoadError) -> Error {
    match error {
        LoadError::Other(error) => error,
        error => Error::Io {
            what: "attach the programs again".into(),
            cause: std::io::Error::other(error),
        },
    }
}

fn is_ring(step: &Step) -> bool {
    matches!(step, Step::PutRing(..))
}
