//! Knocking for a lost peer at the endpoints that worked last.

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

    /// What worked last; without any planet to time a punch, the outsides in the record, too.
    fn doors(&mut self) -> Vec<PathId> {
        let mut doors: Vec<(TrialKind, PathId)> = self
            .last_good
            .iter()
            .map(|path| (TrialKind::Cached, *path))
            .collect();
        if !self.has_relay()
            && let Some(remote) = &self.remote
        {
            doors.extend(
                remote
                    .candidates
                    .iter()
                    .filter(|(kind, gate, _)| *gate == Gate::Timed && *kind == TrialKind::Reflexive)
                    .map(|(kind, _, endpoint)| {
                        (
                            *kind,
                            PathId::Direct {
                                socket: SocketId::MAIN,
                                endpoint: *endpoint,
                            },
                        )
                    }),
            );
        }
        doors.truncate(MAX_LAST_GOOD);
        doors
            .into_iter()
            .filter(|(kind, path)| self.ensure(*path, *kind, Gate::Timed).is_some())
            .map(|(_, path)| path)
            .collect()
    }
}
