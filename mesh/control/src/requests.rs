//! What users and nodes ask for: checks it and stages it, or refuses it whole. Services are here.
//!
//! Every check comes before the first write, so a refusal leaves nothing behind. Specs are stored
//! as the user gave them; what the system adds (numbers, ports) stands beside the spec.

use shoal_api::id::IdSource;
use shoal_api::{
    CreateServiceRequest, PortConfig, RemoveServiceRequest, Service, ServiceSpec,
    UpdateServiceRequest, Write, validate, write,
};

use crate::control::Answer;
use crate::draft::Draft;
use crate::membership::{self, Reachable};
use crate::refusal::Refusal;
use crate::store::Store;
use crate::{allocator, cluster};

/// Stages one write. Who may ask for it was checked where it came in.
///
/// * `reachable` - the managers that answer.
pub(crate) fn write(
    draft: &mut Draft<'_>,
    ids: &mut IdSource,
    write: Write,
    reachable: &Reachable,
) -> Result<Answer, Refusal> {
    match write.write.ok_or(Refusal::Empty)? {
        write::Write::CreateService(request) => create_service(draft, ids, request),
        write::Write::UpdateService(request) => update_service(draft, request),
        write::Write::RemoveService(request) => remove_service(draft, &request),
        write::Write::UpdateNode(request) => membership::update(draft, request, reachable),
        write::Write::Join(request) => membership::join(draft, request),
        write::Write::RemoveNode(request) => membership::remove(draft, &request),
        write::Write::UpdateCluster(write) => cluster::update(draft, write),
        write::Write::Renew(write) => membership::renew(draft, &write.node_id),
        write::Write::Leave(write) => membership::leave(draft, &write.node_id, reachable),
        write::Write::Moved(at) => membership::moved(draft, at),
    }
}

fn create_service(
    draft: &mut Draft<'_>,
    ids: &mut IdSource,
    request: CreateServiceRequest,
) -> Result<Answer, Refusal> {
    let spec = request.spec.ok_or(Refusal::Empty)?;
    validate::service_spec(&spec)?;
    if draft.service_by_name(&spec.name).is_some() {
        return Err(Refusal::NameTaken { name: spec.name });
    }
    if draft.ingress_network().is_none() {
        return Err(Refusal::NoIngressNetwork);
    }
    let ports = allocator::choose_ports(draft, "", wishes(&spec), &[])?;
    let number = allocator::number_service(draft)?;
    let id = draft.fresh_id(ids);
    allocator::take_over_ports(draft, &id, &ports);
    draft.put(Service {
        id: id.clone(),
        meta: None,
        spec: Some(spec),
        spec_version: 1,
        ports,
        number,
        pending_delete: false,
    });
    Ok(Answer::Service(id))
}

fn update_service(draft: &mut Draft<'_>, request: UpdateServiceRequest) -> Result<Answer, Refusal> {
    let mut service = find_service(draft, &request.service_id)?;
    let before = draft.committed().service(&service.id).and_then(|service| service.spec.as_ref());
    if service.version() != request.version || service.spec.as_ref() != before {
        return Err(Refusal::OutOfSequence);
    }
    let spec = request.spec.ok_or(Refusal::Empty)?;
    if spec.name != service.name() {
        return Err(Refusal::Rename);
    }
    validate::service_spec(&spec)?;
    let ports = allocator::choose_ports(draft, &service.id, wishes(&spec), &service.ports)?;
    if service.spec.as_ref().and_then(|old| old.task.as_ref()) != spec.task.as_ref() {
        service.spec_version += 1;
    }
    allocator::take_over_ports(draft, &service.id, &ports);
    let id = service.id.clone();
    draft.put(Service { spec: Some(spec), ports, ..service });
    Ok(Answer::Service(id))
}

fn remove_service(
    draft: &mut Draft<'_>,
    request: &RemoveServiceRequest,
) -> Result<Answer, Refusal> {
    let service = find_service(draft, &request.service_id)?;
    draft.put(Service { pending_delete: true, ..service });
    Ok(Answer::Removed)
}

/// By id, else by name. One that is being removed is not there for users.
fn find_service(store: &Store, id: &str) -> Result<Service, Refusal> {
    let by_id = store.service(id).filter(|service| !service.pending_delete);
    let service = by_id.or_else(|| store.service_by_name(id));
    let missing = || Refusal::NotFound { what: "service", id: id.to_owned() };
    service.map(|service| Service::clone(service)).ok_or_else(missing)
}

fn wishes(spec: &ServiceSpec) -> &[PortConfig] {
    spec.endpoint.as_ref().map_or(&[], |endpoint| &endpoint.ports)
}
