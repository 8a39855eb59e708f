//! Small readings of the objects: kind, id, version, and what a task's state means.

use crate::{
    Attachment, Change, Cluster, Kind, Meta, Network, Node, NodeAvailability, NodeRole, NodeState,
    Object, Removal, Service, Task, TaskState, change, object,
};

/// VXLAN's own port (RFC 7348), Docker's default for the data path (swarm.md §1.0).
pub const DATA_PATH_PORT: u32 = 4789;

macro_rules! kinds {
    ($($kind:ident),*) => {
        impl Object {
            /// Which table the object lives in. `None` for an object of a newer release.
            #[must_use]
            pub fn kind(&self) -> Option<Kind> {
                Some(match self.object.as_ref()? {
                    $(object::Object::$kind(_) => Kind::$kind,)*
                })
            }

            /// The object's id; empty for an object of a newer release.
            #[must_use]
            pub fn id(&self) -> &str {
                match &self.object {
                    $(Some(object::Object::$kind(object)) => &object.id,)*
                    None => "",
                }
            }

            /// Version and times; `None` before the first write.
            #[must_use]
            pub fn meta(&self) -> Option<&Meta> {
                match self.object.as_ref()? {
                    $(object::Object::$kind(object) => object.meta.as_ref(),)*
                }
            }

            /// Sets version and times.
            pub fn set_meta(&mut self, meta: Meta) {
                match &mut self.object {
                    $(Some(object::Object::$kind(object)) => object.meta = Some(meta),)*
                    None => {}
                }
            }

            /// Version that a writer must present; 0 before the first write.
            #[must_use]
            pub fn version(&self) -> u64 {
                self.meta().map_or(0, |meta| meta.version)
            }
        }

        $(
            impl From<$kind> for Object {
                fn from(object: $kind) -> Self {
                    Self { object: Some(object::Object::$kind(object)) }
                }
            }

            impl $kind {
                /// Version that a writer must present; 0 before the first write.
                #[must_use]
                pub fn version(&self) -> u64 {
                    self.meta.as_ref().map_or(0, |meta| meta.version)
                }

                /// The write that stores this object over the version that it was read at.
                #[must_use]
                pub fn put(self) -> Change {
                    Change { change: Some(change::Change::Put(self.into())) }
                }

                /// The write that removes this object at the version that it was read at.
                #[must_use]
                pub fn remove(&self) -> Change {
                    let removal = Removal {
                        kind: Kind::$kind.into(),
                        id: self.id.clone(),
                        version: self.version(),
                    };
                    Change { change: Some(change::Change::Remove(removal)) }
                }
            }
        )*
    };
}

kinds!(Cluster, Node, Service, Task, Network);

impl TaskState {
    /// Whether a task in this state has ended and stays so.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Docker's word for it, in lower case.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

impl Task {
    /// Where the task stands.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.status.as_ref().map_or(TaskState::New, crate::TaskStatus::state)
    }

    /// `web.1`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.service_name, self.slot)
    }

    /// The endpoint on the given network.
    #[must_use]
    pub fn attachment(&self, network_id: &str) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| attachment.network_id == network_id)
    }
}

impl Service {
    /// The spec's name; empty while there is no spec.
    #[must_use]
    pub fn name(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.name)
    }
}

impl Node {
    /// The node's state as last observed.
    #[must_use]
    pub fn state(&self) -> NodeState {
        self.status.as_ref().map_or(NodeState::Unknown, crate::NodeStatus::state)
    }

    /// What the operator allows it.
    #[must_use]
    pub fn availability(&self) -> NodeAvailability {
        self.spec.as_ref().map_or(NodeAvailability::Active, crate::NodeSpec::availability)
    }

    /// Whether the node is a manager: it has, or is about to have, a place in Raft. The role in its
    /// spec is the wish.
    #[must_use]
    pub fn is_manager(&self) -> bool {
        self.manager.is_some()
    }

    /// The role that the node's certificate is to say.
    #[must_use]
    pub fn certified_role(&self) -> NodeRole {
        if self.is_manager() { NodeRole::Manager } else { NodeRole::Worker }
    }

    /// Manager or worker, as the operator wishes.
    #[must_use]
    pub fn role(&self) -> NodeRole {
        self.spec.as_ref().map_or(NodeRole::Worker, crate::NodeSpec::role)
    }

    /// UDP port that carries the overlay's packets.
    #[must_use]
    pub fn data_path_port(&self) -> u32 {
        if self.data_path_port == 0 { DATA_PATH_PORT } else { self.data_path_port }
    }

    /// TCP port of the manager's gRPC server; `None` for a worker.
    #[must_use]
    pub fn manager_port(&self) -> Option<u32> {
        self.manager.as_ref()?.addr.rsplit_once(':')?.1.parse().ok()
    }

    /// Host name, or the spec's name where the node has not described itself, or else its id.
    #[must_use]
    pub fn hostname(&self) -> &str {
        self.description
            .as_ref()
            .map(|description| description.hostname.as_str())
            .or_else(|| self.spec.as_ref().map(|spec| spec.name.as_str()))
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_carries_the_version_that_its_writer_saw() {
        let meta = Meta { version: 7, ..Meta::default() };
        let task = Task { id: "t".into(), meta: Some(meta), ..Task::default() };
        let Some(change::Change::Remove(removal)) = task.remove().change else { panic!() };
        assert_eq!((removal.kind(), removal.version), (Kind::Task, 7));
        let Some(change::Change::Put(object)) = task.put().change else { panic!() };
        assert_eq!((object.kind(), object.id(), object.version()), (Some(Kind::Task), "t", 7));
    }

    #[test]
    fn states_are_ordered_as_a_task_passes_through_them() {
        assert!(TaskState::Assigned < TaskState::Running);
        assert!(!TaskState::Running.is_terminal());
        assert!(TaskState::Complete.is_terminal() && TaskState::Orphaned.is_terminal());
    }
}
