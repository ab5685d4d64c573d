//! Staying awake for an answer.
//!
//! A processor that has gone to sleep takes some 50 µs to wake in a virtual machine, longer than all the work
//! for a small packet. So after little traffic a shard stays awake for a moment, in which a peer next door
//! answers. It does so for a small share of the time at most, and not while others want the processor.

use std::time::{Duration, Instant};

/// How long an answer is waited for awake.
const SPAN: Duration = Duration::from_micros(150);
/// One part in so many of the time may be spent awake for nothing.
const PARTS: u32 = 50;
/// A look at the descriptors that takes longer was interrupted by somebody else's work.
const LOOK: Duration = Duration::from_micros(50);
/// How long others are left alone after that: twice as long each time that they are met again, up to the
/// second.
const LEFT_ALONE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(16));
/// What is saved up at most.
const SAVED: Duration = Duration::from_millis(3);

/// How much time may be spent awake.
#[derive(Debug)]
pub(super) struct Vigil {
    saved: Duration,
    counted: Instant,
    /// How long others will be left alone the next time.
    left_alone: Duration,
}

impl Vigil {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            saved: Duration::ZERO,
            counted: now,
            left_alone: LEFT_ALONE.0,
        }
    }

    /// Until when to stay awake from now on; `None` to sleep at once.
    pub(super) fn until(&mut self, now: Instant) -> Option<Instant> {
        let earned = now.saturating_duration_since(self.counted) / PARTS;
        self.counted = self.counted.max(now);
        self.saved = (self.saved + earned).min(SAVED);
        (self.saved >= SPAN).then(|| now + SPAN)
    }

    /// Notes a look that took from one moment to the other; whether to go on.
    pub(super) fn goes_on(&mut self, before: Instant, now: Instant) -> bool {
        let is_undisturbed = now.saturating_duration_since(before) < LOOK;
        if !is_undisturbed {
            self.saved = Duration::ZERO;
            self.counted = now + self.left_alone;
            self.left_alone = (self.left_alone * 2).min(LEFT_ALONE.1);
        }
        is_undisturbed
    }

    /// Notes what a vigil that began then has taken.
    pub(super) fn spent(&mut self, began: Instant, now: Instant) {
        let spent = now.saturating_duration_since(began);
        self.saved = self.saved.saturating_sub(spent);
        if self.counted <= now {
            self.left_alone = LEFT_ALONE.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_its_share_of_the_time_is_spent() {
        let start = Instant::now();
        let (mut vigil, mut now) = (Vigil::new(start), start);
        assert_eq!(vigil.until(now), None);
        let mut awake = Duration::ZERO;
        while now < start + Duration::from_secs(10) {
            now += Duration::from_micros(70);
            if let Some(end) = vigil.until(now) {
                vigil.spent(now, end);
                awake += end - now;
                now = end;
            }
        }
        let share = awake.as_secs_f64() / (now - start).as_secs_f64();
        assert!((0.015..=0.021).contains(&share), "{share}");
    }

    #[test]
    fn others_who_want_the_processor_are_left_alone() {
        let start = Instant::now();
        let mut vigil = Vigil::new(start);
        let now = start + Duration::from_secs(1);
        assert!(vigil.until(now).is_some());
        assert!(vigil.goes_on(now, now + LOOK / 2));
        let mut later = now;
        for times in [1, 2, 4] {
            assert!(!vigil.goes_on(later, later + LOOK));
            later += LOOK;
            vigil.spent(now, later);
            later += LEFT_ALONE.0 * times;
            assert_eq!(vigil.until(later), None);
            later += SPAN * PARTS;
            assert!(vigil.until(later).is_some());
        }
        // One that nobody disturbed.
        vigil.spent(later, later + SPAN);
        assert_eq!(vigil.left_alone, LEFT_ALONE.0);
    }

    #[test]
    fn a_long_silence_saves_up_little() {
        let start = Instant::now();
        let mut vigil = Vigil::new(start);
        let now = start + Duration::from_secs(3_600);
        let mut times = 0;
        while let Some(end) = vigil.until(now) {
            vigil.spent(now, end);
            times += 1;
        }
        assert_eq!(times, SAVED.as_micros() / SPAN.as_micros());
    }
}
