//! Whether the kernel cuts what a socket sends.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Seconds for which it isn't tried again once it failed: devices come and go.
const PAUSE: u64 = 3_600;
const NEVER: u64 = u64::MAX;

/// The memory of one socket.
#[derive(Debug)]
pub(super) struct Segmentation {
    /// Seconds since the first look at the clock.
    off_until: AtomicU64,
}

impl Segmentation {
    /// Tried, unless it isn't wanted.
    pub(super) fn new(wanted: bool) -> Self {
        let off_until = if wanted { 0 } else { NEVER };
        Self {
            off_until: AtomicU64::new(off_until),
        }
    }

    pub(super) fn is_off(&self) -> bool {
        match self.off_until.load(Ordering::Relaxed) {
            0 => false,
            until => seconds() < until,
        }
    }

    pub(super) fn switch_off(&self) {
        self.off_until.store(seconds() + PAUSE, Ordering::Relaxed);
    }
}

fn seconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs()
}
