//! The cases, by hook.

mod flows;
mod ingress_tc;
mod ingress_xdp;
mod malformed;
mod mesh_tc;
mod task_tc;

use super::{Case, packet::Packet, packet::frame, world::*};

/// All cases.
pub fn all() -> Vec<Case> {
    [
        ingress_xdp::cases(),
        ingress_tc::cases(),
        mesh_tc::cases(),
        task_tc::cases(),
        flows::cases(),
        malformed::cases(),
    ]
    .concat()
}

/// A client's TCP segment to this node.
fn request(port: u16) -> Packet {
    from_client().tcp(40_000, port).payload(b"GET / HTTP/1.1")
}

/// A client's datagram to this node.
fn datagram(port: u16) -> Packet {
    from_client().udp(40_000, port).payload(b"question")
}

/// The frame that brings a client's packet to this node.
fn from_client() -> Packet {
    frame(UPLINK_MAC, ROUTER_MAC).ipv4(CLIENT, HERE)
}
