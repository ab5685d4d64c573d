//! Token bucket on the monotonic clock.

use podmesh_proto::time::Moment;

/// Gives out at most `burst` at once and `per_second` in the long run.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    /// In millionths, so that a refill after a microsecond is not lost.
    filled: u64,
    at: Moment,
}

const MILLION: u64 = 1_000_000;

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(per_second: u64, burst: u64, now: Moment) -> Self {
        Self {
            per_second,
            burst,
            filled: burst.saturating_mul(MILLION),
            at: now,
        }
    }

    /// Takes `amount`, or nothing and says `false`.
    pub fn take(&mut self, amount: u64, now: Moment) -> bool {
        self.take_leaving(amount, 0, now)
    }

    /// The same, if `rest` stays in the bucket.
    pub fn take_leaving(&mut self, amount: u64, rest: u64, now: Moment) -> bool {
        let passed = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        if passed > 0 {
            let full = self.burst.saturating_mul(MILLION);
            let refill = passed.saturating_mul(self.per_second);
            self.filled = self.filled.saturating_add(refill).min(full);
            self.at = now;
        }
        let wanted = amount.saturating_mul(MILLION);
        match self.filled.checked_sub(wanted) {
            Some(left) if left >= rest.saturating_mul(MILLION) => {
                self.filled = left;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(10, 5, Moment::ZERO);
        let taken = (0..20).filter(|_| bucket.take(1, Moment::ZERO)).count();
        assert_eq!(taken, 5);
        let mut taken = 0;
        for millisecond in 0..2_000 {
            let now = Moment::from_start(Duration::from_millis(millisecond));
            taken += u32::from(bucket.take(1, now));
        }
        assert_eq!(taken, 19);
    }
}
