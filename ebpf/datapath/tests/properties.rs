//! Properties of the datapath's sums and of its hash.

use std::collections::HashMap;

use proptest::prelude::*;
use shoal_datapath::abi::RING_SIZE;
use shoal_datapath::packet::mapped;
use shoal_datapath::{checksum, hash};

/// The Internet checksum, the plain way.
fn full(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

proptest! {
    /// An IPv4 header is never all zero, so the two zeros of the sum do not come into it.
    #[test]
    fn a_replaced_address_leaves_the_sum_that_a_full_count_gives(
        mut header in any::<[u8; 20]>(),
        address in any::<u32>(),
        at_destination in any::<bool>(),
    ) {
        header[0] = 0x45;
        header[10..12].copy_from_slice(&[0, 0]);
        let old_sum = full(&header);
        let at = if at_destination { 16 } else { 12 };
        let old = u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        header[at..at + 4].copy_from_slice(&address.to_be_bytes());
        let (from, to) = (checksum::halves(old), checksum::halves(address));
        prop_assert_eq!(checksum::replace(old_sum, from, to), full(&header));
    }

    #[test]
    fn the_sum_of_a_header_in_words_is_that_of_its_bytes(words in any::<[u32; 5]>()) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        prop_assert_eq!(checksum::of_header(words), full(&bytes));
    }

    #[test]
    fn every_hash_has_a_slot_in_the_ring_and_a_port_in_the_dynamic_range(hash in any::<u32>()) {
        prop_assert!(hash::slot(hash) < RING_SIZE);
        prop_assert!(hash::source_port(hash) >= 49_152);
    }

    /// A bit of the input that changed few bits of the hash would keep neighbours together.
    #[test]
    fn one_flipped_bit_changes_many_bits_of_the_hash(
        client in any::<[u8; 16]>(), port in any::<u16>(), service in any::<u16>(), bit in 0_u32..160,
    ) {
        let mut other = (client, port, service);
        match bit {
            0..128 => other.0[bit as usize / 8] ^= 1 << (bit % 8),
            128..144 => other.1 ^= 1 << (bit - 128),
            _ => other.2 ^= 1 << (bit - 144),
        }
        let changed = hash::hash(&client, port, service) ^ hash::hash(&other.0, other.1, other.2);
        prop_assert!((3..=29).contains(&changed.count_ones()), "{changed:032b}");
    }
}

proptest! {
    #[test]
    fn an_alternate_is_another_port_below_those_of_clients(
        port in any::<u16>(), frontend in any::<u32>(), frontend_port in any::<u16>(),
    ) {
        let alternate = hash::alternate_port(port, frontend, frontend_port);
        prop_assert!((1024..32_768).contains(&alternate));
        prop_assert_ne!(alternate, port);
    }
}

#[test]
fn a_clients_alternates_for_one_frontend_seldom_meet() {
    // 28,232 ports that a client chooses from, thrown into 31,744: some 18,700 are to be hit.
    let ports = 32_768..61_000;
    let alternate = |port| hash::alternate_port(port, 0x0a58_0002, 8080);
    let met: std::collections::HashSet<u16> = ports.map(alternate).collect();
    assert!((18_300..19_100).contains(&met.len()), "{}", met.len());
}

/// Share of the busiest and the idlest of `backends`, of an even share.
fn spread(backends: usize, clients: impl Iterator<Item = ([u8; 4], u16)>) -> (f64, f64) {
    let mut shares = vec![0_u32; backends];
    let mut all = 0_u32;
    for (address, port) in clients {
        let slot = hash::slot(hash::hash(&mapped(address), port, 7));
        shares[slot % backends] += 1;
        all += 1;
    }
    let even = f64::from(all) / backends as f64;
    let of_even = |share: u32| f64::from(share) / even;
    let (min, max) = (shares.iter().copied().min(), shares.iter().copied().max());
    (of_even(max.expect("there are backends")), of_even(min.expect("there are backends")))
}

#[test]
fn clients_of_one_address_spread_evenly_by_their_ports() {
    // 64,512 draws over 10: a share of 6,451 has a deviation of 76, which is 1.2 %.
    let (max, min) = spread(10, (1024..=u16::MAX).map(|port| ([10, 88, 0, 100], port)));
    assert!(max < 1.05 && min > 0.95, "{max} {min}");
}

#[test]
fn clients_of_one_port_spread_evenly_by_their_addresses() {
    let addresses = (0..1_u32 << 18).map(|host| ((10 << 24 | host).to_be_bytes(), 40_000));
    let (max, min) = spread(10, addresses);
    assert!(max < 1.03 && min > 0.97, "{max} {min}");
}

#[test]
fn a_million_clients_differ_by_under_one_percent() {
    let clients = (0..1_u32 << 20).map(|n| {
        let [_, a, b, c] = n.to_be_bytes();
        ([172, 16 | a & 15, b, c], 1024 + u16::try_from(n % 60_000).unwrap())
    });
    let (max, min) = spread(3, clients);
    assert!(max < 1.01 && min > 0.99, "{max} {min}");
}

#[test]
fn outer_ports_spread_the_flows_of_one_slot() {
    let mut ports = HashMap::new();
    for port in 1024..=u16::MAX {
        let hash = hash::hash(&mapped([10, 88, 0, 100]), port, 7);
        if hash::slot(hash) < RING_SIZE / 100 {
            *ports.entry(hash::source_port(hash)).or_insert(0) += 1;
        }
    }
    // About 645 flows over 16,384 ports: were slot and port one and the same bits, few ports
    // would have them all.
    assert!(ports.len() > 550, "{} ports", ports.len());
}

/// Nodes of different releases must agree where a client goes: a change of these figures is a
/// change of the protocol.
#[test]
fn the_hash_is_what_it_always_was() {
    let six = "2001:db8::64".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let hashes = [
        hash::hash(&mapped([10, 88, 0, 100]), 40_000, 5),
        hash::hash(&mapped([0, 0, 0, 0]), 0, 0),
        hash::hash(&mapped([255, 255, 255, 255]), u16::MAX, u16::MAX),
        hash::hash(&six, 40_000, 5),
    ];
    assert_eq!(hashes, [0x63d2_ed3f, 0x7650_9ce5, 0xfe09_8f7a, 0xb2d8_46e3], "{hashes:#010x?}");
    assert_eq!(hash::slot(u32::MAX), RING_SIZE - 1);
}
