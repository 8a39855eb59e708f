//! The Internet checksum: of the header we build, and kept right when a word changes.
//!
//! Sums are ones' complement sums of 16-bit words (RFC 1071), here in big endian. A replaced word
//! is taken out and the new one put in (RFC 1624, equation 3), which keeps a zero of the header
//! apart from the other zero, 0xffff, as the kernel does.

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    (((once & 0xffff) + (once >> 16)) & 0xffff) as u16
}

/// Sum of the two words of an IPv4 address.
#[inline(always)]
#[must_use]
pub const fn words(address: [u8; 4]) -> u32 {
    let [a, b, c, d] = address;
    u16::from_be_bytes([a, b]) as u32 + u16::from_be_bytes([c, d]) as u32
}

/// The checksum after a part that summed up to `from` has become one that sums up to `to`.
///
/// Each sum may hold up to four words.
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, from: u32, to: u32) -> u16 {
    !fold(!checksum as u32 + !fold(from) as u32 + to)
}
