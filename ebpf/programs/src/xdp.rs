//! A packet in XDP as the datapath's frame.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use shoal_datapath::{Packet, Verdict};

/// A packet at the driver.
pub struct Frame {
    ctx: XdpContext,
}

impl Frame {
    /// Wraps the program's context.
    pub const fn new(ctx: XdpContext) -> Self {
        Self { ctx }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        let start = self.ctx.data();
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: the bytes lie before `data_end`, and the borrow ends before the packet changes.
        Some(unsafe { &*(start as *const [u8; N]) })
    }

    #[inline(always)]
    fn head_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let start = self.ctx.data();
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: as above; the borrow is exclusive.
        Some(unsafe { &mut *(start as *mut [u8; N]) })
    }

    #[inline(always)]
    fn holds(&self, bytes: u32) -> bool {
        if self.length() >= bytes {
            return true;
        }
        // Only a packet of several pages has more than its first part.
        // SAFETY: the helper reads the context that the program was given.
        unsafe { bpf_xdp_get_buff_len(self.ctx.as_ptr().cast()) >= u64::from(bytes) }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        (self.ctx.data_end() - self.ctx.data()) as u32
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }
}

impl shoal_datapath::Frame for Frame {
    #[inline(always)]
    fn grow(&mut self, bytes: u32) -> bool {
        // SAFETY: no reference into the packet outlives the exclusive borrow of `self`.
        unsafe { bpf_xdp_adjust_head(self.ctx.as_ptr().cast(), -(bytes as i32)) == 0 }
    }
}

/// What XDP answers for a verdict; it knows no other interface than the one it runs at.
#[inline(always)]
pub fn act(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => XDP_PASS,
        Verdict::Transmit => XDP_TX,
        _ => XDP_DROP,
    }
}
