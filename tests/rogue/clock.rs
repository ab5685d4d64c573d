//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use podmesh_proto::time::UnixSeconds;

/// Seconds since 1970.
pub(crate) fn now() -> UnixSeconds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixSeconds(since.map_or(0, |since| since.as_secs()))
}
