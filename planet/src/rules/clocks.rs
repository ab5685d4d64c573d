//! The planet's wall clock, as its members know it: nodes count on from what they were told, so they are
//! told again when the clock is put right or goes wrong.

use podmesh_proto::id::Name;
use podmesh_proto::planet_api::PlanetMessage;
use podmesh_proto::time::{Now, UnixSeconds};

use crate::rules::{ConnectionId, Planet};

/// Seconds by which the clock may leave what members count without a word; two whole seconds are lost in
/// rounding.
const UNSAID: u64 = 3;

/// Seconds by which somebody may be ahead before a person should know.
const TOLERANCE: u64 = 60;

impl Planet {
    /// That the clock here is behind what somebody has signed. One that is ahead can't be seen: what was
    /// signed is past.
    pub(super) fn clock_remark(&self, now: Now) -> Option<String> {
        let network = &self.books.network;
        let edition = (
            network.issued,
            format!("edition {} of the network", network.version),
        );
        let of = |name: &Name| format!("a document of {name}");
        let members = self
            .books
            .entries()
            .filter_map(|(_, entry)| entry.member.as_ref());
        let members = members.map(|member| (member.issued.max(member.admitted), of(&member.name)));
        let latest = |one: &(UnixSeconds, String)| one.0;
        let (at, what) = members.chain([edition]).max_by_key(latest)?;
        (at > now.unix.plus(TOLERANCE)).then(|| {
            format!(
                "the clock of this machine says {}, and {what} is of {at}; run a time service on the machine \
                 whose clock is wrong",
                now.unix
            )
        })
    }

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
