//! The two clocks that the engine is told.

use std::time::{Duration, SystemTime};

use podmesh_kernel::process;
use podmesh_proto::time::{Moment, Now, UnixSeconds};
use tokio::time::Instant;

/// Both clocks at this instant.
pub(crate) fn now() -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let unix = unix.unwrap_or_default();
    Now {
        moment: Moment::from_start(process::since_boot()),
        unix: UnixSeconds(unix.as_secs()),
        nanos: unix.subsec_nanos(),
    }
}

/// The runtime's name for a moment, a minute at most from here: a suspended machine's timers stand
/// still, so that far ones are looked at again in between.
pub(crate) fn deadline(moment: Option<Moment>, now: Now) -> Instant {
    const FAR: Duration = Duration::from_secs(60);
    let wait = moment.map_or(FAR, |moment| moment.since(now.moment).min(FAR));
    Instant::now() + wait
}
