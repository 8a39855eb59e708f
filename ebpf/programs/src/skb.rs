//! A packet in TC as the datapath's socket buffer.
//!
//! `BPF_PROG_TEST_RUN` can neither put a packet in a tunnel nor show where a redirection leads. So
//! with [`TEST`] set to one by the test bed, what would come from the tunnel is read from the control
//! block, and what was decided is noted there besides being done. As the daemon
//! loads the programs, the verifier removes those branches.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_ZERO_CSUM_TX, TC_ACT_SHOT,
        TC_ACT_UNSPEC, bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1, bpf_tunnel_key__bindgen_ty_2,
        bpf_tunnel_key__bindgen_ty_3,
    },
    helpers::{
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key,
    },
    programs::TcContext,
};
use shoal_datapath::{
    Packet, Tunnel, Verdict,
    abi::Address,
    packet::{Protocol, WRITABLE, mapped, unmapped},
};

/// One when the test bed has loaded the programs. Any other value means "no"; this one occurs
/// nowhere else, because the compiler lets equal constants share their memory, and whoever looked
/// up a map's key 0 by reference would then look up what the loader wrote here.
#[unsafe(no_mangle)]
static TEST: Global<u32> = Global::new(0x6e6f_7465);

/// `PACKET_HOST` of the kernel: addressed to this host.
const PACKET_HOST: u32 = 0;

/// Words of the control block in tests: VNI and remote address, in and out; what is redirected
/// how, and where to; whether the frame is another host's or tagged, and for which VLAN.
mod note {
    pub const VNI: usize = 0;
    pub const REMOTE: usize = 1;
    pub const KIND: usize = 2;
    pub const INTERFACE: usize = 3;
    pub const FRAME: usize = 4;
    pub const OTHER_HOST: u32 = 1;
    pub const TAGGED: u32 = 2;
    pub const VLAN: u32 = 16;
}

/// A packet in the kernel's stack.
pub struct Skb {
    ctx: TcContext,
}

impl Skb {
    /// Wraps the program's context and makes the headers readable.
    ///
    /// After GRO or out of a tunnel the first bytes may lie in a fragment of the buffer.
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        if ctx.data() + WRITABLE > ctx.data_end() {
            let length = ctx.len();
            let wanted = if length < WRITABLE as u32 { length } else { WRITABLE as u32 };
            // A failure leaves the packet short, which the datapath sees.
            let _ = ctx.skb.pull_data(wanted);
        }
        Self { ctx }
    }

    /// Does what the verdict says.
    #[inline(always)]
    pub fn act(&mut self, verdict: Verdict) -> i32 {
        match verdict {
            // Not "ok", which would end the chain: others may have programs at this hook, too.
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Redirect(interface) => {
                self.note_way(1, interface);
                // SAFETY: the helpers take numbers, and no pointer but a null one.
                unsafe { bpf_redirect(interface, 0) as i32 }
            }
            Verdict::Peer(interface) => {
                self.note_way(2, interface);
                // SAFETY: as above.
                unsafe { bpf_redirect_peer(interface, 0) as i32 }
            }
            Verdict::Neighbour(interface) => {
                self.note_way(3, interface);
                // SAFETY: as above.
                unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 }
            }
            _ => TC_ACT_SHOT as i32,
        }
    }

    /// Notes where a packet was sent; only in the arm that sends it, because elsewhere there is no
    /// such number and the compiler would read it all the same.
    #[inline(always)]
    fn note_way(&mut self, kind: u32, interface: u32) {
        if TEST.load() == 1 {
            self.note(note::KIND, kind);
            self.note(note::INTERFACE, interface);
        }
    }

    #[inline(always)]
    fn noted(&self, word: usize) -> u32 {
        // SAFETY: the context is valid as long as the program runs; `word` is below five. Volatile,
        // because the verifier refuses a context's field whose offset is computed.
        unsafe { (&raw const (*self.ctx.skb.skb).cb[word]).read_volatile() }
    }

    #[inline(always)]
    fn note(&mut self, word: usize, value: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.ctx.skb.skb).cb[word]).write_volatile(value) };
    }

    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }
}

impl Packet for Skb {
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
        self.ctx.len() >= bytes
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is valid as long as the program runs.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }
}

impl shoal_datapath::Skb for Skb {
    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context is valid as long as the program runs.
        match unsafe { (*self.ctx.skb.skb).gso_segs } {
            0 => 1,
            segments => segments,
        }
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        if TEST.load() == 1 {
            return self.noted(note::FRAME) & note::OTHER_HOST == 0;
        }
        // SAFETY: the context is valid as long as the program runs.
        unsafe { (*self.ctx.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn vlan(&self) -> Option<u16> {
        if TEST.load() == 1 {
            let frame = self.noted(note::FRAME);
            let vlan = (frame >> note::VLAN) as u16;
            return if frame & note::TAGGED == 0 { None } else { Some(vlan) };
        }
        // SAFETY: the context is valid as long as the program runs.
        let (tagged, tag) =
            unsafe { ((*self.ctx.skb.skb).vlan_present, (*self.ctx.skb.skb).vlan_tci) };
        // Above the number are priority and eligibility.
        if tagged == 0 { None } else { Some(tag as u16 & 0x0fff) }
    }

    #[inline(always)]
    fn claim(&mut self) {
        // SAFETY: no reference into the packet outlives the exclusive borrow of `self`.
        unsafe { bpf_skb_change_type(self.skb(), PACKET_HOST) };
    }

    #[inline(always)]
    fn tunnel(&self) -> Option<Tunnel> {
        if TEST.load() == 1 {
            let (vni, remote) = (self.noted(note::VNI), self.noted(note::REMOTE));
            let tunnel = Tunnel { vni, remote: mapped(remote.to_be_bytes()) };
            return if vni == 0 { None } else { Some(tunnel) };
        }
        let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
        let size = size_of_val(&key) as u32;
        // SAFETY: the helper fills as many bytes as it is told, also when it fails.
        let rc = unsafe { bpf_skb_get_tunnel_key(self.skb(), key.as_mut_ptr(), size, 0) };
        if rc != 0 {
            return None;
        }
        // SAFETY: filled.
        let key = unsafe { key.assume_init_ref() };
        // SAFETY: without the IPv6 flag the kernel answers for IPv4 tunnels only.
        let remote = unsafe { key.__bindgen_anon_1.remote_ipv4 };
        Some(Tunnel { vni: key.tunnel_id, remote: mapped(remote.to_be_bytes()) })
    }

    #[inline(always)]
    fn set_tunnel(&mut self, tunnel: &Tunnel, local: &Address) -> bool {
        let remote = u32::from_be_bytes(unmapped(&tunnel.remote));
        if TEST.load() == 1 {
            self.note(note::VNI, tunnel.vni);
            self.note(note::REMOTE, remote);
        }
        let local = u32::from_be_bytes(unmapped(local));
        // Field by field: for a key zeroed whole the compiler calls a loop over all its bytes.
        let mut key = bpf_tunnel_key {
            tunnel_id: tunnel.vni,
            __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: [remote, 0, 0, 0] },
            tunnel_tos: 0,
            tunnel_ttl: 64,
            __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
            tunnel_label: 0,
            __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 { local_ipv6: [local, 0, 0, 0] },
        };
        // SAFETY: the helper reads at most the size that it is told.
        let rc = unsafe {
            bpf_skb_set_tunnel_key(
                self.skb(),
                &raw mut key,
                size_of_val(&key) as u32,
                u64::from(BPF_F_ZERO_CSUM_TX),
            )
        };
        rc == 0
    }

    #[inline(always)]
    fn replace_address_sum(&mut self, protocol: Protocol, from: u32, to: u32) -> bool {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | 4 | mangled(protocol);
        self.replace_sum(protocol, u64::from(from.to_be()), u64::from(to.to_be()), flags)
    }

    #[inline(always)]
    fn replace_port_sum(&mut self, protocol: Protocol, from: u32, to: u32) -> bool {
        let flags = 4 | mangled(protocol);
        self.replace_sum(protocol, u64::from(from.to_be()), u64::from(to.to_be()), flags)
    }
}

impl Skb {
    #[inline(always)]
    fn replace_sum(&mut self, protocol: Protocol, from: u64, to: u64, flags: u64) -> bool {
        let offset = protocol.checksum() as u32;
        // SAFETY: no reference into the packet outlives the exclusive borrow of `self`.
        unsafe { bpf_l4_csum_replace(self.skb(), offset, from, to, flags) == 0 }
    }
}

/// UDP's checksum of zero means "none": it stays, and no computed one becomes it.
#[inline(always)]
fn mangled(protocol: Protocol) -> u64 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => u64::from(BPF_F_MARK_MANGLED_0),
    }
}
