//! When much was moved last: how long the memory for much is kept.

use std::time::{Duration, Instant};

/// Bytes in one batch above which it touches more than single packets do.
const MUCH: usize = 16 * 1_024;
/// How long it goes on after that, as far as anybody knows.
const STREAM: Duration = Duration::from_millis(10);
/// How long the memory is kept for the next time.
const KEPT: Duration = Duration::from_secs(10);

/// When much was moved last, as long as its memory is kept.
#[derive(Debug, Default)]
pub(super) struct Load {
    last: Option<Instant>,
}

impl Load {
    /// Notes the bytes of a batch.
    pub(super) fn note(&mut self, bytes: usize) {
        if bytes > MUCH {
            self.last = Some(Instant::now());
        }
    }

    /// Whether much goes on.
    pub(super) fn is_on(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < STREAM)
    }

    /// How long the memory is still kept, if any is.
    pub(super) fn patience(&self) -> Option<Duration> {
        let last = self.last?;
        Some(KEPT.saturating_sub(last.elapsed()))
    }

    /// Whether the time has come to give it back; once per load.
    pub(super) fn is_over(&mut self) -> bool {
        self.last.take_if(|last| last.elapsed() >= KEPT).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_keeps_nothing() {
        let mut load = Load::default();
        load.note(1_500);
        assert_eq!(load.patience(), None);
        assert!(!load.is_over());
    }

    #[test]
    fn much_is_over_once_after_a_while() {
        let mut load = Load::default();
        load.note(MUCH + 1);
        assert!(load.is_on());
        assert!(load.patience().is_some_and(|left| left > KEPT / 2));
        assert!(!load.is_over());
        load.last = Instant::now().checked_sub(KEPT);
        assert!(!load.is_on());
        assert_eq!(load.patience(), Some(Duration::ZERO));
        assert!(load.is_over());
        assert!(!load.is_over());
    }
}
