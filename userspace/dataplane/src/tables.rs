//! The maps of a plan: what the kernel holds, and one step towards what it should.
//!
//! Nodes and addresses are not here: they follow the host's interfaces too, so `neighbours` owns
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, ArrayOfMaps, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray};
use shoal_datapath::Reason;
use shoal_datapath::abi::{
    Address, BACKENDS_MAX, Backend, Config, Counter, Endpoint, EndpointKey, FRONTENDS_MAX, Flow,
    FlowKey, Frontend, Mac, RING_SIZE, Ring, SERVICES_MAX, Slot, maps,
};
use shoal_routing::Plan;

use crate::error::Error;
use crate::sys;

/// Rings of 64 KiB that are made before they are put in place together.
const RINGS_AT_ONCE: usize = 256;

/// The maps, open.
pub(crate) struct Tables {
    frontends: Array<MapData, Frontend>,
    rings: ArrayOfMaps<MapData, Array<MapData, Ring>>,
    /// The same map: aya's type has no way to free an element.
    rings_data: MapData,
    backends: Array<MapData, Backend>,
    endpoints: HashMap<MapData, EndpointKey, Endpoint>,
    /// One that forgets the oldest; aya has one type for both.
    flows: HashMap<MapData, FlowKey, Flow>,
    config: Array<MapData, Config>,
    counters: PerCpuArray<MapData, Counter>,
    services: PerCpuArray<MapData, Counter>,
}

/// Takes a map out of the object, as what it should be.
pub(crate) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(Error::Object { what: "map", name })?;
    T::try_from(map).map_err(failed(name))
}

/// For `map_err`: which map it was.
pub(crate) fn failed(map: &'static str) -> impl Fn(MapError) -> Error {
    move |cause| Error::Map { map, cause }
}

fn io_failed(map: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |cause| Error::Map { map, cause: MapError::IoError(cause) }
}

/// Key of a task in `ENDPOINTS`.
pub(crate) fn endpoint_key(mac: Mac) -> EndpointKey {
    EndpointKey { mac, pad: [0; 2] }
}

impl Tables {
    /// Takes the maps out of the object, whose pins are in the folder `pins`.
    pub(crate) fn take(ebpf: &mut Ebpf, pins: &Path) -> Result<Self, Error> {
        let rings_pin = pins.join(maps::RINGS);
        Ok(Self {
            frontends: take(ebpf, maps::FRONTENDS)?,
            rings: take(ebpf, maps::RINGS)?,
            rings_data: MapData::from_pin(rings_pin).map_err(failed(maps::RINGS))?,
            backends: take(ebpf, maps::BACKENDS)?,
            endpoints: take(ebpf, maps::ENDPOINTS)?,
            flows: take(ebpf, maps::FLOWS)?,
            config: take(ebpf, maps::CONFIG)?,
            counters: take(ebpf, maps::COUNTERS)?,
            services: take(ebpf, maps::SERVICES)?,
        })
    }

    /// What the kernel holds of a plan, without the nodes. Its index is 0: no map holds one.
    pub(crate) fn read(&self) -> Result<Plan, Error> {
        let mut plan = Plan { node: self.config()?.node, ..Plan::default() };
        let frontends: Vec<Frontend> = sys::read_array(fd(&self.frontends), FRONTENDS_MAX)
            .map_err(io_failed(maps::FRONTENDS))?;
        let held = (0..).zip(frontends).filter(|(_, frontend)| *frontend != Frontend::default());
        plan.frontends = held.collect();
        let backends: Vec<Backend> =
            sys::read_array(fd(&self.backends), BACKENDS_MAX).map_err(io_failed(maps::BACKENDS))?;
        let held =
            (0..=u16::MAX).zip(backends).filter(|(_, backend)| *backend != Backend::default());
        plan.backends = held.collect();
        for service in 1..SERVICES_MAX {
            match self.rings.get(&service, 0) {
                Ok(ring) => {
                    let ring = ring.get(&0, 0).map_err(failed(maps::RINGS))?;
                    let number = u16::try_from(service).expect("services are numbered in 16 bits");
                    plan.rings.insert(number, Arc::new(ring.slots.to_vec()));
                }
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(maps::RINGS)(error)),
            }
        }
        Ok(plan)
    }

    pub(crate) fn put_frontend(&mut self, key: u32, frontend: Frontend) -> Result<(), Error> {
        self.frontends.set(key, frontend, 0).map_err(failed(maps::FRONTENDS))
    }

    pub(crate) fn put_backend(&mut self, number: u16, backend: Backend) -> Result<(), Error> {
        self.backends.set(number.into(), backend, 0).map_err(failed(maps::BACKENDS))
    }

    /// Fills a new inner map for each ring, then puts them in place: a packet sees a service's old
    /// ring or its new one.
    pub(crate) fn put_rings(&mut self, rings: &[(u16, &[Slot])]) -> Result<(), Error> {
        for rings in rings.chunks(RINGS_AT_ONCE) {
            let mut filled = Vec::with_capacity(rings.len());
            for (service, slots) in rings {
                filled.push((u32::from(*service), filled_ring(slots)?));
            }
            let inner: Vec<(u32, BorrowedFd<'_>)> =
                filled.iter().map(|(service, inner)| (*service, fd(inner))).collect();
            sys::put_inner_maps(self.rings_data.fd().as_fd(), &inner)
                .map_err(io_failed(maps::RINGS))?;
        }
        Ok(())
    }

    pub(crate) fn drop_ring(&mut self, service: u16) -> Result<(), Error> {
        sys::delete_inner_map(self.rings_data.fd().as_fd(), service.into())
            .map_err(io_failed(maps::RINGS))
    }

    pub(crate) fn config(&self) -> Result<Config, Error> {
        self.config.get(&0, 0).map_err(failed(maps::CONFIG))
    }

    pub(crate) fn put_config(&mut self, config: Config) -> Result<(), Error> {
        self.config.set(0, config, 0).map_err(failed(maps::CONFIG))
    }

    pub(crate) fn put_endpoint(&mut self, mac: Mac, endpoint: Endpoint) -> Result<(), Error> {
        let key = endpoint_key(mac);
        self.endpoints.insert(key, endpoint, 0).map_err(failed(maps::ENDPOINTS))
    }

    pub(crate) fn drop_endpoint(&mut self, mac: Mac) -> Result<(), Error> {
        remove(&mut self.endpoints, &endpoint_key(mac), maps::ENDPOINTS)
    }

    /// The local tasks by MAC.
    pub(crate) fn endpoints(&self) -> BTreeMap<Mac, Endpoint> {
        self.endpoints.iter().filter_map(Result::ok).map(|(key, value)| (key.mac, value)).collect()
    }

    /// Takes over the tasks that another release's maps hold and `right` knows. A task that is
    /// there already stays as it is.
    pub(crate) fn adopt_endpoints(
        &mut self,
        pins: &Path,
        right: impl Fn(&Endpoint) -> bool,
    ) -> Result<usize, Error> {
        let data =
            MapData::from_pin(pins.join(maps::ENDPOINTS)).map_err(failed(maps::ENDPOINTS))?;
        let map = Map::from_map_data(data).map_err(failed(maps::ENDPOINTS))?;
        // Of another size, they cannot be read.
        let old: HashMap<MapData, EndpointKey, Endpoint> =
            map.try_into().map_err(failed(maps::ENDPOINTS))?;
        let mut adopted = 0;
        for (key, endpoint) in old.iter().filter_map(Result::ok) {
            if right(&endpoint) && self.endpoints.get(&key, 0).is_err() {
                self.endpoints.insert(key, endpoint, 0).map_err(failed(maps::ENDPOINTS))?;
                adopted += 1;
            }
        }
        Ok(adopted)
    }

    /// Forgets all flows of these tasks, and says how many there were.
    pub(crate) fn drop_flows(&mut self, tasks: &BTreeSet<Address>) -> Result<usize, Error> {
        let mut theirs = Vec::new();
        sys::walk_hash::<FlowKey, Flow>(self.flows.map().fd().as_fd(), |keys| {
            theirs.extend(keys.iter().filter(|key| tasks.contains(&key.task)));
        })
        .map_err(io_failed(maps::FLOWS))?;
        for flow in &theirs {
            remove(&mut self.flows, flow, maps::FLOWS)?;
        }
        Ok(theirs.len())
    }

    /// Packets and bytes by reason, for the reasons that occurred.
    pub(crate) fn counters(&self) -> Result<BTreeMap<String, (u64, u64)>, Error> {
        let mut counters = BTreeMap::new();
        for reason in Reason::ALL {
            let sum = sum(&self.counters, reason.index(), maps::COUNTERS)?;
            if sum != (0, 0) {
                counters.insert(reason.name().to_owned(), sum);
            }
        }
        Ok(counters)
    }

    /// Packets and bytes that clients sent to one service through this node.
    pub(crate) fn service_counter(&self, service: u16) -> Result<(u64, u64), Error> {
        sum(&self.services, service.into(), maps::SERVICES)
    }
}

fn filled_ring(slots: &[Slot]) -> Result<Array<MapData, Ring>, Error> {
    let mut ring = Box::new(Ring { slots: [Slot::default(); RING_SIZE] });
    for (to, from) in ring.slots.iter_mut().zip(slots) {
        *to = *from;
    }
    let mut inner: Array<MapData, Ring> = Array::create(1, 0).map_err(failed(maps::RINGS))?;
    inner.set(0, ring.as_ref(), 0).map_err(failed(maps::RINGS))?;
    Ok(inner)
}

fn sum(
    map: &PerCpuArray<MapData, Counter>,
    index: u32,
    name: &'static str,
) -> Result<(u64, u64), Error> {
    let values = map.get(&index, 0).map_err(failed(name))?;
    let add = |(packets, bytes): (u64, u64), counter: &Counter| {
        (packets + counter.packets, bytes + counter.bytes)
    };
    Ok(values.iter().fold((0, 0), add))
}

/// Removes a key; that it is gone already is no error.
pub(crate) fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), Error> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(error) => Err(failed(name)(error)),
    }
}

pub(crate) fn fd<V: aya::Pod>(map: &Array<MapData, V>) -> BorrowedFd<'_> {
    map.map().fd().as_fd()
}
