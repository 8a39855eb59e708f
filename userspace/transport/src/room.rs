//! A room for those who have not said who they are: bounded, and nobody stays because he came first.
//!
//! Guests are silent until they are [`heard`](Ticket::heard). One source address holds a part of the
//! places with silent ones at most. Where places are short, whoever has had his time goes: silent
//! ones first, of the source that has the most of them the oldest. Half-open connections cannot keep
//! others out, and who has begun in earnest is not sent away for them.

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
    /// Places that silent guests of one source may hold.
    pub(crate) per_source: usize,
    /// How long a silent guest may stay whoever else comes.
    pub(crate) silent: Duration,
    /// How long one that was heard may.
    pub(crate) heard: Duration,
}

/// Why there is no place now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Its source has enough; the guest is sent away.
    Source,
    /// Nobody has had his time; it is over for the first one after this.
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
    heard: bool,
    out: oneshot::Sender<()>,
}

/// A place in the room.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) ticket: Ticket,
    /// Ready when the guest must go.
    pub(crate) out: oneshot::Receiver<()>,
}

/// Dropping it makes the place free.
#[derive(Debug)]
pub(crate) struct Ticket {
    room: Arc<Room>,
    number: u64,
}

impl Room {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, guests: Mutex::default() })
    }

    /// Takes a place, sending somebody away for it if need be.
    pub(crate) fn enter(self: &Arc<Self>, source: IpAddr, now: Instant) -> Result<Place, Full> {
        let source = network(source);
        let mut guests = self.guests.lock();
        let mut silent: HashMap<IpAddr, usize> = HashMap::new();
        for guest in guests.all.values().filter(|guest| !guest.heard) {
            *silent.entry(guest.source).or_default() += 1;
        }
        if silent.get(&source).is_some_and(|count| *count >= self.limits.per_source) {
            guests.send_away(Some(source), now, self.limits.silent).map_err(|_| Full::Source)?;
        } else if guests.all.len() >= self.limits.places {
            // The address breaks ties: any order will do.
            let most = silent.into_iter().max_by_key(|(source, count)| (*count, *source));
            let silent = match most {
                Some((most, _)) => guests.send_away(Some(most), now, self.limits.silent),
                None => Err(Duration::MAX),
            };
            if let Err(wait) = silent {
                let heard = guests.send_away(None, now, self.limits.heard);
                heard.map_err(|longer| Full::Room(wait.min(longer)))?;
            }
        }
        let number = guests.next;
        guests.next += 1;
        let (sender, out) = oneshot::channel();
        guests.all.insert(number, Guest { source, since: now, heard: false, out: sender });
        Ok(Place { ticket: Ticket { room: Arc::clone(self), number }, out })
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.guests.lock().all.len()
    }
}

impl Guests {
    /// The oldest silent one of a source goes, or the oldest of those that were heard, if he has had
    /// his time; else, how long he still has.
    fn send_away(
        &mut self,
        silent_of: Option<IpAddr>,
        now: Instant,
        time: Duration,
    ) -> Result<(), Duration> {
        let oldest = self.all.iter().find(|(_, guest)| match silent_of {
            Some(source) => !guest.heard && guest.source == source,
            None => guest.heard,
        });
        let Some((&number, guest)) = oldest else { return Err(Duration::MAX) };
        let stayed = now.saturating_duration_since(guest.since);
        if stayed < time {
            return Err(time - stayed);
        }
        let guest = self.all.remove(&number).expect("it was just found");
        // He may be about to go by himself.
        let _ = guest.out.send(());
        Ok(())
    }
}

impl Ticket {
    /// The guest has said something sensible.
    pub(crate) fn heard(&self) {
        if let Some(guest) = self.room.guests.lock().all.get_mut(&self.number) {
            guest.heard = true;
        }
    }
}

impl Drop for Ticket {
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
        Room::new(Limits { places: 4, per_source: 2, silent: GRACE, heard: GRACE * 4 })
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
    fn who_was_heard_stays_longer_than_the_silent_and_not_for_ever() {
        let (room, now) = (room(), Instant::now());
        let mut heard = room.enter(from(1), now).unwrap();
        heard.ticket.heard();
        // Those of its source that were heard do not count.
        let others: Vec<_> = (0..2).map(|_| room.enter(from(1), now).unwrap()).collect();
        for place in &others {
            place.ticket.heard();
        }
        let mut silent = room.enter(from(2), now).unwrap();
        let last = room.enter(from(3), now + GRACE).unwrap();
        assert!(silent.out.try_recv().is_ok() && heard.out.try_recv().is_err());
        last.ticket.heard();
        let late = now + GRACE * 4;
        assert_eq!(room.enter(from(4), late - GRACE / 5).unwrap_err(), Full::Room(GRACE / 5));
        let _late = room.enter(from(4), late).unwrap();
        assert!(heard.out.try_recv().is_ok());
        assert_eq!(room.count(), 4);
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
