//! Seals a stream of any length: pieces of 1 MiB, each sealed with its number and whether it is the
//! last.
//!
//! ```text
//! nonce (24) ‖ tag of the header (16) ‖ piece 0 ‖ piece 1 ‖ … ‖ last piece
//! piece = ciphertext ‖ tag (16); all but the last hold 1 MiB, the last holds 0 bytes to 1 MiB
//! ```
//!
//! Pieces that are swapped, repeated, missing at the end or from another stream do not open, and
//! the header tells a wrong key before a byte of the content is touched. It is the STREAM of Hoang
//! et al. (CRYPTO 2015) with XChaCha20-Poly1305. The caller does the reading and writing; a sealer
//! or opener holds at most one piece and what it was given last.

use zeroize::Zeroizing;

use crate::seal::{NONCE, TAG, decrypt, encrypt};

/// Bytes of content in each piece but the last: a whole piece is in memory before any of it is
/// believed, and 1 MiB of it costs 16 bytes of tag.
pub const PIECE: usize = 1 << 20;

/// Bytes before the first piece.
pub const HEADER: usize = NONCE + TAG;

/// Why a sealed stream did not open. What came out before the error was as it was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Not even a whole header.
    #[error("too short to be a sealed stream")]
    TooShort,
    /// Another key or kind of stream, or a changed header.
    #[error("wrong key, or not a stream of this kind")]
    WrongKey,
    /// A piece was changed or moved, is not of this stream, or ends too early.
    #[error("piece {piece} is damaged or cut off")]
    Damaged {
        /// Which, from 0.
        piece: u64,
    },
    /// All is well as far as it goes, but the end is missing.
    #[error("cut off after piece {piece}")]
    Truncated {
        /// The last one that is there, from 0.
        piece: u64,
    },
}

/// Seals a stream.
pub struct StreamSealer {
    cipher: Pieces,
    waiting: Zeroizing<Vec<u8>>,
}

impl StreamSealer {
    /// Begins a stream: writes the header to `out`.
    ///
    /// * `nonce` - 24 random bytes, for this stream only.
    /// * `context` - says what the stream is; who opens it must say the same.
    pub fn new(key: &[u8; 32], nonce: [u8; NONCE], context: &[u8], out: &mut Vec<u8>) -> Self {
        let cipher = Pieces::new(key, nonce, context);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&cipher.seal(Kind::Header, u64::MAX, &[]));
        Self { cipher, waiting: Zeroizing::new(Vec::new()) }
    }

    /// Takes more content, and writes the pieces that are full to `out`.
    pub fn push(&mut self, mut content: &[u8], out: &mut Vec<u8>) {
        // A full piece waits until there is more: it may be the last one.
        while self.waiting.len() + content.len() > PIECE {
            let (now, later) = content.split_at(PIECE - self.waiting.len());
            self.waiting.extend_from_slice(now);
            content = later;
            out.extend_from_slice(&self.cipher.next(Kind::Piece, &self.waiting));
            self.waiting.clear();
        }
        self.waiting.extend_from_slice(content);
    }

    /// Ends the stream: writes the last piece to `out`.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        let last = self.cipher.next(Kind::Last, &self.waiting);
        out.extend_from_slice(&last);
    }
}

/// Opens a stream.
pub struct StreamOpener {
    key: Zeroizing<[u8; 32]>,
    context: Vec<u8>,
    /// `None` until the header is there.
    cipher: Option<Pieces>,
    waiting: Vec<u8>,
}

impl StreamOpener {
    /// Waits for a stream that was sealed with this key and context.
    #[must_use]
    pub fn new(key: &[u8; 32], context: &[u8]) -> Self {
        let key = Zeroizing::new(*key);
        Self { key, context: context.to_vec(), cipher: None, waiting: Vec::new() }
    }

    /// Takes more bytes, and writes the content of the pieces that are complete to `out`.
    ///
    /// # Errors
    /// [`StreamError`]; the opener is of no use after it.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.waiting.extend_from_slice(bytes);
        let mut used = 0;
        let header = self.waiting.get(..HEADER).and_then(<[u8]>::split_first_chunk::<NONCE>);
        if let (None, Some((nonce, tag))) = (&self.cipher, header) {
            let cipher = Pieces::new(&self.key, *nonce, &self.context);
            cipher.open(Kind::Header, u64::MAX, tag).ok_or(StreamError::WrongKey)?;
            self.cipher = Some(cipher);
            used = HEADER;
        }
        if let Some(cipher) = &mut self.cipher {
            // What could be the last piece waits for the end.
            while self.waiting.len() - used > PIECE + TAG {
                let piece = &self.waiting[used..used + PIECE + TAG];
                out.extend_from_slice(&cipher.open_next(Kind::Piece, piece)?);
                used += PIECE + TAG;
            }
        }
        self.waiting.drain(..used);
        Ok(())
    }

    /// There are no more bytes: opens the last piece.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let Some(cipher) = &mut self.cipher else {
            return Err(StreamError::TooShort);
        };
        let piece = cipher.number;
        match cipher.open_next(Kind::Last, &self.waiting) {
            Ok(content) => out.extend_from_slice(&content),
            Err(_) if cipher.open(Kind::Piece, piece, &self.waiting).is_some() => {
                return Err(StreamError::Truncated { piece });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Header = 0,
    Piece = 1,
    Last = 2,
}

/// The cipher and the number of the next piece.
struct Pieces {
    key: Zeroizing<[u8; 32]>,
    nonce: [u8; NONCE],
    context: Vec<u8>,
    number: u64,
}

impl Pieces {
    fn new(key: &[u8; 32], nonce: [u8; NONCE], context: &[u8]) -> Self {
        Self { key: Zeroizing::new(*key), nonce, context: context.to_vec(), number: 0 }
    }

    fn next(&mut self, kind: Kind, content: &[u8]) -> Vec<u8> {
        let sealed = self.seal(kind, self.number, content);
        self.number += 1;
        sealed
    }

    fn open_next(&mut self, kind: Kind, piece: &[u8]) -> Result<Zeroizing<Vec<u8>>, StreamError> {
        let content = self.open(kind, self.number, piece);
        let content = content.ok_or(StreamError::Damaged { piece: self.number })?;
        self.number += 1;
        Ok(content)
    }

    fn seal(&self, kind: Kind, number: u64, content: &[u8]) -> Vec<u8> {
        encrypt(&self.key, self.nonce_of(number), &self.associated(kind, number), content)
    }

    fn open(&self, kind: Kind, number: u64, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        decrypt(&self.key, self.nonce_of(number), &self.associated(kind, number), sealed)
    }

    /// The stream's nonce with the number in its last 8 bytes; the 16 before them keep streams
    /// apart.
    fn nonce_of(&self, number: u64) -> [u8; NONCE] {
        let mut nonce = self.nonce;
        for (byte, part) in nonce[NONCE - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= part;
        }
        nonce
    }

    fn associated(&self, kind: Kind, number: u64) -> Vec<u8> {
        let mut data = vec![kind as u8];
        data.extend_from_slice(&number.to_be_bytes());
        data.extend_from_slice(&self.context);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [1; 32];

    fn sealed(length: usize) -> (Vec<u8>, Vec<u8>) {
        let content: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[at % 2]).collect();
        let mut out = Vec::new();
        let mut sealer = StreamSealer::new(&KEY, [2; NONCE], b"kind", &mut out);
        for part in content.chunks(300_000) {
            sealer.push(part, &mut out);
        }
        sealer.finish(&mut out);
        (content, out)
    }

    fn opened(key: &[u8; 32], kind: &[u8], bytes: &[u8]) -> Result<Vec<u8>, StreamError> {
        let mut out = Vec::new();
        let mut opener = StreamOpener::new(key, kind);
        for part in bytes.chunks(777_777) {
            opener.push(part, &mut out)?;
        }
        opener.finish(&mut out)?;
        Ok(out)
    }

    #[test]
    fn streams_of_any_length_open_as_they_were() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5] {
            let (content, bytes) = sealed(length);
            let pieces = length.div_ceil(PIECE).max(1);
            assert_eq!(bytes.len(), HEADER + length + pieces * TAG);
            assert!(opened(&KEY, b"kind", &bytes) == Ok(content), "{length} bytes");
        }
    }

    #[test]
    fn a_wrong_key_or_kind_is_seen_before_any_content() {
        let (_, bytes) = sealed(10);
        assert_eq!(opened(&[3; 32], b"kind", &bytes), Err(StreamError::WrongKey));
        assert_eq!(opened(&KEY, b"other", &bytes), Err(StreamError::WrongKey));
        let mut opener = StreamOpener::new(&[3; 32], b"kind");
        let early = opener.push(&bytes[..HEADER], &mut Vec::new());
        assert_eq!(early, Err(StreamError::WrongKey));
    }

    #[test]
    fn every_changed_byte_is_found() {
        let (_, bytes) = sealed(100);
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 0x10;
            let expected = match place {
                0..HEADER => StreamError::WrongKey,
                _ => StreamError::Damaged { piece: 0 },
            };
            assert_eq!(opened(&KEY, b"kind", &changed), Err(expected), "byte {place}");
        }
    }

    #[test]
    fn a_missing_end_is_found_wherever_it_is_cut() {
        let (_, bytes) = sealed(2 * PIECE + 50);
        let end = |piece: usize| HEADER + piece * (PIECE + TAG);
        let cut = |length: usize| opened(&KEY, b"kind", &bytes[..length]);
        for length in [0, 1, HEADER - 1] {
            assert_eq!(cut(length), Err(StreamError::TooShort));
        }
        assert_eq!(cut(HEADER), Err(StreamError::Damaged { piece: 0 }));
        assert_eq!(cut(end(1) - 1), Err(StreamError::Damaged { piece: 0 }));
        assert_eq!(cut(end(1)), Err(StreamError::Truncated { piece: 0 }));
        assert_eq!(cut(end(1) + 1), Err(StreamError::Damaged { piece: 1 }));
        assert_eq!(cut(end(2)), Err(StreamError::Truncated { piece: 1 }));
        assert_eq!(cut(bytes.len() - 1), Err(StreamError::Damaged { piece: 2 }));
    }

    #[test]
    fn pieces_that_are_swapped_repeated_or_of_another_stream_do_not_open() {
        let (_, bytes) = sealed(2 * PIECE + 50);
        let (header, rest) = bytes.split_at(HEADER);
        let (first, rest) = rest.split_at(PIECE + TAG);
        let (second, last) = rest.split_at(PIECE + TAG);
        let join = |parts: &[&[u8]]| opened(&KEY, b"kind", &parts.concat()).map(drop);
        assert_eq!(join(&[header, first, second, last]), Ok(()));
        let damaged = |piece| Err(StreamError::Damaged { piece });
        assert_eq!(join(&[header, second, first, last]), damaged(0));
        assert_eq!(join(&[header, first, first, last]), damaged(1));
        assert_eq!(join(&[header, first, last]), damaged(1));
        assert_eq!(join(&[header, first, second, last, last]), damaged(2));

        let mut other = Vec::new();
        let mut sealer = StreamSealer::new(&KEY, [9; NONCE], b"kind", &mut other);
        sealer.push(&vec![0; PIECE + 1], &mut other);
        assert_eq!(join(&[&other[..HEADER], first, last]), damaged(0));
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        let (content, bytes) = sealed(20);
        let mut out = Vec::new();
        let mut opener = StreamOpener::new(&KEY, b"kind");
        for byte in bytes {
            opener.push(&[byte], &mut out).unwrap();
        }
        assert!(out.is_empty(), "the last piece waits for the end");
        opener.finish(&mut out).unwrap();
        assert_eq!(out, content);
    }
}
