//! The hash that places a client in a ring, and what is taken from it.
//!
//! It mixes the client's address and port with the service's number and nothing else: the address
//! of the ingress node stays out, so that every node sends a client to the same backend. Address
//! and numbers pass through the multiply-and-shift rounds of a 64-bit finaliser: each input bit
//! flips about half of the result. It is not keyed: who may choose the own port can choose the
//! slot, as in every unseeded Maglev.

use crate::abi::{Address, RING_SIZE};

/// First and second odd multiplier of the finaliser.
///
/// Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, with
/// the constants known as "Mix13".
const MULTIPLIERS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// Hash of a client and the service that it asks.
///
/// * `port` - as read from the packet's bytes, big endian.
#[inline(always)] // as a call, the address would have to go through the stack
#[must_use]
pub fn hash(client: &Address, port: u16, service: u16) -> u32 {
    let [high, low] = halves(client);
    // For an IPv4 address the first round is of constants, and gone.
    let mut mixed = round(high, 0);
    mixed = round(mixed ^ low, 1);
    mixed = round(mixed ^ (u64::from(port) << 16 | u64::from(service)), 0);
    mixed = mixed.wrapping_mul(MULTIPLIERS[1]);
    (mixed >> 32) as u32
}

/// The slot of a hash, `0..RING_SIZE`.
///
/// Takes the hash as a fraction of the ring: as even as a remainder, without its division.
#[inline(always)]
#[must_use]
pub fn slot(hash: u32) -> usize {
    ((u64::from(hash) * RING_SIZE as u64) >> 32) as usize
}

/// UDP source port of the outer packet: spreads flows over paths and receive queues.
///
/// From the low bits, since [`slot`] takes the high ones.
#[inline(always)]
#[must_use]
pub fn source_port(hash: u32) -> u16 {
    0xc000 | (hash & 0x3fff) as u16
}

/// The port that the task sees for a client that uses its own for another frontend already.
///
/// From 1024 up to the half, below what Linux, Windows and BSD give their clients, so that it seldom
/// is another flow's; and never the client's own.
/// It depends on nothing that may change while the flow lives, so that a flow that was forgotten
/// finds the same one again. Only the backend node uses it.
///
/// * `port`, `frontend_port` - as read from the packet's bytes, big endian.
#[inline(always)]
#[must_use]
pub fn alternate_port(port: u16, frontend: u32, frontend_port: u16) -> u16 {
    let all = u64::from(frontend) << 32 | u64::from(frontend_port) << 16 | u64::from(port);
    let mixed = round(round(all, 0), 1).wrapping_mul(MULTIPLIERS[0]);
    // A sixteen-bit fraction of the range; the mask takes nothing away.
    let fraction = ((mixed >> 48) * (0x8000 - 0x400)) >> 16;
    let alternate = 0x400 + (fraction & 0x7fff) as u16;
    if alternate == port { alternate ^ 1 } else { alternate }
}

#[inline(always)]
fn round(value: u64, which: usize) -> u64 {
    let value = value.wrapping_mul(MULTIPLIERS[which]);
    value ^ value >> 32
}

#[inline(always)]
fn halves(address: &Address) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}
