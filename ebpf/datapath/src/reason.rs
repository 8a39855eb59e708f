//! Why a packet went where it went: the index into `COUNTERS`.
//!
//! Each run of a program counts exactly one reason, so that a hook's counters add up to the
//! packets that it saw; the `Flow…` ones come on top.

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// Why a packet went where it went.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $variant = $number,)+
        }

        impl Reason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in metrics and traces.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

reasons! {
    /// XDP passed it: not for a frontend of this node.
    XdpForeign = 0, "xdp_foreign";
    /// XDP sent it on to the node of its backend.
    XdpForwarded = 1, "xdp_forwarded";
    /// XDP left it to TC: its backend runs here.
    XdpLocal = 2, "xdp_local";
    /// XDP left it to TC: a header is wrong or longer than the packet.
    XdpMalformed = 3, "xdp_malformed";
    /// XDP left it to TC: a fragment.
    XdpFragment = 4, "xdp_fragment";
    /// XDP left it to TC: IP options.
    XdpOptions = 5, "xdp_options";
    /// XDP left it to TC: the service has no backend.
    XdpNoBackend = 6, "xdp_no_backend";
    /// XDP left it to TC: no next hop is known, or it lies behind another interface.
    XdpNoNextHop = 7, "xdp_no_next_hop";
    /// XDP left it to TC: too big for the path with 50 bytes more.
    XdpTooBig = 8, "xdp_too_big";
    /// XDP left it to TC: the frame was not addressed to the uplink's MAC.
    XdpOtherHost = 9, "xdp_other_host";
    /// XDP left it to TC, or dropped it half-way: no room before the packet.
    XdpNoRoom = 10, "xdp_no_room";

    /// TC at the uplink passed it: not for a frontend of this node.
    TcForeign = 11, "tc_foreign";
    /// TC at the uplink sent it on to the node of its backend.
    TcForwarded = 12, "tc_forwarded";
    /// TC at the uplink gave it to a local task.
    TcDelivered = 13, "tc_delivered";
    /// TC at the uplink passed it: the service has no backend, the stack refuses.
    TcNoBackend = 14, "tc_no_backend";
    /// TC at the uplink passed it: IP options.
    TcOptions = 15, "tc_options";
    /// TC at the uplink dropped it: malformed, for a published port.
    TcMalformed = 16, "tc_malformed";
    /// TC at the uplink dropped it: a fragment for a published port.
    TcFragment = 17, "tc_fragment";
    /// TC at the uplink dropped it: the backend is on no node that is known.
    TcNoNode = 18, "tc_no_node";
    /// TC at the uplink dropped it: the backend's task is not here (yet, or any more).
    TcNoEndpoint = 19, "tc_no_endpoint";
    /// TC at the uplink dropped it: the kernel refused a change to the packet.
    TcRefused = 20, "tc_refused";

    /// TC at the VXLAN device gave it to a local task.
    MeshDelivered = 21, "mesh_delivered";
    /// TC at the VXLAN device sent a reply out to its client.
    MeshReturned = 22, "mesh_returned";
    /// TC at the VXLAN device dropped it: it did not come out of a tunnel.
    MeshNoTunnel = 23, "mesh_no_tunnel";
    /// TC at the VXLAN device dropped it: the outer source is no node of the cluster.
    MeshStranger = 24, "mesh_stranger";
    /// TC at the VXLAN device dropped it: a network that is not known.
    MeshUnknownVni = 25, "mesh_unknown_vni";
    /// TC at the VXLAN device dropped it: no task has the inner destination MAC.
    MeshNoEndpoint = 26, "mesh_no_endpoint";
    /// TC at the VXLAN device dropped it: the port is not published.
    MeshNotPublished = 27, "mesh_not_published";
    /// TC at the VXLAN device dropped it: malformed, tagged, a fragment, or neither TCP nor UDP.
    MeshMalformed = 28, "mesh_malformed";
    /// TC at the VXLAN device dropped it: a reply whose source is not this node's address.
    MeshForeignSource = 29, "mesh_foreign_source";
    /// TC at the VXLAN device dropped it: the kernel refused a change to the packet.
    MeshRefused = 30, "mesh_refused";

    /// TC at a task sent its reply back through the ingress node.
    TaskTunneled = 31, "task_tunneled";
    /// TC at a task sent its reply straight out: this node is the ingress node.
    TaskReplied = 32, "task_replied";
    /// TC at a task dropped it: ARP, which nothing of ours needs.
    TaskArp = 33, "task_arp";
    /// TC at a task dropped it: not IPv4.
    TaskNotIp = 34, "task_not_ip";
    /// TC at a task dropped it: the source address, MAC or interface is not the task's, or it is
    /// tagged for a VLAN.
    TaskSpoofed = 35, "task_spoofed";
    /// TC at a task dropped it: malformed, a fragment, or neither TCP nor UDP.
    TaskMalformed = 36, "task_malformed";
    /// TC at a task dropped it: it answers no flow.
    TaskNoFlow = 37, "task_no_flow";
    /// TC at a task dropped it: the ingress node is not known any more.
    TaskNoNode = 38, "task_no_node";
    /// TC at a task dropped it: the kernel refused a change to the packet.
    TaskRefused = 39, "task_refused";

    /// A program dropped or passed it: the node's configuration is not written yet.
    NoConfig = 40, "no_config";
    /// A program dropped it: no room for its flow.
    FlowLost = 41, "flow_lost";
    /// On top: a flow was seen for the first time.
    FlowNew = 42, "flow_new";
    /// On top: a flow came through another ingress node or frontend than before.
    FlowMoved = 43, "flow_moved";
    /// On top: a flow was seen for the first time and got another client port, because its client
    /// uses its own for another frontend of the task, too.
    FlowAlternate = 44, "flow_alternate";
    /// A program dropped it: a new flow for which that other port is taken as well.
    FlowClash = 45, "flow_clash";
    /// A program dropped it: a datagram from the underlay's VXLAN port, whose answer would arrive
    /// in another node's tunnel.
    FlowReflected = 46, "flow_reflected";
}

impl Reason {
    /// Index into `COUNTERS`.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

const _: () = assert!(Reason::ALL.len() <= crate::abi::COUNTERS_MAX as usize);
