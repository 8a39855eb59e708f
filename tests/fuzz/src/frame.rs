//! What comes in on the managers' port once TLS is through: Raft's messages, requests, log records.

use prost::Message as _;
use shoal_api::{
    AnnounceRequest, Batch, ForwardRequest, JoinRequest, RenewRequest, SessionRequest,
};
use shoal_identity::{Csr, JoinToken};
use shoal_manager::fuzzing;

use crate::choice;

/// Bytes are refused, or read as something that can be written and read again.
pub fn run(input: &[u8]) {
    let (kind, bytes) = choice(input);
    match kind {
        0..16 => fuzzing::raft_message(kind, bytes),
        16 => fuzzing::log_record(bytes),
        17 => {
            if let Ok(join) = JoinRequest::decode(bytes) {
                let _ = (Csr::parse(&join.csr), JoinToken::parse(&join.token));
                again(&join);
            }
        }
        18 => read::<RenewRequest>(bytes),
        19 => read::<ForwardRequest>(bytes),
        20 => read::<AnnounceRequest>(bytes),
        21 => read::<SessionRequest>(bytes),
        _ => read::<Batch>(bytes),
    }
}

fn read<T: prost::Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = T::decode(bytes) {
        again(&message);
    }
}

fn again<T: prost::Message + Default + PartialEq>(message: &T) {
    assert!(T::decode(message.encode_to_vec().as_slice()).unwrap() == *message);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let join = JoinRequest { token: "SWMTKN-1-".into(), csr: vec![0x30], ..JoinRequest::default() };
    let mut seeds = vec![[vec![17], join.encode_to_vec()].concat(), vec![22]];
    seeds.extend(fuzzing::raft_seeds().into_iter().map(|(kind, mut bytes)| {
        bytes.insert(0, kind);
        bytes
    }));
    seeds
}
