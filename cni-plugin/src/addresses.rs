//! Which address a pod gets. Pure.
//!
//! Addresses that were never used come first, in order; then the one whose pod is gone for the
//! longest time. An address rests for a minute after its pod has gone, because connections and
//! caches elsewhere still mean the old pod, unless no other is left.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How long an address rests, in seconds.
pub(crate) const REST_SECONDS: u64 = 60;
/// No node runs more pods, and an IPv6 range need not be counted to its end.
const MAX_POOL: u128 = 4096;

/// An address whose pod has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Released {
    /// The address.
    pub(crate) address: IpAddr,
    /// When, in seconds since the machine was booted.
    pub(crate) at: u64,
}

/// The next address of `cidr`. `released` is in the order of release, `now` in seconds since boot.
pub(crate) fn choose(
    cidr: &IpNet,
    taken: &HashSet<IpAddr>,
    released: &[Released],
    now: u64,
) -> Option<IpAddr> {
    let resting: HashSet<_> = released.iter().map(|released| released.address).collect();
    let is_free = |address: &IpAddr| !taken.contains(address);
    let fresh = pool(cidr).find(|address| is_free(address) && !resting.contains(address));
    let rested = |released: &&Released| now.saturating_sub(released.at) >= REST_SECONDS;
    let used = || {
        let used = released
            .iter()
            .filter(|released| is_free(&released.address) && is_in_pool(cidr, &released.address));
        used.clone().find(rested).or_else(|| used.clone().next())
    };
    fresh.or_else(|| used().map(|released| released.address))
}

/// Whether pods may have this address at all.
pub(crate) fn is_in_pool(cidr: &IpNet, address: &IpAddr) -> bool {
    cidr.contains(address) && pool(cidr).any(|candidate| candidate == *address)
}

/// The addresses of a pod CIDR that pods may have: neither the first, which names the range (and,
/// in IPv6, any router), nor IPv4's broadcast address.
fn pool(cidr: &IpNet) -> impl Iterator<Item = IpAddr> {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    let (first, end) = match cidr {
        _ if bits < 2 => (0, size),
        IpNet::V4(_) => (1, size - 1),
        IpNet::V6(_) => (1, size),
    };
    let network = cidr.network();
    (first..end.min(MAX_POOL)).filter_map(move |offset| match network {
        IpAddr::V4(network) => {
            let offset = u32::try_from(offset).ok()?;
            Some(IpAddr::from(
                network.to_bits().checked_add(offset)?.to_be_bytes(),
            ))
        }
        IpAddr::V6(network) => Some(IpAddr::from(
            network.to_bits().checked_add(offset)?.to_be_bytes(),
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn released(text: &str, at: u64) -> Released {
        Released {
            address: address(text),
            at,
        }
    }

    #[test]
    fn a_pool_leaves_out_what_no_pod_may_have() {
        let all = |text| pool(&cidr(text)).collect::<Vec<_>>();
        assert_eq!(all("10.42.3.0/24").len(), 254);
        assert_eq!(
            all("10.42.3.0/30"),
            [address("10.42.3.1"), address("10.42.3.2")]
        );
        assert_eq!(all("10.42.3.0/31").len(), 2);
        assert_eq!(all("10.42.3.9/32"), [address("10.42.3.9")]);
        assert_eq!(all("fd00::/64").len(), 4095);
        assert_eq!(all("fd00::/64")[0], address("fd00::1"));
        assert_eq!(all("fd00::5/128"), [address("fd00::5")]);
    }

    #[test]
    fn unused_addresses_come_before_those_that_were_used() {
        let taken = HashSet::from([address("10.0.0.1")]);
        let gone = [released("10.0.0.2", 0)];
        let chosen = choose(&cidr("10.0.0.0/29"), &taken, &gone, 1_000);
        assert_eq!(chosen, Some(address("10.0.0.3")));
    }

    #[test]
    fn the_address_that_rested_longest_is_next() {
        let gone = [released("10.0.0.2", 10), released("10.0.0.1", 20)];
        let chosen = |now| choose(&cidr("10.0.0.0/30"), &HashSet::new(), &gone, now);
        assert_eq!(chosen(500), Some(address("10.0.0.2")));
    }

    #[test]
    fn a_resting_address_is_taken_only_when_the_pool_is_dry() {
        let gone = [released("10.0.0.2", 100), released("10.0.0.1", 20)];
        let chosen = |now| choose(&cidr("10.0.0.0/30"), &HashSet::new(), &gone, now);
        assert_eq!(chosen(110), Some(address("10.0.0.1")));
        assert_eq!(chosen(30), Some(address("10.0.0.2")));
    }

    #[test]
    fn a_full_pool_and_a_foreign_address_give_nothing() {
        let taken = HashSet::from([address("10.0.0.1"), address("10.0.0.2")]);
        let gone = [released("10.9.9.9", 0), released("10.0.0.1", 0)];
        assert_eq!(choose(&cidr("10.0.0.0/30"), &taken, &gone, 1_000), None);
        assert!(!is_in_pool(&cidr("10.0.0.0/30"), &address("10.0.0.3")));
    }
}
