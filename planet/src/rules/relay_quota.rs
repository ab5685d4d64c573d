//! How much is relayed: for each node, and for all of them together.
//!
//! A node's quota belongs to the node and not to one of its sessions, so that coming back is no way to a
//! new one. Where all together want more than there is, everybody gets an equal share first, and what the
//! others leave goes to who wants more.

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_proto::id::NodeId;
use podmesh_proto::time::Moment;

use crate::rules::bucket::Bucket;

/// How much may be relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayQuota {
    /// Bytes a second in the long run, for one node.
    pub bytes_per_second: u64,
    /// Bytes at once, for one node.
    pub burst_bytes: u64,
    /// Bytes a second for all nodes together.
    pub total_bytes_per_second: u64,
}

impl Default for RelayQuota {
    /// 100 Mbit/s, and a quarter of a second of it at once; 1 Gbit/s for all together.
    fn default() -> Self {
        Self {
            bytes_per_second: 12_500_000,
            burst_bytes: 3_125_000,
            total_bytes_per_second: 125_000_000,
        }
    }
}

/// Sessions of one node: the one by which it is reached, and the newest.
const MAX_SESSIONS: usize = 2;
/// A node's quota outlives its last session by this.
const REMEMBERED: Duration = Duration::from_secs(60);
/// In each of these everybody has a share.
const WINDOW: Duration = Duration::from_millis(100);

/// Who has had how much.
#[derive(Debug)]
pub(super) struct Quotas {
    quota: RelayQuota,
    nodes: BTreeMap<NodeId, Usage>,
    total: Bucket,
    window: u64,
    /// Nodes that wanted something in this window, and in the last one.
    wanting: (u64, u64),
}

#[derive(Debug)]
struct Usage {
    bucket: Bucket,
    /// The oldest first.
    sessions: Vec<u32>,
    idle_since: Option<Moment>,
    window: u64,
    used: u64,
}

impl Quotas {
    pub(super) fn new(quota: RelayQuota) -> Self {
        let per_second = quota.total_bytes_per_second;
        // A quarter of a second, and never less than a few full datagrams.
        let burst = (per_second / 4).max(64 * 1024);
        Self {
            quota,
            nodes: BTreeMap::new(),
            total: Bucket::new(per_second, burst, Moment::ZERO),
            window: 0,
            wanting: (0, 1),
        }
    }

    /// Notes a new session; gives the one that has to go for it. `kept` is the one by which the node is
    /// reached.
    pub(super) fn open(
        &mut self,
        node: NodeId,
        session: u32,
        kept: Option<u32>,
        now: Moment,
    ) -> Option<u32> {
        self.nodes.retain(|_, usage| {
            let idle = usage.idle_since.map(|since| now.since(since));
            idle.is_none_or(|idle| idle < REMEMBERED)
        });
        let Self { quota, nodes, .. } = self;
        let usage = nodes.entry(node).or_insert_with(|| Usage {
            bucket: Bucket::new(quota.bytes_per_second, quota.burst_bytes, now),
            sessions: Vec::new(),
            idle_since: None,
            window: 0,
            used: 0,
        });
        usage.idle_since = None;
        let full = usage.sessions.len() >= MAX_SESSIONS;
        let victim = usage
            .sessions
            .iter()
            .position(|one| full && Some(*one) != kept)
            .map(|index| usage.sessions.remove(index));
        usage.sessions.push(session);
        victim
    }

    pub(super) fn close(&mut self, node: &NodeId, session: u32, now: Moment) {
        if let Some(usage) = self.nodes.get_mut(node) {
            usage.sessions.retain(|one| *one != session);
            if usage.sessions.is_empty() {
                usage.idle_since = Some(now);
            }
        }
    }

    /// The newest of the node's sessions.
    pub(super) fn newest(&self, node: &NodeId) -> Option<u32> {
        self.nodes.get(node)?.sessions.last().copied()
    }

    /// Takes `bytes` for a node, or nothing and says `false`.
    pub(super) fn take(&mut self, node: &NodeId, bytes: u64, now: Moment) -> bool {
        let window = WINDOW.as_millis().max(1);
        let window = u64::try_from(now.since_start().as_millis() / window).unwrap_or(u64::MAX);
        if window != self.window {
            let last = if window == self.window.saturating_add(1) {
                self.wanting.0
            } else {
                0
            };
            (self.window, self.wanting) = (window, (0, last));
        }
        let Some(usage) = self.nodes.get_mut(node) else {
            return false;
        };
        if usage.window != window {
            (usage.window, usage.used) = (window, 0);
            self.wanting.0 = self.wanting.0.saturating_add(1);
        }
        let wanting = self.wanting.0.max(self.wanting.1).max(1);
        let per_window = self.quota.total_bytes_per_second / 10;
        let share = per_window / wanting;
        let within = usage.used.saturating_add(bytes) <= share;
        let reserve = if within { 0 } else { per_window };
        if !usage.bucket.take(bytes, now) || !self.total.take_leaving(bytes, reserve, now) {
            return false;
        }
        usage.used = usage.used.saturating_add(bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: RelayQuota = RelayQuota {
        bytes_per_second: 1_000_000,
        burst_bytes: 250_000,
        total_bytes_per_second: 2_000_000,
    };

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    /// What each of some nodes gets in ten seconds that want so many packets of 1,000 bytes a
    /// millisecond.
    fn play(quota: RelayQuota, wants: &[u32]) -> Vec<u64> {
        let mut quotas = Quotas::new(quota);
        let numbers: Vec<u8> = (0..u8::try_from(wants.len()).unwrap()).collect();
        for number in &numbers {
            quotas.open(node(*number), u32::from(*number), None, Moment::ZERO);
        }
        let mut got = vec![0; wants.len()];
        for millisecond in 0..10_000 {
            let now = Moment::from_start(Duration::from_millis(millisecond));
            for (number, want) in numbers.iter().zip(wants) {
                for _ in 0..*want {
                    if quotas.take(&node(*number), 1_000, now) {
                        got[usize::from(*number)] += 1_000;
                    }
                }
            }
        }
        got
    }

    #[test]
    fn all_nodes_together_get_no_more_than_the_total_and_share_it() {
        let got = play(QUOTA, &[20, 2, 2, 2]);
        let total: u64 = got.iter().sum();
        assert!((19_000_000..=20_600_000).contains(&total), "{got:?}");
        for one in &got {
            assert!((4_000_000..=6_500_000).contains(one), "{got:?}");
        }
    }

    #[test]
    fn what_some_leave_goes_to_who_wants_more() {
        let quota = RelayQuota {
            bytes_per_second: 10_000_000,
            ..QUOTA
        };
        let sparse = play(quota, &[20, 0, 0, 0]);
        assert!(sparse[0] >= 18_000_000, "{sparse:?}");
        // One packet a millisecond of 1,000 bytes is a megabyte a second, half of everything.
        let got = play(quota, &[20, 1]);
        assert!(got[1] >= 9_000_000 && got[0] >= 8_000_000, "{got:?}");
    }

    #[test]
    fn coming_back_is_no_way_to_a_new_quota() {
        let mut quotas = Quotas::new(QUOTA);
        let mut taken = 0;
        for session in 0..100 {
            let now = Moment::from_start(Duration::from_millis(100 * u64::from(session)));
            let gone = quotas.open(node(1), session, Some(0), now);
            if let Some(gone) = gone {
                assert_ne!(gone, 0, "the one by which the node is reached stays");
            }
            if session % 7 == 6 {
                for one in 0..=session {
                    quotas.close(&node(1), one, now);
                }
                quotas.open(node(1), session, None, now);
            }
            while quotas.take(&node(1), 1_000, now) {
                taken += 1_000;
            }
        }
        assert!(taken <= 250_000 + 10_000_000, "{taken}");
    }
}
