//! What the disk has of this node's state, and what waits for it.

use podmesh_proto::time::Now;

use crate::engine::Engine;
use crate::mutation::{self, Mutant};

/// How far the disk has come with the states of this life, which are counted from one.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// The last that was handed out.
    pub(super) last: u64,
    /// The last that was written, or could not be.
    done: u64,
    /// The last that was written.
    written: u64,
}

impl Engine {
    /// The shell is done with the state of the `number`th [`crate::output::Output::Persist`] of this engine,
    /// counted from one, and with all before it: it is on disk, or (not `written`) could not be written and
    /// is tried again. Which of them fails in the end doesn't matter: each holds everything.
    pub fn handle_persisted(&mut self, number: u64, written: bool, now: Now) {
        self.keys.tell(now);
        self.disk.done = self.disk.done.max(number);
        if written {
            self.disk.written = self.disk.written.max(number);
        }
        self.settle(now);
    }

    /// What was handed out is not on disk any more: it is wanted there again.
    pub fn handle_lost_state(&mut self, now: Now) {
        self.keys.tell(now);
        self.persist(now);
        self.settle(now);
    }

    /// Whether new keys are not asked for yet, because the disk has not taken that down.
    #[must_use]
    pub fn rotation_waits_for_disk(&self) -> bool {
        self.renewing.held_for.is_some()
    }

    /// Whether the state with this number is on disk.
    pub(super) fn is_written(&self, number: u64) -> bool {
        self.disk.written >= number
    }

    /// Does what has waited for the disk.
    pub(super) fn follow_disk(&mut self, now: Now) {
        // A node whose disk is full goes on, and so do its peers, who need its renewal.
        if self
            .renewing
            .told_by
            .is_some_and(|number| self.disk.done >= number)
        {
            self.renewing.told_by = None;
            self.tell_renewal(now);
        }
        // Old keys are wiped, and new ones asked for, only when the next life knows.
        let hasty = mutation::is(Mutant::RotationUnsaved);
        if let Some(number) = self.renewing.held_for
            && (self.is_written(number) || hasty)
        {
            self.renewing.held_for = None;
            self.ask_renewals(now);
        }
        let hasty = mutation::is(Mutant::KeysWipedEarly);
        if let Some(number) = self.renewing.moved_by
            && (self.is_written(number) || hasty)
        {
            self.renewing.moved_by = None;
            self.renewing.moved = true;
        }
    }
}
