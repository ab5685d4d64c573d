//! Everything that the engine does at a certain time, in one table.

use std::collections::BTreeMap;

use podmesh_proto::id::PlanetId;
use podmesh_proto::time::Moment;

/// What is due. Earlier kinds go first when several are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Each second: handshake counts, expiry of certificates, the end of pings.
    Second,
    /// Each quarter of a second while there are tunnels: their own timers.
    Tunnels,
    /// Each half second while there are tunnels: what the fast half has counted.
    Traffic,
    /// A heartbeat to this planet, and a look at its last.
    Heartbeat(PlanetId),
    /// The question where this planet sees this node's sockets.
    Observe(PlanetId),
    /// The next part of a report to this planet.
    Report(PlanetId),
    /// Something newer to this planet than what it said.
    Late(PlanetId),
    /// The next statements of the root to whoever lacks them.
    Statements,
    /// A join or claim is tried again at this planet.
    Join(PlanetId),
    /// Departures are told again to this planet.
    Departures(PlanetId),
    /// A renewal is handed in again to this planet.
    Renew(PlanetId),
    /// The forwarding table and the host plan are built anew.
    Rebuild,
    /// The state is written.
    Persist,
}

/// When each timer is due.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    at: BTreeMap<Timer, Moment>,
}

impl Timers {
    /// Sets a timer, whatever it was.
    pub(crate) fn set(&mut self, timer: Timer, at: Moment) {
        self.at.insert(timer, at);
    }

    /// Sets a timer, unless it is due earlier already.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at: Moment) {
        let due = self.at.entry(timer).or_insert(at);
        *due = at.min(*due);
    }

    /// Takes a timer away.
    pub(crate) fn clear(&mut self, timer: Timer) {
        self.at.remove(&timer);
    }

    /// Takes away every timer that isn't to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(Timer) -> bool) {
        self.at.retain(|timer, _| keep(*timer));
    }

    /// Whether a timer is set.
    #[must_use]
    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.at.contains_key(&timer)
    }

    /// Takes the timers that are due.
    pub(crate) fn take_due(&mut self, now: Moment) -> Vec<Timer> {
        let due: Vec<Timer> = self
            .at
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(timer, _)| *timer)
            .collect();
        for timer in &due {
            self.at.remove(timer);
        }
        due
    }

    /// When the next one is due. There are a handful per planet and never one per peer, so looking
    /// at all is cheap.
    #[must_use]
    pub(crate) fn next(&self) -> Option<Moment> {
        self.at.values().min().copied()
    }
}
