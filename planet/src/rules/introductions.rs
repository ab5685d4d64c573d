//! When two nodes fire their hole punches: at the same instant, as far as round trips tell.
//!
//! A probe that reaches a Linux NAT before the inside has sent makes that NAT choose another port,
//! so neither side may be early. The planet tells both at once; who is nearer to it waits longer.

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_proto::id::NodeId;
use podmesh_proto::time::Moment;

/// Between two introductions of one pair.
const PAIR_INTERVAL: Duration = Duration::from_millis(300);
/// Pairs older than this are forgotten.
const PAIR_MEMORY: Duration = Duration::from_secs(10);
/// Nobody is told to wait longer, whatever the round trips say.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Remembers which pairs were introduced lately.
#[derive(Debug, Clone, Default)]
pub struct Introductions {
    lately: BTreeMap<(NodeId, NodeId), Moment>,
}

impl Introductions {
    /// Whether the pair may be introduced now; if so, it counts as introduced. Both ends usually ask
    /// for the same: the second one is answered by the first one's introduction.
    pub fn allow(&mut self, one: NodeId, other: NodeId, now: Moment) -> bool {
        let pair = (one.min(other), one.max(other));
        let last = self.lately.get(&pair).copied();
        let free = last.is_none_or(|last| now.since(last) >= PAIR_INTERVAL);
        if free {
            self.lately.insert(pair, now);
        }
        free
    }

    /// Forgets pairs of long ago.
    pub fn sweep(&mut self, now: Moment) {
        self.lately.retain(|_, last| now.since(*last) < PAIR_MEMORY);
    }
}

/// How long each end waits after it hears, from the measured round trips between the planet and the
/// two: the message needs half a round trip, so the longer half minus the own half.
#[must_use]
pub fn waits(one: Duration, other: Duration) -> (Duration, Duration) {
    let (one, other) = (one / 2, other / 2);
    let latest = one.max(other);
    let wait = |own: Duration| latest.saturating_sub(own).min(LONGEST_WAIT);
    (wait(one), wait(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_fire_at_the_same_instant() {
        for (one, other) in [(20, 40), (40, 20), (0, 300), (25, 25), (7, 9)] {
            let (one, other) = (Duration::from_millis(one), Duration::from_millis(other));
            let (wait_one, wait_other) = waits(one, other);
            assert_eq!(one / 2 + wait_one, other / 2 + wait_other);
            assert!(wait_one.is_zero() || wait_other.is_zero());
        }
        let absurd = waits(Duration::from_secs(3_600), Duration::ZERO);
        assert_eq!(absurd, (Duration::ZERO, LONGEST_WAIT));
    }

    #[test]
    fn a_pair_is_introduced_once_in_a_while_whoever_asks() {
        let (a, b, c) = (NodeId([1; 32]), NodeId([2; 32]), NodeId([3; 32]));
        let mut introductions = Introductions::default();
        let at = |ms| Moment::from_start(Duration::from_millis(ms));
        assert!(introductions.allow(a, b, at(0)));
        assert!(!introductions.allow(b, a, at(100)));
        assert!(introductions.allow(a, c, at(100)));
        assert!(introductions.allow(b, a, at(400)));
        introductions.sweep(at(60_000));
        assert!(introductions.lately.is_empty());
    }
}
