//! Lets aya copy the map keys and values as plain bytes; only with the feature `user`.
#![allow(unsafe_code, reason = "aya's marker for plain bytes is an unsafe trait")]

use crate::abi::{
    Backend, Config, Counter, Endpoint, EndpointKey, Flow, FlowKey, Frontend, Node, Ring, Slot,
};

macro_rules! plain_bytes {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)` of integers and byte arrays; the size asserted beside the type
            // leaves no room for implicit padding, and every bit pattern is a value.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

plain_bytes!(
    Backend,
    Config,
    Counter,
    Endpoint,
    EndpointKey,
    Flow,
    FlowKey,
    Frontend,
    Node,
    Ring,
    Slot,
);
