//! Builds packets so that a case reads as the packet it is about.
//!
//! All lengths and checksums are computed anew over the whole packet, never by the code under
//! test, unless a case asks for a wrong one.

use std::net::Ipv4Addr;

use shoal_datapath::abi::Mac;
use shoal_datapath::packet::ACK;

/// TCP: what came is to be handed on at once.
const PSH: u8 = 8;

/// A frame under construction.
#[derive(Clone, Debug)]
pub struct Packet {
    destination: Mac,
    source: Mac,
    ethertype: u16,
    ip: Option<Ip>,
    transport: Transport,
    payload: Vec<u8>,
    /// Cut to this many bytes in the end.
    cut: Option<usize>,
    /// Zeros behind the packet, as Ethernet's smallest frame has.
    padding: usize,
}

/// An IPv4 header.
#[derive(Clone, Debug)]
struct Ip {
    version: u8,
    /// Words of the header; those above five are options.
    words: u8,
    service: u8,
    length: Option<u16>,
    id: u16,
    fragment: u16,
    hops: u8,
    protocol: Option<u8>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

/// What IPv4 carries.
#[derive(Clone, Debug)]
enum Transport {
    /// The payload alone.
    None,
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
    },
    Udp {
        source: u16,
        destination: u16,
        checksum: bool,
    },
}

/// An Ethernet frame.
pub fn frame(destination: Mac, source: Mac) -> Packet {
    Packet {
        destination,
        source,
        ethertype: 0x0800,
        ip: None,
        transport: Transport::None,
        payload: Vec::new(),
        cut: None,
        padding: 0,
    }
}

impl Packet {
    /// IPv4 from one address to another.
    #[must_use]
    pub fn ipv4(mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        self.ip = Some(Ip {
            version: 4,
            words: 5,
            service: 0,
            length: None,
            id: 0x1234,
            fragment: 0x4000,
            hops: 64,
            protocol: None,
            source,
            destination,
        });
        self
    }

    /// TCP from one port to another, within a connection.
    #[must_use]
    pub fn tcp(self, source: u16, destination: u16) -> Self {
        self.tcp_with(PSH | ACK, source, destination)
    }

    /// TCP from one port to another, with these flags.
    #[must_use]
    pub fn tcp_with(mut self, flags: u8, source: u16, destination: u16) -> Self {
        self.transport = Transport::Tcp { source, destination, flags };
        self
    }

    /// UDP from one port to another.
    #[must_use]
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { source, destination, checksum: true };
        self
    }

    /// UDP that leaves its checksum out.
    #[must_use]
    pub fn udp_without_checksum(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { source, destination, checksum: false };
        self
    }

    /// What it carries.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// A frame in VXLAN.
    #[must_use]
    pub fn vxlan(mut self, vni: u32, inner: &Self) -> Self {
        self.payload = vec![0x08, 0, 0, 0];
        self.payload.extend((vni << 8).to_be_bytes());
        self.payload.extend(inner.bytes());
        self
    }

    /// Another type of frame.
    #[must_use]
    pub const fn ethertype(mut self, ethertype: u16) -> Self {
        self.ethertype = ethertype;
        self
    }

    /// Another version of IP, in the same header.
    #[must_use]
    pub fn version(self, version: u8) -> Self {
        self.with_ip(|ip| ip.version = version)
    }

    /// A header of so many words: options above five, nonsense below.
    #[must_use]
    pub fn header_words(self, words: u8) -> Self {
        self.with_ip(|ip| ip.words = words)
    }

    /// The type of service: DSCP and congestion bits.
    #[must_use]
    pub fn service(self, service: u8) -> Self {
        self.with_ip(|ip| ip.service = service)
    }

    /// The length that the header claims.
    #[must_use]
    pub fn claims_length(self, length: u16) -> Self {
        self.with_ip(|ip| ip.length = Some(length))
    }

    /// Flags and offset of fragmentation.
    #[must_use]
    pub fn fragment(self, fragment: u16) -> Self {
        self.with_ip(|ip| ip.fragment = fragment)
    }

    /// The identification.
    #[must_use]
    pub fn id(self, id: u16) -> Self {
        self.with_ip(|ip| ip.id = id)
    }

    /// Hops left.
    #[must_use]
    pub fn hops(self, hops: u8) -> Self {
        self.with_ip(|ip| ip.hops = hops)
    }

    /// Another protocol's number.
    #[must_use]
    pub fn protocol(self, protocol: u8) -> Self {
        self.with_ip(|ip| ip.protocol = Some(protocol))
    }

    /// The frame's MACs.
    #[must_use]
    pub const fn between(mut self, destination: Mac, source: Mac) -> Self {
        self.destination = destination;
        self.source = source;
        self
    }

    /// Only the first bytes.
    #[must_use]
    pub const fn cut_to(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// Zeros behind it.
    #[must_use]
    pub const fn padded_by(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.destination, self.source].concat();
        bytes.extend(self.ethertype.to_be_bytes());
        match &self.ip {
            Some(ip) => bytes.extend(self.ip_packet(ip)),
            None => bytes.extend(&self.payload),
        }
        bytes.resize(bytes.len() + self.padding, 0);
        if let Some(cut) = self.cut {
            bytes.truncate(cut);
        }
        bytes
    }

    fn with_ip(mut self, change: impl FnOnce(&mut Ip)) -> Self {
        change(self.ip.as_mut().expect("the frame was given an IPv4 header before"));
        self
    }

    fn ip_packet(&self, ip: &Ip) -> Vec<u8> {
        let transport = self.transport(ip);
        let options = usize::from(ip.words.saturating_sub(5)) * 4;
        // Longer ones, which the kernel makes of many segments, say zero.
        let whole = u16::try_from(20 + options + transport.len()).unwrap_or(0);
        let protocol = ip.protocol.unwrap_or(match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::None => 1,
        });
        let mut header = vec![ip.version << 4 | ip.words, ip.service];
        header.extend(ip.length.unwrap_or(whole).to_be_bytes());
        header.extend(ip.id.to_be_bytes());
        header.extend(ip.fragment.to_be_bytes());
        header.extend([ip.hops, protocol, 0, 0]);
        header.extend(ip.source.octets());
        header.extend(ip.destination.octets());
        // No operation, the shortest option.
        header.resize(header.len() + options, 1);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(transport);
        header
    }

    fn transport(&self, ip: &Ip) -> Vec<u8> {
        let (mut bytes, sum_at, protocol) = match self.transport {
            Transport::None => return self.payload.clone(),
            Transport::Tcp { source, destination, flags } => {
                let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                bytes.extend(0x0102_0304_u32.to_be_bytes());
                bytes.extend(0x0506_0708_u32.to_be_bytes());
                bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                (bytes, 16, 6)
            }
            Transport::Udp { source, destination, .. } => {
                let length = u16::try_from(8 + self.payload.len()).expect("a datagram's length");
                let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
                (bytes, 6, 17)
            }
        };
        bytes.extend(&self.payload);
        if matches!(self.transport, Transport::Udp { checksum: false, .. }) {
            return bytes;
        }
        let length = u32::try_from(bytes.len()).expect("a segment's length");
        let mut summed = [ip.source.octets(), ip.destination.octets()].concat();
        summed.extend([0, protocol]);
        summed.extend(length.to_be_bytes());
        summed.extend(&bytes);
        let sum = match checksum(&summed) {
            0 if protocol == 17 => 0xffff,
            sum => sum,
        };
        bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The Internet checksum of bytes, the plain way.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
