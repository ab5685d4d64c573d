//! Knocking for a lost peer at the endpoints that worked last.

use std::net::SocketAddr;
use std::time::Duration;

use podmesh_proto::time::Moment;

use super::trial::{Gate, TrialKind};
use super::{MAX_LAST_GOOD, Paths};
use crate::path_id::{PathId, SocketId};

/// Between two knocks: well below the 30 s after which a NAT forgets a one-way flow.
const KNOCK: Duration = Duration::from_secs(12);
/// Spread of that, so that two peers don't stay in step. Milliseconds.
const SPREAD: u64 = 3_000;
/// Knocks in a row before a pause.
const KNOCKS: u32 = 6;
/// The pause: long enough for the peer's NAT to forget a knock that spoilt its port (30 s), short
/// enough for this node's NAT to remember the flow that once worked (120 s).
const PAUSE: Duration = Duration::from_secs(40);
/// Wait before the first knock.
const FIRST: Duration = Duration::from_secs(3);

/// When to knock.
#[derive(Debug, Default)]
pub(super) struct Knocks {
    next: Option<Moment>,
    count: u32,
}

impl Knocks {
    pub(super) fn due(&self) -> Option<Moment> {
        self.next
    }
}

impl Paths {
    pub(super) fn drive_knocks(&mut self, now: Moment) {
        if self.active.is_some() {
            self.knocks = Knocks::default();
            return;
        }
        if !self.has_doors() {
            // Nobody wakes for nothing, and that hundreds of times in a large network.
            self.knocks.next = None;
            return;
        }
        let due = *self.knocks.next.get_or_insert(now + FIRST);
        if due > now {
            return;
        }
        let doors = self.doors();
        let gated = doors.iter().any(|path| {
            self.trials
                .get(path)
                .is_some_and(|trial| trial.gate == Gate::Timed)
        });
        for path in doors {
            self.send_ping(path, None, now);
        }
        self.knocks.count += 1;
        let pause = gated && self.knocks.count.is_multiple_of(KNOCKS);
        let spread = Duration::from_millis(self.random.below(SPREAD));
        self.knocks.next = Some(now + spread + if pause { PAUSE } else { KNOCK });
    }

    fn has_doors(&self) -> bool {
        !self.last_good.is_empty() || self.outsides().next().is_some()
    }

    /// Without any planet to time a punch, the outsides in the record.
    fn outsides(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let remote = self.remote.as_ref().filter(|_| !self.has_relay());
        let candidates = remote.into_iter().flat_map(|remote| &remote.candidates);
        candidates
            .filter(|(kind, gate, _)| *gate == Gate::Timed && *kind == TrialKind::Reflexive)
            .map(|(_, _, endpoint)| *endpoint)
    }

    /// What worked last, and the outsides.
    fn doors(&mut self) -> Vec<PathId> {
        let mut doors: Vec<(TrialKind, PathId)> = self
            .last_good
            .iter()
            .map(|path| (TrialKind::Cached, *path))
            .collect();
        doors.extend(self.outsides().map(|endpoint| {
            let socket = SocketId::MAIN;
            (TrialKind::Reflexive, PathId::Direct { socket, endpoint })
        }));
        doors.truncate(MAX_LAST_GOOD);
        doors
            .into_iter()
            .filter(|(kind, path)| self.ensure(*path, *kind, Gate::Timed).is_some())
            .map(|(_, path)| path)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::id::NodeId;
    use podmesh_proto::time::{Now, UnixSeconds};

    use super::*;

    #[test]
    fn nobody_wakes_for_a_peer_at_whose_door_nobody_can_knock() {
        let now = Now {
            moment: Moment::from_start(Duration::from_secs(1_000)),
            unix: UnixSeconds(1_800_000_000),
            nanos: 0,
        };
        let mut paths = Paths::new(NodeId([1; 32]), NodeId([2; 32]), 7, now);
        paths.handle_timeout(now);
        assert_eq!(paths.knocks.due(), None);
        assert_eq!(paths.poll_timeout(now), None);
        let endpoint = "192.0.2.7:7077".parse().expect("an endpoint");
        paths.set_cached(&[(SocketId::MAIN, endpoint)], now);
        assert_eq!(paths.knocks.due(), Some(now.moment + FIRST));
    }
}
