//! A fixed number of places for connections; the silent ones can be taken away.
//!
//! A connection is silent whenever no answer of its own is under way. Readers have fewer places
//! than there are, and each user a share of them, so that root always finds one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How many connections there may be at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Altogether.
    pub(super) all: usize,
    /// Of everybody who may only read.
    pub(super) readers: usize,
    /// Of one user who may only read.
    pub(super) per_reader: usize,
}

/// Whose a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Somebody who may change things.
    Owner,
    /// Somebody who may only read, by the user's number.
    Reader(u32),
}

/// All places.
#[derive(Clone)]
pub(super) struct Places {
    shared: Arc<Mutex<Shared>>,
    limits: Limits,
}

/// One connection's place, given back when dropped.
pub(super) struct Place {
    shared: Arc<Mutex<Shared>>,
    number: u64,
    taken_away: oneshot::Receiver<()>,
}

#[derive(Default)]
struct Shared {
    next: u64,
    held: BTreeMap<u64, Held>,
}

struct Held {
    holder: Holder,
    /// When it fell silent, as a number that grows; `None` while an answer is under way.
    silent_since: Option<u64>,
    /// Dropped when the place is taken away.
    _bell: oneshot::Sender<()>,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            shared: Arc::default(),
            limits,
        }
    }

    /// A place for a new connection, if need be that of the one that has been silent for longest;
    /// `None` if all that could give way are waiting for their answers. Only owners take an owner's.
    pub(super) fn take(&self, holder: Holder) -> Option<Place> {
        let mut shared = lock(&self.shared);
        let is_reader = |other: Holder| matches!(other, Holder::Reader(_));
        if is_reader(holder) {
            shared.make_room(self.limits.per_reader, |other| other == holder)?;
            shared.make_room(self.limits.readers, is_reader)?;
        }
        if shared.held.len() >= self.limits.all {
            let gone = shared.take_away(is_reader);
            if !gone && (is_reader(holder) || !shared.take_away(|_| true)) {
                return None;
            }
        }
        let (bell, taken_away) = oneshot::channel();
        let number = shared.number();
        let held = Held {
            holder,
            silent_since: Some(number),
            _bell: bell,
        };
        shared.held.insert(number, held);
        Some(Place {
            shared: Arc::clone(&self.shared),
            number,
            taken_away,
        })
    }
}

impl Shared {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Sees to it that fewer than `most` of a kind are held; `None` if that can't be.
    fn make_room(&mut self, most: usize, is_kind: impl Fn(Holder) -> bool) -> Option<()> {
        let kind = self.held.values().filter(|held| is_kind(held.holder));
        (kind.count() < most || self.take_away(is_kind)).then_some(())
    }

    /// Takes the place of the one of a kind that has been silent for longest. True if there was one.
    fn take_away(&mut self, is_kind: impl Fn(Holder) -> bool) -> bool {
        let silent = self.held.iter().filter(|(_, held)| is_kind(held.holder));
        let silent = silent.filter_map(|(number, held)| Some((held.silent_since?, *number)));
        let Some((_, oldest)) = silent.min() else {
            return false;
        };
        self.held.remove(&oldest).is_some()
    }
}

impl Place {
    /// Ends when the place was taken away.
    pub(super) async fn lost(&mut self) {
        // Nothing is ever sent: the other end is dropped.
        let _ = (&mut self.taken_away).await;
    }

    /// The connection has asked something: until [`rest`](Self::rest) the place is its own. False if
    /// it was taken away already.
    pub(super) fn keep(&mut self) -> bool {
        let mut shared = lock(&self.shared);
        let held = shared.held.get_mut(&self.number);
        held.map(|held| held.silent_since = None).is_some()
    }

    /// The connection has its answer: it is silent until it asks again.
    pub(super) fn rest(&mut self) {
        let mut shared = lock(&self.shared);
        let now = shared.number();
        if let Some(held) = shared.held.get_mut(&self.number) {
            held.silent_since = Some(now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.shared).held.remove(&self.number);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        all: 8,
        readers: 6,
        per_reader: 4,
    };

    fn busy(places: &Places, holder: Holder) -> Option<Place> {
        let mut place = places.take(holder)?;
        place.keep().then_some(place)
    }

    fn is_lost(place: &mut Place) -> bool {
        place.taken_away.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn busy_readers_get_their_share_and_root_finds_a_place() {
        let places = Places::new(LIMITS);
        let mut kept = Vec::new();
        for user in [1000, 1001] {
            for _ in 0..20 {
                kept.extend(busy(&places, Holder::Reader(user)));
            }
        }
        assert_eq!(kept.len(), 6);
        assert!(places.take(Holder::Reader(1002)).is_none());
        for _ in 0..2 {
            kept.push(busy(&places, Holder::Owner).unwrap());
        }
        assert!(places.take(Holder::Owner).is_none());
        kept.pop();
        assert!(places.take(Holder::Owner).is_some());
    }

    #[test]
    fn one_user_takes_only_the_own_places() {
        let places = Places::new(LIMITS);
        let mut neighbour = places.take(Holder::Reader(1001)).unwrap();
        let mut own: Vec<_> = (0..20)
            .map(|_| places.take(Holder::Reader(1000)).unwrap())
            .collect();
        assert!(!is_lost(&mut neighbour));
        let lost: Vec<_> = own.iter_mut().map(is_lost).collect();
        let expected: Vec<_> = (0..20).map(|number| number < 16).collect();
        assert_eq!(lost, expected);
    }

    #[test]
    fn an_answered_connection_gives_way_and_a_waiting_one_does_not() {
        let places = Places::new(LIMITS);
        let mut all: Vec<_> = (0..8)
            .map(|_| busy(&places, Holder::Owner).unwrap())
            .collect();
        assert!(places.take(Holder::Reader(1000)).is_none());
        assert!(places.take(Holder::Owner).is_none());
        for index in [5, 2] {
            all[index].rest();
        }
        assert!(places.take(Holder::Reader(1000)).is_none());
        // Taken in the order in which they fell silent.
        let _first = busy(&places, Holder::Owner).unwrap();
        assert!(is_lost(&mut all[5]) && !is_lost(&mut all[2]));
        assert!(!all[5].keep());
        assert!(all[2].keep());
        all[5].rest();
        assert!(places.take(Holder::Owner).is_none());
    }
}
