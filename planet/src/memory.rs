//! What strangers have cost is given back when they are gone.
//!
//! A handshake needs many small pieces of memory for a moment. The allocator keeps their pages when they are freed, so
//! that a planet would hold for good what it has needed once, at the worst time that somebody gave it.

use std::time::Duration;

use podmesh_kernel::memory;
use tokio::time::sleep;

/// Between two looks, and after one that was worth it.
const LOOK: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(200);
/// Bytes that are worth it.
const WORTH: u64 = 2 << 20;

/// Gives freed memory back, for as long as the task runs.
pub(crate) async fn keep_small() {
    // What can't be given back: pages that something is still in.
    let mut stuck = 0;
    let mut wait = LOOK;
    loop {
        sleep(wait).await;
        let freed = memory::freed();
        stuck = freed.min(stuck);
        wait = LOOK;
        if freed >= stuck + WORTH {
            // It takes longer the more there is.
            let _ = tokio::task::spawn_blocking(memory::give_back_freed).await;
            stuck = memory::freed();
            wait = SOON;
        }
    }
}
