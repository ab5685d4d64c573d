//! Who is on the way in: connections whose handshake is not over or that have not spoken yet.
//!
//! They take no place of those who are in, and one address can't hold all of the doorway.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections on the way in, of everybody together.
const EVERYBODY: usize = 1_024;
/// Of one IPv4 address or one IPv6 /64: a site behind one NAT that comes back at once gets in by turns.
const ONE_SOURCE: usize = 64;

/// Counts who is on the way in.
#[derive(Debug, Clone, Default)]
pub struct Doorway {
    inside: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// A connection's stay in the doorway; it ends when this is dropped.
#[derive(Debug)]
pub struct Passage {
    doorway: Doorway,
    source: IpAddr,
}

impl Doorway {
    /// Lets a connection from `address` in, unless the doorway or the source's part of it is full.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<Passage> {
        let source = source(address);
        let mut inside = self.inside();
        let everybody: usize = inside.values().sum();
        let own = inside.get(&source).copied().unwrap_or(0);
        if everybody >= EVERYBODY || own >= ONE_SOURCE {
            return None;
        }
        inside.insert(source, own.saturating_add(1));
        Some(Passage {
            doorway: self.clone(),
            source,
        })
    }

    fn inside(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut inside = self.doorway.inside();
        match inside.get_mut(&self.source) {
            Some(count) if *count > 1 => *count = count.saturating_sub(1),
            _ => {
                inside.remove(&self.source);
            }
        }
    }
}

/// What one party has at its command: an IPv4 address, or the /64 of an IPv6 address.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let site = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(site))
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
        let addresses = (0..2_000).map(|number| address(number).parse().unwrap());
        addresses.filter_map(|from| doorway.enter(from)).collect()
    }

    #[test]
    fn one_source_holds_its_part_until_it_goes() {
        let doorway = Doorway::default();
        let one = fill(&doorway, |_| "192.0.2.1".to_owned());
        let mapped = fill(&doorway, |_| "::ffff:192.0.2.1".to_owned());
        let site = fill(&doorway, |number| format!("2001:db8::{number:x}"));
        assert_eq!((one.len(), mapped.len()), (ONE_SOURCE, 0));
        assert_eq!(site.len(), ONE_SOURCE, "a /64 is one source");
        assert!(doorway.enter("192.0.2.2".parse().unwrap()).is_some());
        assert!(doorway.enter("2001:db8:0:1::1".parse().unwrap()).is_some());
        drop((one, site));
        assert!(doorway.enter("192.0.2.1".parse().unwrap()).is_some());
        assert!(doorway.inside().is_empty(), "nothing is kept of who went");
    }

    #[test]
    fn the_doorway_has_an_end() {
        let doorway = Doorway::default();
        let many = fill(&doorway, |number| {
            format!("10.0.{}.{}", number / 256, number % 256)
        });
        assert_eq!(many.len(), EVERYBODY);
    }
}
