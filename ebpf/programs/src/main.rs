//! The datapath's programs, one per hook: each binds a decision of `shoal-datapath` to the
//! kernel's packet and the maps, and acts on the verdict. No decision is made here.
#![no_std]
#![no_main]

mod maps;
mod skb;
mod xdp;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use maps::Maps;

/// Read by the kernel: which helpers the programs may call.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// XDP at the uplink. `frags`: packets of more than one page pass where the MTU allows them.
#[xdp(frags)]
pub fn ingress_xdp(ctx: XdpContext) -> u32 {
    xdp::act(shoal_datapath::ingress_xdp(&mut xdp::Frame::new(ctx), &Maps))
}

/// TC ingress at the uplink.
#[classifier]
pub fn ingress_tc(ctx: TcContext) -> i32 {
    let mut skb = skb::Skb::new(ctx);
    let verdict = shoal_datapath::ingress_tc(&mut skb, &Maps);
    skb.act(verdict)
}

/// TC ingress at the VXLAN device.
#[classifier]
pub fn mesh_tc(ctx: TcContext) -> i32 {
    let mut skb = skb::Skb::new(ctx);
    let verdict = shoal_datapath::mesh_tc(&mut skb, &Maps);
    skb.act(verdict)
}

/// TC ingress at the host's side of a task's veth.
#[classifier]
pub fn task_tc(ctx: TcContext) -> i32 {
    let mut skb = skb::Skb::new(ctx);
    let verdict = shoal_datapath::task_tc(&mut skb, &Maps);
    skb.act(verdict)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panic path is compiled in: a program that had one would not verify.
    unsafe { core::hint::unreachable_unchecked() }
}
