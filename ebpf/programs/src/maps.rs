//! The maps, and the datapath's tables in them.
//!
//! References into arrays stay valid as long as a program runs. An entry of a hash map may be
//! reused for another key while a program looks at it; the packets of that moment are lost
//! with the entry that went, and nothing else. The end of a flow may be noted in such an entry: a
//! newcomer then finds a port free that is not, and costs one connection.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use shoal_datapath::{
    End, Reason, Tables,
    abi::{
        ADDRESSES_MAX, Address, BACKENDS_MAX, Backend, COUNTERS_MAX, Config, Counter,
        ENDPOINTS_MAX, Endpoint, EndpointKey, FLOWS_MAX, FRONTENDS_MAX, Flow, FlowKey, Frontend,
        NODES_MAX, Node, Ring, SERVICES_MAX, Slot,
    },
};

#[btf_map]
static FRONTENDS: Array<Frontend, { FRONTENDS_MAX as usize }> = Array::new();
#[btf_map]
static ADDRESSES: HashMap<Address, u32, { ADDRESSES_MAX as usize }> = HashMap::new();
#[btf_map]
static RINGS: ArrayOfMaps<Array<Ring, 1>, { SERVICES_MAX as usize }> = ArrayOfMaps::new();
#[btf_map]
static BACKENDS: Array<Backend, { BACKENDS_MAX as usize }> = Array::new();
#[btf_map]
static NODES: Array<Node, { NODES_MAX as usize }> = Array::new();
#[btf_map]
static NODE_NUMBERS: HashMap<Address, u32, { NODES_MAX as usize }> = HashMap::new();
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, { ENDPOINTS_MAX as usize }> = HashMap::new();
#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, { FLOWS_MAX as usize }> = LruHashMap::new();
#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counter, { COUNTERS_MAX as usize }> = PerCpuArray::new();
#[btf_map]
static SERVICES: PerCpuArray<Counter, { SERVICES_MAX as usize }> = PerCpuArray::new();

/// An address on the stack, written in words: for bytes the compiler would call a loop.
struct Aligned([u64; 2]);

impl Aligned {
    #[inline(always)]
    fn new(address: &Address) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        let high = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        Self([high, u64::from_ne_bytes([i, j, k, l, m, n, o, p])])
    }

    #[inline(always)]
    fn bytes(&self) -> &Address {
        // SAFETY: two words are sixteen bytes, and bytes may lie anywhere.
        unsafe { &*(&raw const self.0).cast() }
    }
}

/// All maps as the datapath's tables.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn frontend(&self, index: u32) -> Option<&Frontend> {
        FRONTENDS.get(index)
    }

    #[inline(always)]
    fn serves(&self, address: &Address) -> bool {
        ADDRESSES.get_ptr(Aligned::new(address).bytes()).is_some()
    }

    #[inline(always)]
    fn slot(&self, service: u16, index: usize) -> Option<Slot> {
        let only = 0;
        RINGS.get_value(u32::from(service), &only)?.slots.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, number: u16) -> Option<&Backend> {
        BACKENDS.get(u32::from(number))
    }

    #[inline(always)]
    fn node(&self, number: u16) -> Option<&Node> {
        NODES.get(u32::from(number))
    }

    #[inline(always)]
    fn node_number(&self, address: &Address) -> Option<u32> {
        // SAFETY: copied out before anything else runs.
        unsafe { NODE_NUMBERS.get(Aligned::new(address).bytes()) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        // SAFETY: the memory stays; see the header for what it may say.
        unsafe { ENDPOINTS.get(key) }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        // SAFETY: the memory stays; see the header for what it may say.
        unsafe { FLOWS.get(key) }
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, flow: &Flow) -> bool {
        FLOWS.insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn end(&self, key: &FlowKey, end: End, how: u8) {
        if let Some(flow) = FLOWS.get_ptr_mut(key) {
            // SAFETY: the memory stays; see the header for what it may say. Each end has a byte of
            // its own, and whoever writes it means what it says.
            unsafe {
                match end {
                    End::Client => (*flow).client_end = how,
                    End::Task => (*flow).task_end = how,
                }
            }
        }
    }

    #[inline(always)]
    fn count(&self, reason: Reason, add: Counter) {
        if let Some(counter) = COUNTERS.get_ptr_mut(reason.index()) {
            increase(counter, add);
        }
    }

    #[inline(always)]
    fn count_service(&self, service: u16, add: Counter) {
        if let Some(counter) = SERVICES.get_ptr_mut(u32::from(service)) {
            increase(counter, add);
        }
    }
}

/// Adds to a counter of this CPU.
#[inline(always)]
fn increase(counter: *mut Counter, add: Counter) {
    // SAFETY: the pointer is to this CPU's value of a preallocated map. A program that interrupts
    // this one here may cost a count, never memory.
    unsafe {
        (*counter).packets = (*counter).packets.wrapping_add(add.packets);
        (*counter).bytes = (*counter).bytes.wrapping_add(add.bytes);
    }
}
