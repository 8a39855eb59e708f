//! What tests and benchmarks load beside the datapath: programs that do nothing, and the prelude.
//!
//! `BPF_PROG_TEST_RUN` runs a program many times on one packet, which it does not restore in
//! between. The prelude does: it brings length and first bytes back, puts the next of N clients
//! in, and calls the program under test. The cost of the prelude alone is measured with the
//! program that does nothing.
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    btf_maps::{Array, ProgramArray},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Bytes that the prelude restores.
const RESTORED: usize = 64;

/// What the prelude restores, and where it stands.
#[repr(C)]
pub struct State {
    /// First bytes of the packet.
    head: [u64; RESTORED / 8],
    /// First words of the control block.
    note: [u32; 2],
    /// Packets so far.
    runs: u32,
    /// Zero.
    pad: u32,
}

// Written by the loader; the values here occur nowhere else, because the compiler lets equal
// constants share their memory.

/// The packet's length.
#[unsafe(no_mangle)]
static LENGTH: Global<u32> = Global::new(0x6c65_6e67);
/// Flows less one; flows are a power of two.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u32> = Global::new(0x6d61_736b);
/// One when the client is the destination: the packet is a reply.
#[unsafe(no_mangle)]
static REPLY: Global<u32> = Global::new(0x7265_706c);

#[btf_map]
static STATE: Array<State, 1> = Array::new();
/// Slot 0 holds the program under test: XDP's and TC's cannot share an array.
#[btf_map]
static XDP_UNDER_TEST: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static TC_UNDER_TEST: ProgramArray<1> = ProgramArray::new();

/// Does nothing, also at the far end of a veth whose near end answers by `XDP_TX`.
#[xdp(frags)]
pub fn empty_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Does nothing.
#[classifier]
pub fn empty_tc(_ctx: TcContext) -> i32 {
    TC_ACT_OK as i32
}

/// Restores the packet and calls the XDP program under test.
#[xdp(frags)]
pub fn prelude_xdp(ctx: XdpContext) -> u32 {
    // SAFETY: the helper reads the context that the program was given.
    let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) } as i32;
    // Also when nothing has to go, so that every program under test finds the same cost before it.
    // SAFETY: no reference into the packet exists yet.
    unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), length - LENGTH.load() as i32) };
    if restore(ctx.data(), ctx.data_end()).is_some() {
        // SAFETY: does not return unless the slot is empty.
        unsafe { XDP_UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Restores the packet and calls the TC program under test.
#[classifier]
pub fn prelude_tc(ctx: TcContext) -> i32 {
    if let Some(state) = restore(ctx.data(), ctx.data_end()) {
        let skb = ctx.skb.skb;
        // SAFETY: the context is valid as long as the program runs.
        unsafe {
            (*skb).cb[0] = state.note[0];
            (*skb).cb[1] = state.note[1];
        }
        // SAFETY: does not return unless the slot is empty.
        unsafe { TC_UNDER_TEST.tail_call(&ctx, 0) };
    }
    TC_ACT_SHOT as i32
}

/// Restores the first bytes and puts the next client in.
#[inline(always)]
fn restore(data: usize, end: usize) -> Option<&'static State> {
    let state = STATE.get_ptr_mut(0)?;
    if data + RESTORED > end {
        return None;
    }
    // SAFETY: one test runs at a time; the packet's bytes lie before its end.
    unsafe {
        let runs = (*state).runs.wrapping_add(1);
        (*state).runs = runs;
        let flow = (runs & FLOW_MASK.load()) as u16;
        let packet = data as *mut [u8; RESTORED];
        let words = data as *mut u64;
        for (i, word) in (*state).head.iter().enumerate() {
            words.add(i).write_unaligned(*word);
        }
        // The low bits change the port, so that one address has 256 flows.
        let [high, low] = flow.to_be_bytes();
        let (address, port) = if REPLY.load() != 1 { (26, 34) } else { (30, 36) };
        (*packet)[address + 3] = high;
        (*packet)[port + 1] = low;
        Some(&*state)
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panic path is compiled in: a program that had one would not verify.
    unsafe { core::hint::unreachable_unchecked() }
}
