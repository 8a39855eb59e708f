//! The Internet checksum: of the header we build, and kept right when a word changes.
//!
//! Sums are ones' complement sums of 16-bit words (RFC 1071), here in big endian. A replaced word
//! is taken out and the new one put in (RFC 1624, equation 3). Only UDP tells the two zeros of such
//! a sum apart, and its sums are left to the kernel.

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    (((once & 0xffff) + (once >> 16)) & 0xffff) as u16
}

/// Checksum of an IPv4 header without options, given in words of 32 bits, its own field zero.
#[inline(always)]
#[must_use]
pub const fn of_header(header: [u32; 5]) -> u16 {
    let [a, b, c, d, e] = header;
    let sum = a as u64 + b as u64 + c as u64 + d as u64 + e as u64;
    // At most five carries: half a word holds what the first fold leaves.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    !fold((sum & 0xffff_ffff) as u32)
}

/// Sum of the two halves of an IPv4 address.
#[inline(always)]
#[must_use]
pub const fn halves(address: u32) -> u32 {
    (address >> 16) + (address & 0xffff)
}

/// The checksum after a part that summed up to `from` has become one that sums up to `to`.
///
/// Each sum may hold up to four words.
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, from: u32, to: u32) -> u16 {
    !fold(!checksum as u32 + !fold(from) as u32 + to)
}
