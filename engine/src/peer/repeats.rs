//! What is said to a peer again and again, as it may have been lost.

use std::time::Duration;

use podmesh_proto::time::Moment;

/// Between two times that it is said by itself.
const GAP: Duration = Duration::from_secs(15);

/// How often it is said yet, and when it was last.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Repeats {
    left: u8,
    last: Option<Moment>,
}

impl Repeats {
    /// There is a reason to say it, from now on so many times.
    pub(crate) const fn begin(&mut self, times: u8) {
        self.left = times;
    }

    /// There is no reason any more.
    pub(crate) const fn end(&mut self) {
        self.left = 0;
    }

    /// Whether it was said less than `span` ago.
    pub(crate) fn said_within(&self, span: Duration, now: Moment) -> bool {
        self.last.is_some_and(|last| now.since(last) < span)
    }

    /// Whether it is to be said once more.
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.left > 0 && !self.said_within(GAP, now)
    }

    /// It is being said.
    pub(crate) const fn said(&mut self, now: Moment) {
        self.left = self.left.saturating_sub(1);
        self.last = Some(now);
    }
}
