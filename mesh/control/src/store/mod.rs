//! All objects of the cluster at one Raft index.
//!
//! Tables are persistent maps, so a clone costs a few pointers: views, the leader's draft and a
//! snapshot that is being written share what did not change. [`Store::apply`] is the only way that
//! the state changes, on every manager, and gives the same result everywhere: no clock, no
//! randomness, ordered maps. Indexes are those that control needs (`SwarmKit`, manager/state/store).

mod apply;
mod claims;

use std::sync::Arc;

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};
use shoal_api::{Cluster, Kind, Network, Node, Object, Service, Snapshot, Task, object};

pub use apply::Conflict;
pub use claims::Claim;
pub(crate) use claims::address;

type Table<T> = RedBlackTreeMapSync<String, Arc<T>>;
type Index = RedBlackTreeMapSync<String, RedBlackTreeSetSync<String>>;

/// All objects of the cluster at one Raft index. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Store {
    index: u64,
    clusters: Table<Cluster>,
    nodes: Table<Node>,
    services: Table<Service>,
    tasks: Table<Task>,
    networks: Table<Network>,
    /// Task ids by service id and by node id.
    by_service: Index,
    by_node: Index,
    /// Who holds what only one may hold.
    claims: RedBlackTreeMapSync<Claim, String>,
}

impl Store {
    /// Raft index of the last batch that was applied; 0 before the first.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The cluster's own object; `None` before the first manager's bootstrap.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.clusters.first().map(|(_, cluster)| cluster)
    }

    /// The node of that id.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// `host:port` of every manager's gRPC server, by node id.
    #[must_use]
    pub fn manager_addrs(&self) -> Vec<String> {
        let managers = self.nodes().filter_map(|node| node.manager.as_ref());
        managers.map(|manager| manager.addr.clone()).collect()
    }

    /// The service of that id.
    #[must_use]
    pub fn service(&self, id: &str) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// All services by id, those that are being removed among them.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service of that name, unless it is being removed.
    #[must_use]
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.service(self.holder(&Claim::ServiceName(name.to_owned()))?)
    }

    /// The task of that id.
    #[must_use]
    pub fn task(&self, id: &str) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// All tasks by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// The tasks of a service, old ones among them, by id.
    pub fn tasks_of_service<'a>(
        &'a self,
        service_id: &str,
    ) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        self.indexed(&self.by_service, service_id)
    }

    /// The tasks that were assigned to a node, old ones among them, by id.
    pub fn tasks_of_node<'a>(
        &'a self,
        node_id: &str,
    ) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        self.indexed(&self.by_node, node_id)
    }

    /// The network of that id.
    #[must_use]
    pub fn network(&self, id: &str) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// All networks by id.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// The network of the routing mesh.
    #[must_use]
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.networks().find(|network| network.spec.as_ref().is_some_and(|spec| spec.ingress))
    }

    /// Id of the object that holds a claim; `None` when it is free.
    #[must_use]
    pub fn holder(&self, claim: &Claim) -> Option<&str> {
        self.claims.get(claim).map(String::as_str)
    }

    /// The object of that kind and id.
    #[must_use]
    pub fn object(&self, kind: Kind, id: &str) -> Option<Object> {
        match kind {
            Kind::Cluster => self.clusters.get(id).map(|object| Cluster::clone(object).into()),
            Kind::Node => self.nodes.get(id).map(|object| Node::clone(object).into()),
            Kind::Service => self.services.get(id).map(|object| Service::clone(object).into()),
            Kind::Task => self.tasks.get(id).map(|object| Task::clone(object).into()),
            Kind::Network => self.networks.get(id).map(|object| Network::clone(object).into()),
        }
    }

    /// All objects, as Raft's snapshot carries them: equal stores give equal bytes.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let clusters = self.clusters.values().map(|object| Cluster::clone(object).into());
        let nodes = self.nodes.values().map(|object| Node::clone(object).into());
        let services = self.services.values().map(|object| Service::clone(object).into());
        let tasks = self.tasks.values().map(|object| Task::clone(object).into());
        let networks = self.networks.values().map(|object| Network::clone(object).into());
        let objects = clusters.chain(nodes).chain(services).chain(tasks).chain(networks).collect();
        Snapshot { index: self.index, objects }
    }

    /// The store that a snapshot was taken of. Objects of a newer release are left out.
    #[must_use]
    pub fn restore(snapshot: Snapshot) -> Self {
        let mut store = Self { index: snapshot.index, ..Self::default() };
        for object in snapshot.objects {
            store.insert(object);
        }
        store
    }

    fn indexed<'a>(
        &'a self,
        index: &'a Index,
        key: &str,
    ) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        let ids = index.get(key).into_iter().flat_map(RedBlackTreeSetSync::iter);
        ids.filter_map(|id| self.tasks.get(id))
    }

    /// Stores an object as it is, in the place of the one of its id, and says which claim it shares
    /// with another object, if any: the later one holds it then.
    pub(crate) fn insert(&mut self, object: Object) -> Option<(Claim, String)> {
        let (kind, id) = (object.kind()?, object.id().to_owned());
        self.take(kind, &id);
        let mut shared = None;
        for claim in claims::of(&object) {
            if let Some(holder) = self.claims.get(&claim) {
                shared = Some((claim.clone(), holder.clone()));
            }
            self.claims.insert_mut(claim, id.clone());
        }
        match object.object? {
            object::Object::Cluster(cluster) => self.clusters.insert_mut(id, Arc::new(cluster)),
            object::Object::Node(node) => self.nodes.insert_mut(id, Arc::new(node)),
            object::Object::Service(service) => self.services.insert_mut(id, Arc::new(service)),
            object::Object::Network(network) => self.networks.insert_mut(id, Arc::new(network)),
            object::Object::Task(task) => {
                index_add(&mut self.by_service, &task.service_id, &id);
                index_add(&mut self.by_node, &task.node_id, &id);
                self.tasks.insert_mut(id, Arc::new(task));
            }
        }
        shared
    }

    /// Takes an object out, and what it held.
    pub(crate) fn take(&mut self, kind: Kind, id: &str) -> Option<Object> {
        let object = self.object(kind, id)?;
        for claim in claims::of(&object) {
            if self.holder(&claim) == Some(id) {
                self.claims.remove_mut(&claim);
            }
        }
        match kind {
            Kind::Cluster => self.clusters.remove_mut(id),
            Kind::Node => self.nodes.remove_mut(id),
            Kind::Service => self.services.remove_mut(id),
            Kind::Network => self.networks.remove_mut(id),
            Kind::Task => {
                if let Some(task) = self.tasks.get(id).cloned() {
                    index_remove(&mut self.by_service, &task.service_id, id);
                    index_remove(&mut self.by_node, &task.node_id, id);
                }
                self.tasks.remove_mut(id)
            }
        };
        Some(object)
    }
}

fn index_add(index: &mut Index, key: &str, id: &str) {
    if key.is_empty() {
        return;
    }
    let ids = index.get(key).cloned().unwrap_or_else(RedBlackTreeSetSync::new_sync);
    index.insert_mut(key.to_owned(), ids.insert(id.to_owned()));
}

fn index_remove(index: &mut Index, key: &str, id: &str) {
    let Some(ids) = index.get(key) else { return };
    let ids = ids.remove(id);
    if ids.is_empty() {
        index.remove_mut(key);
    } else {
        index.insert_mut(key.to_owned(), ids);
    }
}
