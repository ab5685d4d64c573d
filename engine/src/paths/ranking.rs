//! Which path carries the data.

use std::net::IpAddr;
use std::time::Duration;

use podmesh_proto::time::{Moment, Now};

use super::trial::Trial;
use super::{HISTORY, MAX_LAST_GOOD, PathAction, Paths, Switch, SwitchReason};
use crate::mutation::{self, Mutant};
use crate::path_id::PathId;

/// IPv6 may be this much slower and still win: it has fewer NATs in the way.
const V6_BONUS: Duration = Duration::from_millis(3);
/// How much faster a path of the same kind must be.
const HYSTERESIS: Duration = Duration::from_millis(5);
/// Echoes in a row that must show it.
const SAMPLES: u8 = 3;
/// Direct paths and relays that are kept ready beside the path in use.
const STANDBY: (usize, usize) = (1, 2);

/// The kind of a path; a lower one always wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// Inside one private network.
    Lan,
    /// Straight through the internet.
    Direct,
    /// By way of a planet.
    Relay,
}

impl Paths {
    pub(super) fn tier(&self, path: &PathId) -> Tier {
        match path {
            PathId::Relay { .. } if mutation::is(Mutant::RelayFirst) => Tier::Lan,
            PathId::Relay { .. } => Tier::Relay,
            PathId::Direct { endpoint, .. } if self.is_near(endpoint.ip()) => Tier::Lan,
            PathId::Direct { .. } => Tier::Direct,
        }
    }

    /// Whether a path stays inside a network that this node is attached to.
    #[must_use]
    pub fn is_local(&self, path: &PathId) -> bool {
        self.tier(path) == Tier::Lan
    }

    /// A private IPv4 address, or an IPv6 address under the same /64 as one of this node's own.
    fn is_near(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip.is_private(),
            IpAddr::V6(ip) => {
                let same_link = |own: &IpAddr| matches!(own, IpAddr::V6(own) if own.segments().iter().take(4).eq(ip.segments().iter().take(4)));
                ip.is_unique_local() || self.local.hosts.iter().any(same_link)
            }
        }
    }

    /// Takes another path if that is right now.
    pub(super) fn choose(&mut self, now: Now) {
        let active = self.active.filter(|path| self.is_proven(path));
        let Some(current) = active else {
            return self.replace_lost(now);
        };
        if let Some(trial) = self.trials.get(&current)
            && trial.echoes.is_suspect()
        {
            if trial.withdrawn && trial.echoes.is_unanswered() {
                self.leave_withdrawn(current, now);
            }
            return;
        }
        let Some((best, faster)) = self.best_trusted(now.moment) else {
            return;
        };
        if self.tier(&best) < self.tier(&current) {
            self.select(Some(best), SwitchReason::Closer, now);
        } else if best != current && faster >= SAMPLES && self.tier(&best) == self.tier(&current) {
            self.select(Some(best), SwitchReason::Faster, now);
        }
    }

    /// The peer isn't at the other end of the path in use any more, by its own word, and doesn't answer there: takes
    /// another one that is as good, if there is one, before this one is known to be dead.
    fn leave_withdrawn(&mut self, current: PathId, now: Now) {
        let tier = self.tier(&current);
        let others = self.trials.iter().filter(|(path, trial)| {
            trial.echoes.is_proven() && !trial.echoes.is_suspect() && self.tier(path) <= tier
        });
        let best = others.min_by_key(|(path, trial)| self.rank(path, trial));
        if let Some(best) = best.map(|(path, _)| *path)
            && !mutation::is(Mutant::WithdrawnStays)
        {
            self.select(Some(best), SwitchReason::Withdrawn, now);
        }
    }

    /// The path in use, if any, is dead: takes the best that is proven, or none.
    fn replace_lost(&mut self, now: Now) {
        let before = self.active;
        let gone = before.is_some_and(|path| !self.trials.contains_key(&path));
        let best = self
            .trials
            .iter()
            .filter(|(_, trial)| trial.echoes.is_proven() && !trial.echoes.is_suspect())
            .min_by_key(|(path, trial)| {
                (!trial.echoes.is_trusted(now.moment), self.rank(path, trial))
            })
            .map(|(path, _)| *path);
        match (before, best) {
            (None, None) => {}
            (None, Some(_)) => self.select(best, SwitchReason::First, now),
            (Some(_), Some(_)) if gone => self.select(best, SwitchReason::Withdrawn, now),
            (Some(_), Some(_)) => self.select(best, SwitchReason::Silent, now),
            (Some(_), None) => self.select(None, SwitchReason::Lost, now),
        }
    }

    /// The best path that is beyond doubt, and for how many samples it was clearly faster.
    fn best_trusted(&self, now: Moment) -> Option<(PathId, u8)> {
        self.trials
            .iter()
            .filter(|(_, trial)| trial.echoes.is_trusted(now))
            .min_by_key(|(path, trial)| {
                (
                    self.tier(path),
                    std::cmp::Reverse(trial.faster),
                    self.rank(path, trial),
                )
            })
            .map(|(path, trial)| (*path, trial.faster))
    }

    /// Lower is better.
    fn rank(&self, path: &PathId, trial: &Trial) -> (Tier, Duration) {
        let rtt = trial.rtt.unwrap_or(Duration::MAX);
        let bonus = match path {
            PathId::Direct { endpoint, .. } if endpoint.is_ipv6() => V6_BONUS,
            _ => Duration::ZERO,
        };
        (self.tier(path), rtt.saturating_sub(bonus))
    }

    /// Counts how often a path was clearly faster than the one in use.
    pub(super) fn compare(&mut self, path: PathId) {
        let Some(active) = self.active.filter(|active| *active != path) else {
            return;
        };
        let rank = |path: &PathId| self.trials.get(path).map(|trial| self.rank(path, trial));
        let (Some((tier, rtt)), Some((active_tier, active_rtt))) = (rank(&path), rank(&active))
        else {
            return;
        };
        let margin = HYSTERESIS.max(active_rtt / 10);
        let faster = tier == active_tier && rtt + margin < active_rtt;
        if let Some(trial) = self.trials.get_mut(&path) {
            trial.faster = if faster {
                trial.faster.saturating_add(1)
            } else {
                0
            };
        }
    }

    pub(super) fn select(&mut self, path: Option<PathId>, reason: SwitchReason, now: Now) {
        if self.active == path {
            return;
        }
        let from = std::mem::replace(&mut self.active, path);
        self.alarm = None;
        self.lost_at = path.is_none().then_some(now.moment);
        if self.history.len() >= HISTORY {
            self.history.pop_back();
        }
        self.history.push_front(Switch {
            time: now.unix,
            from,
            to: path,
            reason,
        });
        for trial in self.trials.values_mut() {
            trial.faster = 0;
        }
        self.push(PathAction::Select { path, reason });
        match path {
            Some(good) if good.is_direct() => {
                self.last_good.retain(|other| *other != good);
                self.last_good.insert(0, good);
                self.last_good.truncate(MAX_LAST_GOOD);
                self.rounds.failures = 0;
                self.rounds.next = None;
            }
            _ if from.is_some_and(|from| from.is_direct()) => {
                self.rounds.news(now.moment);
                self.begin_open(now);
            }
            _ => {}
        }
        self.dismiss_surplus();
    }

    /// Stops echoes over paths that neither carry data nor are needed as a reserve.
    pub(super) fn dismiss_surplus(&mut self) {
        let mut proven: Vec<(bool, PathId)> = self
            .trials
            .iter()
            .filter(|(path, trial)| self.active != Some(**path) && trial.echoes.is_proven())
            .map(|(path, trial)| ((path.is_direct(), self.rank(path, trial)), *path))
            .map(|((direct, rank), path)| (rank, direct, path))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .map(|(_, direct, path)| (direct, path))
            .collect();
        let (mut direct, mut relayed) = STANDBY;
        proven.retain(|(is_direct, _)| {
            let left = if *is_direct {
                &mut direct
            } else {
                &mut relayed
            };
            let surplus = *left == 0;
            *left = left.saturating_sub(1);
            surplus
        });
        for (_, path) in proven {
            if let Some(trial) = self.trials.get_mut(&path) {
                trial.echoes.stop();
            }
        }
    }

    fn is_proven(&self, path: &PathId) -> bool {
        self.trials
            .get(path)
            .is_some_and(|trial| trial.echoes.is_proven())
    }
}
