//! How many probes may leave towards endpoints that have not answered.
//!
//! A member may lie about its endpoints and so aim the probes of all its peers at a victim. What
//! one node sends there is bounded here for all peers together: 40 probes of 116 bytes, then four each
//! second; the node as a whole may send 400 at once and 200 each second.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podmesh_proto::time::Moment;

/// Probes that one address may get at once: two rounds towards two nodes behind it.
const BURST: u32 = 40;
/// Probes that one address may get each second after that.
const REFILL: u32 = 4;
/// Probes that the node may send at once.
const TOTAL_BURST: u32 = 400;
/// Probes that the node may send each second after that.
const TOTAL_REFILL: u32 = 200;
/// Addresses that are remembered; those that are full again are forgotten first.
const MAX_ADDRESSES: usize = 4_096;

/// The node's budget of unproven probes.
#[derive(Debug)]
pub struct ProbeBudget {
    total: Bucket,
    addresses: BTreeMap<IpAddr, Bucket>,
}

impl ProbeBudget {
    /// A full budget.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            total: Bucket::full(TOTAL_BURST, now),
            addresses: BTreeMap::new(),
        }
    }

    /// Takes one probe towards `target` out of the budget, if it is in it.
    pub fn take(&mut self, target: IpAddr, now: Moment) -> bool {
        self.total.refill(TOTAL_BURST, TOTAL_REFILL, now);
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&target) {
            self.addresses.retain(|_, bucket| {
                bucket.refill(BURST, REFILL, now);
                bucket.thousandths < u64::from(BURST) * 1_000
            });
            if self.addresses.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let bucket = self
            .addresses
            .entry(target)
            .or_insert_with(|| Bucket::full(BURST, now));
        bucket.refill(BURST, REFILL, now);
        let granted = self.total.has_one() && bucket.has_one();
        if granted {
            self.total.thousandths -= 1_000;
            bucket.thousandths -= 1_000;
        }
        granted
    }
}

#[derive(Debug)]
struct Bucket {
    thousandths: u64,
    at: Moment,
}

impl Bucket {
    fn full(burst: u32, now: Moment) -> Self {
        Self {
            thousandths: u64::from(burst) * 1_000,
            at: now,
        }
    }

    fn refill(&mut self, burst: u32, per_second: u32, now: Moment) {
        let millis = now
            .since(self.at)
            .min(Duration::from_secs(3_600))
            .as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        if millis > 0 {
            let more = millis.saturating_mul(u64::from(per_second));
            self.thousandths = self
                .thousandths
                .saturating_add(more)
                .min(u64::from(burst) * 1_000);
            self.at = now;
        }
    }

    fn has_one(&self) -> bool {
        self.thousandths >= 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_victim_gets_a_burst_and_then_a_trickle_whoever_names_it() {
        let mut budget = ProbeBudget::new(Moment::ZERO);
        let victim = "198.51.100.7".parse().unwrap();
        let sent = (0..30_000)
            .filter(|millis| {
                budget.take(victim, Moment::from_start(Duration::from_millis(*millis)))
            })
            .count();
        assert!(sent <= 40 + 30 * 4, "{sent} probes in 30 s");
        assert!(budget.take(
            "198.51.100.8".parse().unwrap(),
            Moment::from_start(Duration::from_secs(30))
        ));
    }

    #[test]
    fn the_memory_of_addresses_is_bounded() {
        let mut budget = ProbeBudget::new(Moment::ZERO);
        for n in 0..100_000_u32 {
            budget.take(
                IpAddr::V4((0x0b00_0000 + n).into()),
                Moment::ZERO + Duration::from_millis(u64::from(n)),
            );
        }
        assert!(budget.addresses.len() <= MAX_ADDRESSES);
    }
}
