//! How often a peer may say anew where it is.

use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Moment;

use crate::limits::{EDITION_BURST, EDITION_GAP};

/// The editions of one peer's endpoint record. A start or a move brings several within a second, each
/// with more in it; after those the last one counts, one in [`EDITION_GAP`].
#[derive(Debug)]
pub(crate) struct Editions {
    /// Time whose worth of editions is left.
    credit: Duration,
    at: Moment,
    held: Option<(EndpointRecord, Signed<EndpointRecord>)>,
}

impl Default for Editions {
    fn default() -> Self {
        Self {
            credit: EDITION_GAP * EDITION_BURST,
            at: Moment::ZERO,
            held: None,
        }
    }
}

impl Editions {
    /// Whether one more edition counts at once.
    pub(crate) fn take(&mut self, now: Moment) -> bool {
        self.refill(now);
        let granted = self.credit >= EDITION_GAP;
        if granted {
            self.credit -= EDITION_GAP;
            self.held = None;
        }
        granted
    }

    /// Keeps an edition for later, in the place of an older one.
    pub(crate) fn hold(&mut self, record: EndpointRecord, signed: Signed<EndpointRecord>) {
        let held = self.held.as_ref();
        if held.is_none_or(|(held, _)| record.is_newer_than(held)) {
            self.held = Some((record, signed));
        }
    }

    /// Whether this very edition is kept.
    pub(crate) fn holds(&self, signed: &Signed<EndpointRecord>) -> bool {
        self.held.as_ref().is_some_and(|(_, held)| held == signed)
    }

    /// The edition that was kept, if its time has come.
    pub(crate) fn take_due(
        &mut self,
        now: Moment,
    ) -> Option<(EndpointRecord, Signed<EndpointRecord>)> {
        self.refill(now);
        self.held.take_if(|_| self.credit >= EDITION_GAP)
    }

    /// Lets go of the edition that is kept.
    pub(crate) fn forget_held(&mut self) {
        self.held = None;
    }

    /// Whether an edition is kept.
    pub(crate) fn is_waiting(&self) -> bool {
        self.held.is_some()
    }

    fn refill(&mut self, now: Moment) {
        let since = now.since(self.at);
        self.credit = self
            .credit
            .saturating_add(since)
            .min(EDITION_GAP * EDITION_BURST);
        self.at = now.max(self.at);
    }
}
