//! A room for those who have not said who they are: bounded, and nobody stays because he came first.
//!
//! One source address holds a part of the places at most. Where places are short, whoever has had
//! his time goes, the oldest first, and of the source that holds the most: half-open connections
//! cannot keep others out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Places.
    pub(crate) places: usize,
    /// Places that one source may hold.
    pub(crate) per_source: usize,
    /// How long a guest may stay whoever else comes.
    pub(crate) grace: Duration,
}

/// Why there is no place now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Its source has enough; the guest is sent away.
    Source,
    /// Nobody else has had his time; it is over for the first one after this.
    Room(Duration),
}

/// The room.
#[derive(Debug)]
pub(crate) struct Room {
    limits: Limits,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    /// By number: the oldest first.
    all: BTreeMap<u64, Guest>,
    next: u64,
}

#[derive(Debug)]
struct Guest {
    source: IpAddr,
    since: Instant,
    out: oneshot::Sender<()>,
}

/// A place. Dropping it makes it free.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    number: u64,
    /// Ready when the guest must go.
    pub(crate) out: oneshot::Receiver<()>,
}

impl Room {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, guests: Mutex::default() })
    }

    /// Takes a place, sending somebody away for it if need be.
    pub(crate) fn enter(self: &Arc<Self>, source: IpAddr, now: Instant) -> Result<Place, Full> {
        let source = network(source);
        let mut guests = self.guests.lock();
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for guest in guests.all.values() {
            *held.entry(guest.source).or_default() += 1;
        }
        if held.get(&source).is_some_and(|count| *count >= self.limits.per_source) {
            guests.send_away(source, now, self.limits.grace).map_err(|_| Full::Source)?;
        } else if guests.all.len() >= self.limits.places {
            // The address breaks ties: any order will do.
            let most = held.into_iter().max_by_key(|(source, count)| (*count, *source));
            let (most, _) = most.expect("a full room has guests");
            guests.send_away(most, now, self.limits.grace).map_err(Full::Room)?;
        }
        let number = guests.next;
        guests.next += 1;
        let (sender, out) = oneshot::channel();
        guests.all.insert(number, Guest { source, since: now, out: sender });
        Ok(Place { room: Arc::clone(self), number, out })
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.guests.lock().all.len()
    }
}

impl Guests {
    /// The oldest of a source goes, if he has had his time; else, how long he still has.
    fn send_away(&mut self, source: IpAddr, now: Instant, grace: Duration) -> Result<(), Duration> {
        let oldest = self.all.iter().find(|(_, guest)| guest.source == source);
        let (&number, guest) = oldest.expect("the source has guests");
        let stayed = now.saturating_duration_since(guest.since);
        if stayed < grace {
            return Err(grace - stayed);
        }
        let guest = self.all.remove(&number).expect("it was just found");
        // He may be about to go by himself.
        let _ = guest.out.send(());
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.guests.lock().all.remove(&self.number);
    }
}

/// A whole IPv6 network of 64 bits counts as one source: its hosts choose their addresses.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(addr) => IpAddr::V6((u128::from(addr) & (u128::MAX << 64)).into()),
        addr @ IpAddr::V4(_) => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(250);

    fn room() -> Arc<Room> {
        Room::new(Limits { places: 4, per_source: 2, grace: GRACE })
    }

    fn from(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_source_with_enough_places_loses_its_oldest_once_that_has_had_its_time() {
        let (room, now) = (room(), Instant::now());
        let mut first = room.enter(from(1), now).unwrap();
        let mut second = room.enter(from(1), now).unwrap();
        assert_eq!(room.enter(from(1), now + GRACE / 2).unwrap_err(), Full::Source);
        let _third = room.enter(from(1), now + GRACE).unwrap();
        assert!(first.out.try_recv().is_ok() && second.out.try_recv().is_err());
        assert_eq!(room.count(), 2);
    }

    #[test]
    fn a_full_room_takes_from_the_source_with_the_most() {
        let (room, now) = (room(), Instant::now());
        let mut single = room.enter(from(1), now).unwrap();
        let mut first = room.enter(from(2), now).unwrap();
        let _second = room.enter(from(2), now).unwrap();
        let _other = room.enter(from(3), now).unwrap();
        assert_eq!(room.enter(from(4), now).unwrap_err(), Full::Room(GRACE));
        let _late = room.enter(from(4), now + GRACE).unwrap();
        assert!(first.out.try_recv().is_ok() && single.out.try_recv().is_err());
    }

    #[test]
    fn a_place_is_free_when_its_guest_has_gone() {
        let (room, now) = (room(), Instant::now());
        let guests: Vec<_> = (1..=4).map(|last| room.enter(from(last), now).unwrap()).collect();
        drop(guests);
        assert_eq!(room.count(), 0);
        room.enter(from(9), now).unwrap();
    }

    #[test]
    fn neighbours_in_an_ipv6_network_are_one_source() {
        let check = |a: &str, b: &str, same: bool| {
            assert_eq!(network(a.parse().unwrap()) == network(b.parse().unwrap()), same);
        };
        check("fd00::1", "fd00::ffff:1:2:3", true);
        check("fd00::1", "fd00:0:0:1::1", false);
        check("::ffff:192.0.2.1", "192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
    }
}
