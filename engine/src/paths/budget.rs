//! How many probes may leave towards endpoints that have not answered.
//!
//! A member may lie about its endpoints and so aim the probes of all its peers at a victim. On
//! behalf of one member a node sends at most 17 probes of 116 bytes to one address in any 30 s,
//! however many candidates and rounds there are: a thousand nodes send less than 2 MB. The node as a
//! whole sends at most 200 probes a second, and 400 at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podmesh_proto::id::NodeId;
use podmesh_proto::time::Moment;

use crate::mutation::{self, Mutant};

/// Probes on behalf of one member to one address within [`WINDOW`].
const PER_ADDRESS: usize = 17;
const WINDOW: Duration = Duration::from_secs(30);
/// Probes that the node may send at once.
const TOTAL_BURST: u64 = 400;
/// Probes that the node may send each second after that.
const TOTAL_REFILL: u64 = 200;
/// Pairs of member and address that are remembered; more than the node may probe within a window.
const MAX_PAIRS: usize = 8_192;

/// The node's budget of unproven probes.
#[derive(Debug)]
pub struct ProbeBudget {
    thousandths: u64,
    at: Moment,
    sent: BTreeMap<(NodeId, IpAddr), Vec<Moment>>,
}

impl ProbeBudget {
    /// A full budget.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            thousandths: TOTAL_BURST * 1_000,
            at: now,
            sent: BTreeMap::new(),
        }
    }

    /// Takes one probe to `target`, on behalf of `member`, out of the budget, if it is in it.
    pub fn take(&mut self, member: NodeId, target: IpAddr, now: Moment) -> bool {
        if mutation::is(Mutant::NoBudget) {
            return true;
        }
        self.refill(now);
        if self.thousandths < 1_000 {
            return false;
        }
        if self.sent.len() >= MAX_PAIRS && !self.sent.contains_key(&(member, target)) {
            self.sent
                .retain(|_, sent| sent.last().is_some_and(|last| now.since(*last) < WINDOW));
            if self.sent.len() >= MAX_PAIRS {
                return false;
            }
        }
        let sent = self.sent.entry((member, target)).or_default();
        sent.retain(|at| now.since(*at) < WINDOW);
        let granted = sent.len() < PER_ADDRESS;
        if granted {
            sent.push(now);
            self.thousandths -= 1_000;
        }
        granted
    }

    fn refill(&mut self, now: Moment) {
        let millis = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        if millis > 0 {
            let more = millis.saturating_mul(TOTAL_REFILL);
            self.thousandths = self
                .thousandths
                .saturating_add(more)
                .min(TOTAL_BURST * 1_000);
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_victim_gets_seventeen_probes_in_any_thirty_seconds() {
        let mut budget = ProbeBudget::new(Moment::ZERO);
        let victim = "198.51.100.7".parse().unwrap();
        let sent: Vec<u64> = (0..120_000)
            .step_by(7)
            .filter(|millis| budget.take(NodeId([1; 32]), victim, at(*millis)))
            .collect();
        for start in &sent {
            let within = sent
                .iter()
                .filter(|other| (*start..start + 30_000).contains(other));
            assert!(within.count() <= 17);
        }
        assert!(
            budget.take(NodeId([2; 32]), victim, at(120_000)),
            "another member's are its own"
        );
    }

    #[test]
    fn the_node_as_a_whole_and_its_memory_are_bounded() {
        let mut budget = ProbeBudget::new(Moment::ZERO);
        let sent = (0..100_000_u32)
            .filter(|n| {
                let target = IpAddr::V4((0x0b00_0000 + n).into());
                budget.take(NodeId([1; 32]), target, at(u64::from(*n)))
            })
            .count();
        assert!(sent <= 400 + 100 * 200, "{sent} probes in 100 s");
        assert!(budget.sent.len() <= MAX_PAIRS);
    }
}
