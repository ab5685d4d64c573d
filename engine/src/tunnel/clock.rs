//! The time as tunnels know it: told by the slow half, read by both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use podmesh_proto::time::{Moment, Now};

/// Both clocks as they were when the engine was told last: less than a second ago. `WireGuard`'s timers are
/// whole seconds.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    moment: AtomicU64,
    /// Nanoseconds since 1970.
    unix: AtomicU64,
}

impl Clock {
    /// The wall clock never goes back here: peers refuse handshakes that seem older than one that they
    /// have had, also of a tunnel that is made anew.
    pub(crate) fn tell(&self, now: Now) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (unix, moment) = (
            Duration::new(now.unix.0, now.nanos),
            nanos(now.moment.since_start()),
        );
        let passed = moment.saturating_sub(self.moment.swap(moment, Ordering::Relaxed));
        let went_on = self.unix.load(Ordering::Relaxed).saturating_add(passed);
        self.unix.store(nanos(unix).max(went_on), Ordering::Relaxed);
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment::from_start(Duration::from_nanos(self.moment.load(Ordering::Relaxed)))
    }

    /// Time since 1970.
    pub(crate) fn unix(&self) -> Duration {
        Duration::from_nanos(self.unix.load(Ordering::Relaxed))
    }
}
