//! Who is on the way in: connections whose handshake is not over or that have not spoken yet.
//!
//! They take no place of those who are in. Nobody holds more of the doorway than its part, whatever part
//! of the network it has at its command, and a full doorway lets go of somebody who has stood there
//! longest among those who take most of it. Nor may one party come and go all the time.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections on the way in, of everybody together.
const EVERYBODY: usize = 1_024;
/// Parts of the network that one party may have at its command, as prefix lengths of IPv6, each with what
/// it may hold of the doorway and what may come from it in a minute. A provider gives a customer a /64 to
/// a /48. A site behind one NAT that comes back at once gets in by turns.
const IPV6: [(u32, Part); 3] = [(64, SMALL), (56, MIDDLE), (48, LARGE)];
/// The same of IPv4: an address, and what is routed as one.
const IPV4: [(u32, Part); 2] = [(32, SMALL), (24, LARGE)];

const SMALL: Part = Part {
    inside: 64,
    a_minute: 1_200,
};
const MIDDLE: Part = Part {
    inside: 128,
    a_minute: 2_400,
};
const LARGE: Part = Part {
    inside: 256,
    a_minute: 4_800,
};
const MINUTE: Duration = Duration::from_secs(60);
/// Prefixes whose comings are counted; when there are more, the count of all begins anew.
const MAX_COUNTED: usize = 64 * 1024;

#[derive(Clone, Copy)]
struct Part {
    inside: usize,
    a_minute: u32,
}

/// A prefix: its length and its first address.
type Prefix = (u32, IpAddr);

/// Counts who is on the way in.
#[derive(Debug, Clone, Default)]
pub struct Doorway {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    inside: BTreeMap<Prefix, usize>,
    /// Who stands here, the longest first.
    standing: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
    next: u64,
    came: BTreeMap<Prefix, u32>,
    since: Option<Instant>,
}

/// A connection's stay in the doorway; it ends when this is dropped.
#[derive(Debug)]
pub struct Passage {
    doorway: Doorway,
    number: u64,
    shown_out: Arc<Notify>,
}

impl Passage {
    /// Ends when the doorway is full and it is this one that has to go.
    pub async fn shown_out(&self) {
        self.shown_out.notified().await;
    }
}

impl Doorway {
    /// Lets a connection from `address` in, unless its source has its part of the doorway already, or
    /// comes too often. Where everybody together are too many, another one is shown out.
    #[must_use]
    pub fn enter(&self, address: IpAddr, now: Instant) -> Option<Passage> {
        let mut state = self.state();
        state.start_minute(now);
        let parts: Vec<(Prefix, Part)> = parts(address).collect();
        let full = parts.iter().any(|(prefix, part)| {
            let inside = state.inside.get(prefix).copied().unwrap_or(0);
            let came = state.came.get(prefix).copied().unwrap_or(0);
            inside >= part.inside || came >= part.a_minute
        });
        if full {
            return None;
        }
        if state.standing.len() >= EVERYBODY {
            state.show_one_out();
        }
        for (prefix, _) in parts {
            *state.inside.entry(prefix).or_default() += 1;
            *state.came.entry(prefix).or_default() += 1;
        }
        state.next += 1;
        let (number, shown_out) = (state.next, Arc::new(Notify::new()));
        let standing = (address, Arc::clone(&shown_out));
        state.standing.insert(number, standing);
        Some(Passage {
            doorway: self.clone(),
            number,
            shown_out,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn start_minute(&mut self, now: Instant) {
        let over = self
            .since
            .is_none_or(|since| now.duration_since(since) >= MINUTE);
        if over || self.came.len() > MAX_COUNTED {
            self.since = Some(now);
            self.came.clear();
        }
    }

    /// Shows out who has stood here longest of the party that takes most.
    fn show_one_out(&mut self) {
        let widest = |address: &IpAddr| parts(*address).last().map(|(prefix, _)| prefix);
        let taken = |address: &IpAddr| {
            let prefix = widest(address);
            prefix.and_then(|prefix| self.inside.get(&prefix)).copied()
        };
        let mut most: VecDeque<(Option<usize>, u64)> = VecDeque::new();
        for (number, (address, _)) in &self.standing {
            let taken = taken(address);
            if most.front().is_none_or(|(others, _)| taken > *others) {
                most.push_front((taken, *number));
            }
        }
        if let Some((_, number)) = most.pop_front() {
            self.leave(number);
        }
    }

    fn leave(&mut self, number: u64) {
        let Some((address, shown_out)) = self.standing.remove(&number) else {
            return;
        };
        shown_out.notify_one();
        for (prefix, _) in parts(address) {
            match self.inside.get_mut(&prefix) {
                Some(count) if *count > 1 => *count = count.saturating_sub(1),
                _ => {
                    self.inside.remove(&prefix);
                }
            }
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.doorway.state().leave(self.number);
    }
}

/// The prefixes that an address is in, the longest first.
fn parts(address: IpAddr) -> impl Iterator<Item = (Prefix, Part)> {
    let parts = match address.to_canonical() {
        IpAddr::V4(_) => IPV4.as_slice(),
        IpAddr::V6(_) => IPV6.as_slice(),
    };
    parts
        .iter()
        .map(move |(length, part)| ((*length, first_of(address, *length)), *part))
}

fn first_of(address: IpAddr, length: u32) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - length.min(32)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test that can't set its scene fails there"
)]
mod tests {
    use super::*;

    fn fill(doorway: &Doorway, address: impl Fn(usize) -> String) -> Vec<Passage> {
        let now = Instant::now();
        let addresses = (0..2_000).map(|number| address(number).parse().unwrap());
        addresses
            .filter_map(|from| doorway.enter(from, now))
            .collect()
    }

    fn enters(doorway: &Doorway, address: &str) -> bool {
        let passage = doorway.enter(address.parse().unwrap(), Instant::now());
        passage.is_some()
    }

    #[test]
    fn one_source_holds_its_part_until_it_goes() {
        let doorway = Doorway::default();
        let one = fill(&doorway, |_| "192.0.2.1".to_owned());
        let mapped = fill(&doorway, |_| "::ffff:192.0.2.1".to_owned());
        let site = fill(&doorway, |number| format!("2001:db8::{number:x}"));
        assert_eq!((one.len(), mapped.len()), (SMALL.inside, 0));
        assert_eq!(site.len(), SMALL.inside, "a /64 is one source");
        assert!(enters(&doorway, "192.0.2.2"));
        assert!(enters(&doorway, "2001:db8:0:1::1"));
        drop((one, site));
        assert!(enters(&doorway, "192.0.2.1"));
        assert!(
            doorway.state().inside.is_empty(),
            "nothing is kept of who went"
        );
    }

    #[test]
    fn whoever_has_much_of_the_network_has_its_part_too() {
        let doorway = Doorway::default();
        let home = fill(&doorway, |number| {
            format!("2001:db8:0:{:x}::1", number % 256)
        });
        assert_eq!(home.len(), MIDDLE.inside, "a /56");
        let site = fill(&doorway, |number| format!("2001:db8:0:{number:x}::2"));
        assert_eq!(home.len() + site.len(), LARGE.inside, "a /48");
        let net = fill(&doorway, |number| format!("192.0.2.{}", number % 256));
        assert_eq!(net.len(), LARGE.inside, "a /24");
        assert!(enters(&doorway, "2001:db8:1::1"));
        assert!(enters(&doorway, "198.51.100.1"));
    }

    #[tokio::test]
    async fn a_full_doorway_lets_go_of_the_oldest_of_who_takes_most() {
        let doorway = Doorway::default();
        let net = fill(&doorway, |number| format!("192.0.2.{}", number % 256));
        let others = fill(&doorway, |number| {
            format!("10.{}.{}.1", number / 256, number % 256)
        });
        assert_eq!(doorway.state().standing.len(), EVERYBODY);
        assert_eq!(others.len(), 2_000, "nobody is refused");
        let patience = Duration::from_millis(10);
        let shown_out = |passage| tokio::time::timeout(patience, Passage::shown_out(passage));
        assert!(shown_out(&net[0]).await.is_ok());
        let newcomer = "203.0.113.1".parse().unwrap();
        let newcomer = doorway.enter(newcomer, Instant::now()).unwrap();
        assert!(shown_out(&newcomer).await.is_err());
        drop((net, others));
        assert_eq!(doorway.state().standing.len(), 1);
    }

    #[test]
    fn who_comes_and_goes_all_the_time_waits_for_the_next_minute() {
        let doorway = Doorway::default();
        let now = Instant::now();
        let come = |at: Instant, last: u32| {
            let address = IpAddr::V6(Ipv6Addr::new(
                0x2001,
                0xdb8,
                0,
                0,
                0,
                0,
                0,
                u16::try_from(last).unwrap(),
            ));
            doorway.enter(address, at).is_some()
        };
        let entered = (0..5_000).filter(|number| come(now, *number)).count();
        assert_eq!(entered, 1_200);
        assert!(enters(&doorway, "198.51.100.1"));
        assert!(come(now + MINUTE, 1));
    }
}
