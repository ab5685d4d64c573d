//! Which address and which blocks a new node gets.
//!
//! Never what overlaps anything that is leased, claimed or an external peer's. A node that comes back
//! gets what it held last, piece by piece, as far as its token allows and nobody else has it: its pods
//! may stand with those addresses. For the same reason somebody else gets what a node has given up only when
//! nothing else is left, and then what was given up longest ago. The search starts after the highest
//! taken block and wraps around.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podmesh_proto::certificate::{Grant, Leases};
use podmesh_proto::network::Network;

/// No free block is left in a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free {what} is left in {range}")]
pub struct Exhausted {
    /// Address or block.
    pub what: &'static str,
    /// Where.
    pub range: IpNet,
}

/// What there is to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Supply<'a> {
    /// What others have.
    pub taken: &'a [IpNet],
    /// What the node held last, if anything is known of it.
    pub held: Option<&'a Leases>,
    /// What nodes held that have given it up, the oldest first.
    pub given_up: &'a [Vec<IpNet>],
}

/// Leases for a node under `grant`. A family whose range lies outside the grant's ranges is not leased.
///
/// # Errors
/// [`Exhausted`] when a granted range is full.
pub fn choose(network: &Network, grant: &Grant, supply: Supply<'_>) -> Result<Leases, Exhausted> {
    let ranges = &network.ranges;
    let edges = [ranges.overlay4.network(), ranges.overlay4.broadcast()];
    let edges = edges.map(|edge| IpNet::from(IpAddr::V4(edge)));
    let mut taken = supply.taken.to_vec();
    taken.extend(ranges.services.iter().copied().chain(edges));
    let search = Search {
        grant,
        taken,
        given_up: supply.given_up,
    };
    let held = supply.held.cloned().unwrap_or_default();
    let address = held
        .overlay4
        .map(|address| IpNet::from(IpAddr::V4(address)));
    let overlay4 = (IpNet::V4(ranges.overlay4), 32);
    let overlay4 = search.lease(overlay4, address, "overlay address")?;
    let pods4 = (IpNet::V4(ranges.pods4), ranges.pods4_block);
    let pods4 = search.lease(pods4, held.pods4.map(IpNet::V4), "pod CIDR")?;
    let pods6 = (IpNet::V6(ranges.pods6), ranges.pods6_block);
    let pods6 = search.lease(pods6, held.pods6.map(IpNet::V6), "pod CIDR")?;
    Ok(Leases {
        overlay4: overlay4.and_then(v4).map(|prefix| prefix.network()),
        pods4: pods4.and_then(v4),
        pods6: pods6.and_then(v6),
    })
}

/// Whether two prefixes share an address.
#[must_use]
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

struct Search<'a> {
    grant: &'a Grant,
    taken: Vec<IpNet>,
    given_up: &'a [Vec<IpNet>],
}

impl Search<'_> {
    /// A block of that many bits in `range`, or the one that was held.
    fn lease(
        &self,
        (range, bits): (IpNet, u8),
        held: Option<IpNet>,
        what: &'static str,
    ) -> Result<Option<IpNet>, Exhausted> {
        let granted = self.granted(range);
        let Some(first) = granted.first().copied() else {
            return Ok(None);
        };
        let is_granted = |prefix: &IpNet| granted.iter().any(|range| range.contains(prefix));
        let is_taken = |prefix: &IpNet| self.taken.iter().any(|taken| overlap(taken, prefix));
        let held = held.filter(|held| is_granted(held) && !is_taken(held));
        let found = held.or_else(|| self.free(&granted, bits));
        found.map(Some).ok_or(Exhausted { what, range: first })
    }

    /// The parts of `range` that the grant gives.
    fn granted(&self, range: IpNet) -> Vec<IpNet> {
        if self.grant.ranges.is_empty() {
            return vec![range];
        }
        let inside = |granted: &IpNet| {
            if range.contains(granted) {
                Some(granted.trunc())
            } else {
                granted.contains(&range).then_some(range)
            }
        };
        self.grant.ranges.iter().filter_map(inside).collect()
    }

    /// While nothing is free, twice as much as before of what was given up counts as free, the oldest first.
    fn free(&self, granted: &[IpNet], bits: u8) -> Option<IpNet> {
        let mut freed = 0_usize;
        loop {
            let rest = self.given_up.get(freed..).unwrap_or_default();
            let mut busy = self.taken.clone();
            busy.extend(rest.iter().flatten());
            let found = granted
                .iter()
                .find_map(|range| free_block(*range, bits.max(range.prefix_len()), &busy));
            if found.is_some() || rest.is_empty() {
                return found;
            }
            freed = (freed * 2).max(1);
        }
    }
}

/// The first free block of `range` after the highest taken one, wrapping around.
fn free_block(range: IpNet, block: u8, taken: &[IpNet]) -> Option<IpNet> {
    let (start, end) = bounds(&range);
    let bits = u32::from(range.max_prefix_len().checked_sub(block)?);
    let size = 1_u128.checked_shl(bits)?;
    let mut busy: Vec<(u128, u128)> = taken
        .iter()
        .filter(|prefix| overlap(prefix, &range))
        .map(bounds)
        .collect();
    busy.sort_unstable();
    let highest = busy.iter().map(|(_, last)| *last).max();
    let after = highest
        .filter(|last| *last < end)
        .and_then(|last| aligned_after(last, size));
    let later = after.and_then(|after| search(after, end, size, &busy));
    let address = later.or_else(|| search(start, end, size, &busy))?;
    prefix_at(&range, address, block)
}

fn search(start: u128, end: u128, size: u128, busy: &[(u128, u128)]) -> Option<u128> {
    let mut candidate = start;
    for (first, last) in busy {
        if candidate.checked_add(size - 1)? < *first {
            break;
        }
        if *last >= candidate {
            candidate = aligned_after(*last, size)?;
        }
    }
    (candidate.checked_add(size - 1)? <= end).then_some(candidate)
}

/// The first multiple of `size` (a power of two) above `last`.
fn aligned_after(last: u128, size: u128) -> Option<u128> {
    (last | (size - 1)).checked_add(1)
}

fn bounds(prefix: &IpNet) -> (u128, u128) {
    match prefix {
        IpNet::V4(prefix) => (
            u128::from(u32::from(prefix.network())),
            u128::from(u32::from(prefix.broadcast())),
        ),
        IpNet::V6(prefix) => (u128::from(prefix.network()), u128::from(prefix.broadcast())),
    }
}

fn prefix_at(range: &IpNet, address: u128, length: u8) -> Option<IpNet> {
    let address = match range {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(address).ok()?)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(address)),
    };
    IpNet::new(address, length).ok()
}

fn v4(prefix: IpNet) -> Option<Ipv4Net> {
    match prefix {
        IpNet::V4(prefix) => Some(prefix),
        IpNet::V6(_) => None,
    }
}

fn v6(prefix: IpNet) -> Option<Ipv6Net> {
    match prefix {
        IpNet::V6(prefix) => Some(prefix),
        IpNet::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn blocks_follow_the_highest_taken_one_and_wrap_around() {
        for (range, block, taken, expected) in [
            ("10.42.0.0/16", 24, vec![], Some("10.42.0.0/24")),
            (
                "10.42.0.0/16",
                24,
                vec!["10.42.0.0/24"],
                Some("10.42.1.0/24"),
            ),
            (
                "10.42.0.0/16",
                24,
                vec!["10.42.7.128/25"],
                Some("10.42.8.0/24"),
            ),
            (
                "10.42.0.0/16",
                24,
                vec!["10.42.4.0/22"],
                Some("10.42.8.0/24"),
            ),
            (
                "10.42.0.0/16",
                24,
                vec!["10.42.255.0/24"],
                Some("10.42.0.0/24"),
            ),
            (
                "10.42.0.0/22",
                24,
                vec!["10.42.0.0/25", "10.42.1.7/32", "10.42.3.0/24"],
                Some("10.42.2.0/24"),
            ),
            (
                "10.42.0.0/23",
                24,
                vec!["10.42.0.1/32", "10.42.1.1/32"],
                None,
            ),
            ("10.42.0.0/16", 24, vec!["10.0.0.0/8"], None),
            (
                "10.77.0.0/16",
                32,
                vec!["10.77.0.0/32"],
                Some("10.77.0.1/32"),
            ),
            ("fd00::/62", 64, vec!["fd00::/64"], Some("fd00:0:0:1::/64")),
            (
                "255.255.255.0/24",
                32,
                vec!["255.255.255.255/32"],
                Some("255.255.255.0/32"),
            ),
        ] {
            let found = free_block(range.parse().unwrap(), block, &nets(&taken));
            assert_eq!(
                found.map(|prefix| prefix.to_string()).as_deref(),
                expected,
                "{range} beside {taken:?}"
            );
        }
    }

    #[test]
    fn leased_blocks_never_overlap() {
        let range: IpNet = "10.42.0.0/20".parse().unwrap();
        let (mut taken, mut state) = (Vec::new(), 7_u64);
        loop {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let block = 22 + u8::try_from((state >> 60) % 6).unwrap();
            let Some(prefix) = free_block(range, block, &taken) else {
                break;
            };
            assert!(range.contains(&prefix));
            assert!(
                taken.iter().all(|other| !overlap(other, &prefix)),
                "{prefix}"
            );
            taken.push(prefix);
            if taken.len() % 7 == 0 {
                taken.remove(usize::try_from(state >> 33).unwrap() % taken.len());
            }
        }
        assert!(taken.len() > 4);
    }
}
