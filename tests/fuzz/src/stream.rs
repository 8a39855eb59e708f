//! Sealed records and streams: changed in any way, they do not open.

use shoal_identity::{StreamOpener, StreamSealer, open, seal};

use crate::choice;

const KEY: [u8; 32] = [1; 32];
const CONTEXT: &[u8] = b"fuzz";

/// What opens is what was sealed; what came out before an error is its beginning.
///
/// The input is a list of changes: place (2 bytes), what (1 byte).
pub fn run(input: &[u8]) {
    let (length, changes) = choice(input);
    let content = vec![length; usize::from(length)];
    let mut stream = Vec::new();
    let mut sealer = StreamSealer::new(&KEY, [2; 24], CONTEXT, &mut stream);
    sealer.push(&content, &mut stream);
    sealer.finish(&mut stream);
    let changed = change(&stream, changes);
    let mut opened = Vec::new();
    let mut opener = StreamOpener::new(&KEY, CONTEXT);
    let step = usize::from(length).max(1);
    let taken = changed.chunks(step).try_for_each(|part| opener.push(part, &mut opened));
    let whole = taken.and_then(|()| opener.finish(&mut opened)).is_ok();
    assert!(content.starts_with(&opened));
    assert_eq!(whole, changed == stream);

    let record = seal(&KEY, [3; 24], CONTEXT, &content);
    let changed = change(&record, changes);
    assert_eq!(open(&KEY, CONTEXT, &changed).is_ok(), changed == record);
    let _ = open(&KEY, CONTEXT, input);
}

fn change(bytes: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes.chunks_exact(3).take(16) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % (bytes.len() + 1);
        match change[2] {
            0 => bytes.truncate(place),
            1 => bytes.insert(place, 0),
            2 => {
                let tail = bytes[place..].to_vec();
                bytes.extend(tail);
            }
            flip => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= flip;
                }
            }
        }
    }
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![vec![0], vec![100], vec![100, 50, 0, 1], vec![5, 30, 0, 0, 10, 0, 2, 3, 0, 0x80]]
}
