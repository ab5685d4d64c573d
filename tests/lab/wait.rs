//! Waiting with an end: what was waited for and the last state are in the error.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// One look at something that is being waited for.
#[derive(Debug)]
pub enum Look<T> {
    /// It is there.
    Now(T),
    /// It is not; the words say what was seen.
    NotYet(String),
}

pub use Look::{NotYet, Now};

/// Looks every 20 to 100 ms until `look` finds what it wants.
///
/// # Errors
///
/// After `patience`, naming `what` and the last state; an error of `look` counts as a state.
pub fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Look<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut nap = Duration::from_millis(20);
    loop {
        let state = match look() {
            Ok(Now(found)) => return Ok(found),
            Ok(NotYet(state)) => state,
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() >= patience {
            bail!(
                "waited {:.1} s for {what}; last state: {state}",
                patience.as_secs_f32()
            );
        }
        thread::sleep(nap);
        nap = (nap + Duration::from_millis(10)).min(Duration::from_millis(100));
    }
}
