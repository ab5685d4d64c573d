//! The two clocks that the engine is told.

use std::time::SystemTime;

use podmesh_kernel::process;
use podmesh_proto::time::{Moment, Now, UnixSeconds};

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
