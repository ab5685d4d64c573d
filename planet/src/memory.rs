//! What strangers have cost is given back when they are gone.
//!
//! A handshake needs many small pieces of memory for a moment. The allocator keeps their pages when they are freed, so
//! that a planet would hold for good what it has needed once, at the worst time that somebody gave it.

use std::time::Duration;

use podmesh_kernel::memory;
use tokio::time::{MissedTickBehavior, interval};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two times that memory is given back, at most: where there was nothing to give, they become more.
const SELDOM: u32 = 64;
/// Bytes that are worth a look sooner.
const WORTH: u64 = 1 << 20;

/// Gives freed memory back, for as long as the task runs.
pub(crate) async fn keep_small() {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut kept, mut every, mut left) = (resident(), 1, 1);
    loop {
        looks.tick().await;
        let held = resident();
        if held >= kept.saturating_add(WORTH) {
            (every, left) = (1, 1);
        }
        left -= 1;
        if left > 0 {
            continue;
        }
        // It takes longer the more there is.
        let _ = tokio::task::spawn_blocking(memory::give_back_freed).await;
        kept = resident();
        let gained = held.saturating_sub(kept) >= WORTH;
        every = if gained { 1 } else { SELDOM.min(every * 2) };
        left = every;
    }
}

/// Bytes in the machine's memory; none where the kernel doesn't tell.
fn resident() -> u64 {
    memory::in_use().map_or(0, |held| held.resident)
}
