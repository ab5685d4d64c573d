//! The two clocks that the rules are told.

use std::time::SystemTime;

use podmesh_proto::time::{Moment, Now, UnixSeconds};
use tokio::time::Instant;

/// Counts from the start of the process.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts counting.
    #[must_use]
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// The zero of all moments.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Both clocks at this instant.
    #[must_use]
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            moment: Moment::from_start(self.started.elapsed()),
            unix: UnixSeconds(unix.map_or(0, |since| since.as_secs())),
            nanos: 0,
        }
    }

    /// The runtime's name for a moment.
    #[must_use]
    pub fn instant(&self, moment: Moment) -> Instant {
        self.started + moment.since_start()
    }
}
