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
    pub(crate) fn tell(&self, now: Now) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let unix = Duration::new(now.unix.0, now.nanos);
        self.moment
            .store(nanos(now.moment.since_start()), Ordering::Relaxed);
        self.unix.store(nanos(unix), Ordering::Relaxed);
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment::from_start(Duration::from_nanos(self.moment.load(Ordering::Relaxed)))
    }

    /// Time since 1970.
    pub(crate) fn unix(&self) -> Duration {
        Duration::from_nanos(self.unix.load(Ordering::Relaxed))
    }
}
