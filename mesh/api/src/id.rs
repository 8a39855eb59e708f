//! Object ids: 25 characters of base 36, as `SwarmKit`'s (identity/randomid.go).
//!
//! Randomness is an argument: the caller passes 128 bits.

/// Characters of an id.
pub const ID_LENGTH: usize = 25;

/// Writes 128 random bits as an id. 36^25 is over 2^129, so every value has its own id.
#[must_use]
pub fn from_bits(mut bits: u128) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut id = [b'0'; ID_LENGTH];
    for digit in id.iter_mut().rev() {
        let index = usize::try_from(bits % 36).expect("a remainder below 36 fits");
        *digit = DIGITS[index];
        bits /= 36;
    }
    id.iter().copied().map(char::from).collect()
}

/// A seeded source of ids: the same seed gives the same ids in the same order (`SplitMix64`,
/// Steele et al., OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct IdSource(u64);

impl IdSource {
    /// A source that starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next id.
    pub fn next_id(&mut self) -> String {
        from_bits(u128::from(self.next_u64()) << 64 | u128::from(self.next_u64()))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_still_fits_in_25_characters() {
        assert_eq!(from_bits(0), "0".repeat(25));
        let largest = from_bits(u128::MAX);
        assert_eq!(largest.len(), ID_LENGTH);
        assert_eq!(u128::from_str_radix(&largest, 36), Ok(u128::MAX));
    }

    #[test]
    fn a_seed_gives_the_same_ids_again_and_no_id_twice() {
        let ids = |seed| {
            let mut source = IdSource::new(seed);
            (0..1_000).map(|_| source.next_id()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(ids(7), ids(7));
        assert_eq!(ids(7).len(), 1_000);
        assert_ne!(ids(7), ids(8));
    }
}
