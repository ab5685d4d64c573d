//! The planet's wall clock, as its members know it: nodes count on from what they were told, so they are
//! told again when the clock is put right or goes wrong.

use podmesh_proto::planet_api::PlanetMessage;
use podmesh_proto::time::Now;

use crate::rules::{ConnectionId, Planet};

/// Seconds by which the clock may leave what members count without a word; two whole seconds are lost in
/// rounding.
const UNSAID: u64 = 3;

impl Planet {
    /// Tells members of a clock that has jumped, or crept away from the steady one.
    pub(super) fn watch_clock(&mut self, now: Now) {
        let (then, said) = self.clock_said;
        let counted = said.plus(now.moment.since(then).as_secs());
        if counted.0.abs_diff(now.unix.0) < UNSAID {
            return;
        }
        self.clock_said = (now.moment, now.unix);
        let welcomed = self.connections.iter();
        let welcomed: Vec<ConnectionId> = welcomed
            .filter(|(_, known)| known.node.is_some())
            .map(|(id, _)| *id)
            .filter(|id| self.compares(*id))
            .collect();
        for connection in welcomed {
            self.send(connection, PlanetMessage::Clock(now.unix));
        }
    }
}
