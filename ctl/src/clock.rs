//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use podmesh_proto::time::UnixSeconds;

use crate::problem::Problem;

/// 2025-01-01: a clock before this was never set.
const NEVER_SET: UnixSeconds = UnixSeconds(1_735_689_600);

/// What the wall clock shows.
pub(crate) fn now() -> UnixSeconds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixSeconds(since.map_or(0, |since| since.as_secs()))
}

/// The same for something to be signed: refused if the clock can't be right, because it shows a time
/// before `after`, when an earlier document was signed.
///
/// # Errors
/// The clock is wrong.
pub(crate) fn now_for_signing(after: UnixSeconds) -> Result<UnixSeconds, Problem> {
    let now = now();
    let floor = NEVER_SET.max(after.minus(podmesh_proto::limits::CLOCK_SKEW));
    if now < floor {
        return Err(Problem::failed(format!(
            "this machine's clock says {now}, which can't be right: something was signed at {floor}"
        ))
        .next("set the clock, then run the command again"));
    }
    Ok(now.max(after))
}
