//! A packet as the datapath sees it: who holds the bytes, where the headers are, what may be said
//! of them.
//!
//! Offsets are constants: Ethernet without a tag, IPv4 without options, then TCP or UDP. Whatever
//! looks otherwise is told apart here and never reaches a decision. The only bounds check is in
//! the accessors; a reference into the packet ends, by its lifetime, before the packet changes.

use crate::abi::{Address, Mac};

/// Bytes of Ethernet, IPv4 and the first eight of TCP or UDP: all that a decision reads.
pub const HEADERS: usize = 14 + 20 + 8;
/// Bytes up to the end of a TCP header without options: all that the datapath may change.
pub const WRITABLE: usize = 14 + 20 + 20;

/// Offset of the IPv4 header's checksum.
pub const IP_CHECKSUM: usize = 14 + 10;
/// Offset of TCP's checksum.
pub const TCP_CHECKSUM: usize = 14 + 20 + 16;
/// Offset of UDP's checksum.
pub const UDP_CHECKSUM: usize = 14 + 20 + 6;

/// Offset of TCP's flags.
pub const TCP_FLAGS: usize = 14 + 20 + 13;
/// TCP: all is sent.
pub const FIN: u8 = 1;
/// TCP: a connection begins.
pub const SYN: u8 = 2;
/// TCP: the connection is broken off.
pub const RST: u8 = 4;
/// TCP: the acknowledgement counts.
pub const ACK: u8 = 16;

/// Ethernet's type of IPv4.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// Ethernet's type of ARP.
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// IP's number of TCP.
pub const TCP: u8 = 6;
/// IP's number of UDP.
pub const UDP: u8 = 17;

/// What a hook does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it to whoever comes next: TC after XDP, the host's stack after TC.
    Pass,
    /// Drop it.
    Drop,
    /// Send it back out of the interface it came from.
    Transmit,
    /// Send it out of this interface as it is.
    Redirect(u32),
    /// Hand it to the other end of this veth, as if it had arrived there.
    Peer(u32),
    /// Send it out of this interface to the next hop that the kernel knows.
    Neighbour(u32),
}

/// What the outer headers of a packet in VXLAN say.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The far end: the source of what arrived, the destination of what leaves.
    pub remote: Address,
    /// Number of the virtual network.
    pub vni: u32,
}

/// A packet in any hook, from its Ethernet header on.
pub trait Packet {
    /// The first `N` bytes; `None` when the packet has fewer.
    fn head<const N: usize>(&self) -> Option<&[u8; N]>;

    /// The first `N` bytes, to be written.
    fn head_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]>;

    /// Whether the packet has this many bytes.
    fn holds(&self, bytes: u32) -> bool;

    /// Bytes of the packet, for the counters.
    fn length(&self) -> u32;

    /// Index of the interface it came in by.
    fn interface(&self) -> u32;
}

/// A packet in XDP, which may get room before it.
pub trait Frame: Packet {
    /// Puts `bytes` before the packet; false when there is no room.
    fn grow(&mut self, bytes: u32) -> bool;
}

/// A packet in TC, which may be of many segments and carry checksums not computed yet.
pub trait Skb: Packet {
    /// Packets on the wire that this one stands for.
    fn segments(&self) -> u32;

    /// Whether the frame was addressed to the interface's own MAC.
    fn is_for_this_host(&self) -> bool;

    /// Number of the VLAN that the frame came tagged for; 0 where only a priority was said.
    ///
    /// The kernel takes the tag off before TC and keeps it beside the packet, so the bytes do not
    /// show it; a redirected frame carries it on.
    fn vlan(&self) -> Option<u16>;

    /// Lets the stack behind the next interface take the frame as its own.
    fn claim(&mut self);

    /// The outer headers that it came in; `None` when it came in none.
    fn tunnel(&self) -> Option<Tunnel>;

    /// Chooses the outer headers that it leaves in; false when the kernel refuses.
    ///
    /// * `local` - the outer source address.
    fn set_tunnel(&mut self, tunnel: &Tunnel, local: &Address) -> bool;

    /// Keeps the protocol's checksum right while an address of the pseudo header changes.
    ///
    /// A UDP checksum of zero, "none", stays zero; a computed one never becomes zero.
    fn replace_address_sum(&mut self, protocol: Protocol, from: u32, to: u32) -> bool;

    /// Keeps the protocol's checksum right while the ports change, source and destination in one
    /// word.
    fn replace_port_sum(&mut self, protocol: Protocol, from: u32, to: u32) -> bool;
}

/// A protocol that the mesh carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its half of `FRONTENDS`.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        match self {
            Self::Tcp => 0,
            Self::Udp => 1,
        }
    }

    /// Its number in the IP header.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    /// Bytes of its smallest header.
    #[inline(always)]
    const fn header(self) -> u32 {
        match self {
            Self::Tcp => 20,
            Self::Udp => 8,
        }
    }

    /// Offset of its checksum.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(self) -> usize {
        match self {
            Self::Tcp => TCP_CHECKSUM,
            Self::Udp => UDP_CHECKSUM,
        }
    }
}

/// Index into `FRONTENDS`.
///
/// * `port` - host order.
#[inline(always)]
#[must_use]
pub const fn frontend_index(protocol: Protocol, port: u16) -> u32 {
    protocol.index() << 16 | port as u32
}

/// Most bytes that an IPv4 header can tell.
const LONGEST: u32 = 0xffff;

/// Why a packet is not one that the mesh carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Another protocol: none of our business.
    Foreign,
    /// A wrong or missing header, or lengths that contradict each other.
    Malformed,
    /// IP options.
    Options,
    /// A fragment.
    Fragment,
}

/// The headers of a whole IPv4 packet with TCP or UDP in it.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'p> {
    head: &'p [u8; HEADERS],
    /// What it carries.
    pub protocol: Protocol,
    /// The IP packet's own length in bytes, at most what the frame holds; the most that it can
    /// tell where segments were merged to more.
    pub length: u16,
}

impl<'p> Ipv4<'p> {
    /// Looks at the packet's headers.
    ///
    /// # Errors
    /// What keeps it from being carried.
    #[inline(always)] // as a call, the result would have to go through the stack
    pub fn parse<P: Packet>(packet: &'p P) -> Result<Self, Misfit> {
        let Some(head) = packet.head::<HEADERS>() else {
            return Err(short(packet));
        };
        if [head[12], head[13]] != ETHERTYPE_IPV4 {
            return Err(Misfit::Foreign);
        }
        let protocol = match head[23] {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => return Err(Misfit::Foreign),
        };
        match head[14] {
            0x45 => {}
            0x46..=0x4f => return Err(Misfit::Options),
            _ => return Err(Misfit::Malformed),
        }
        // More fragments to come, or an offset.
        if u16::from_be_bytes([head[20], head[21]]) & 0x3fff != 0 {
            return Err(Misfit::Fragment);
        }
        let length = u16::from_be_bytes([head[16], head[17]]);
        if u32::from(length) < 20 + protocol.header() || !packet.holds(14 + u32::from(length)) {
            // Segments that the kernel has put together may be more than the field can tell: then
            // it writes zero, and the packet is as long as its buffer.
            if length != 0 || !packet.holds(14 + LONGEST + 1) {
                return Err(Misfit::Malformed);
            }
            return Ok(Self { head, protocol, length: u16::MAX });
        }
        Ok(Self { head, protocol, length })
    }

    /// A copy of what network address translation needs, which outlives a change of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn headers(&self) -> Headers {
        let h = self.head;
        Headers {
            protocol: self.protocol,
            source: u32::from_be_bytes([h[26], h[27], h[28], h[29]]),
            destination: u32::from_be_bytes([h[30], h[31], h[32], h[33]]),
            source_port: self.source_port(),
            destination_port: self.destination_port(),
        }
    }

    /// Destination MAC of the frame.
    #[inline(always)]
    #[must_use]
    pub const fn destination_mac(&self) -> Mac {
        let h = self.head;
        [h[0], h[1], h[2], h[3], h[4], h[5]]
    }

    /// The two bits of explicit congestion notification.
    #[inline(always)]
    #[must_use]
    pub const fn congestion(&self) -> u8 {
        self.head[15] & 3
    }

    /// Source address.
    #[inline(always)]
    #[must_use]
    pub const fn source(&self) -> Address {
        let h = self.head;
        mapped([h[26], h[27], h[28], h[29]])
    }

    /// Destination address.
    #[inline(always)]
    #[must_use]
    pub const fn destination(&self) -> Address {
        let h = self.head;
        mapped([h[30], h[31], h[32], h[33]])
    }

    /// Source port.
    #[inline(always)]
    #[must_use]
    pub const fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.head[34], self.head[35]])
    }

    /// Destination port.
    #[inline(always)]
    #[must_use]
    pub const fn destination_port(&self) -> u16 {
        u16::from_be_bytes([self.head[36], self.head[37]])
    }
}

/// A packet's protocol, addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// What it carries.
    pub protocol: Protocol,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
}

impl Headers {
    /// Both ports as the word that they are in the packet.
    #[inline(always)]
    pub(crate) const fn ports(&self) -> u32 {
        both_ports(self.source_port, self.destination_port)
    }
}

/// Source and destination port as the word that they are in the packet.
#[inline(always)]
pub(crate) const fn both_ports(source: u16, destination: u16) -> u32 {
    (source as u32) << 16 | destination as u32
}

/// TCP's flags of a whole packet; none for UDP.
#[inline(always)]
pub(crate) fn tcp_flags<P: Packet>(packet: &P, protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => packet.head::<{ TCP_FLAGS + 1 }>().map_or(0, |head| head[TCP_FLAGS]),
        Protocol::Udp => 0,
    }
}

/// A MAC as the two words that it is copied in. Copies of bytes stay copies of bytes in a program,
/// six loads and six stores each.
pub(crate) type MacWords = (u32, u16);

#[inline(always)]
pub(crate) const fn mac_words(mac: &Mac) -> MacWords {
    let [a, b, c, d, e, f] = *mac;
    (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]))
}

/// Writes a MAC at a constant offset.
#[inline(always)]
pub(crate) fn put_mac<const N: usize>(to: &mut [u8; N], offset: usize, mac: MacWords) {
    put(to, offset, mac.0.to_ne_bytes());
    put(to, offset + 4, mac.1.to_ne_bytes());
}

/// Writes a word at a constant offset.
#[inline(always)]
pub(crate) fn put<const N: usize, const M: usize>(to: &mut [u8; N], offset: usize, word: [u8; M]) {
    to[offset..offset + M].copy_from_slice(&word);
}

/// The IPv4 address as a number, most significant byte first.
#[inline(always)]
pub(crate) const fn number(address: &Address) -> u32 {
    u32::from_be_bytes(unmapped(address))
}

/// An IPv4 address in 16 bytes.
#[inline(always)]
#[must_use]
pub const fn mapped(address: [u8; 4]) -> Address {
    // As one number, whose halves are stored: for zero bytes the compiler would call a loop.
    let address = u32::from_le_bytes(address) as u128;
    (address << 96 | 0xffff << 80).to_le_bytes()
}

/// The IPv4 address in 16 bytes.
#[inline(always)]
#[must_use]
pub const fn unmapped(address: &Address) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

/// Protocol and destination of what may be only a part of a packet: enough to tell whether it was
/// meant for a frontend. `None` when it carries no ports, as a later fragment.
#[inline(always)]
pub(crate) fn addressed<P: Packet>(packet: &P) -> Option<(Protocol, u16, Address)> {
    let head = packet.head::<38>()?;
    let protocol = match head[23] {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return None,
    };
    if u16::from_be_bytes([head[20], head[21]]) & 0x1fff != 0 {
        return None;
    }
    let port = u16::from_be_bytes([head[36], head[37]]);
    let address = mapped([head[30], head[31], head[32], head[33]]);
    Some((protocol, port, address))
}

/// What a packet too short for [`HEADERS`] is.
#[inline(always)]
fn short<P: Packet>(packet: &P) -> Misfit {
    match packet.head::<24>() {
        Some(head) if [head[12], head[13]] != ETHERTYPE_IPV4 => Misfit::Foreign,
        Some(head) if head[23] != TCP && head[23] != UDP => Misfit::Foreign,
        Some(_) => Misfit::Malformed,
        None => match packet.head::<14>() {
            Some(head) if [head[12], head[13]] == ETHERTYPE_IPV4 => Misfit::Malformed,
            _ => Misfit::Foreign,
        },
    }
}
