//! Time as it is told to the pure crates: a monotonic moment and the wall clock.
//!
//! Durations are computed on [`Moment`] alone; [`UnixSeconds`] only judges validity periods, which
//! are agreed with other machines.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Both clocks at one instant, as handed to every `handle_*` function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, also counting suspend.
    pub moment: Moment,
    /// Wall clock.
    pub unix: UnixSeconds,
    /// Nanoseconds of its second, if they matter to who is told.
    pub nanos: u32,
}

/// A point on the monotonic clock, counted from an arbitrary start.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Moment(Duration);

impl Moment {
    /// The arbitrary start of the clock.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// A moment `since_start` after the arbitrary start.
    #[must_use]
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Time since the arbitrary start.
    #[must_use]
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to here; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The multiple of `step` that is nearest to one step from here: what is done every so often is
    /// done together, and a machine wakes once for all of it.
    #[must_use]
    pub fn after_on_grid(self, step: Duration) -> Self {
        let step = step.as_nanos().max(1);
        let next = (self.0.as_nanos() / step + 2) * step;
        let wait = next - self.0.as_nanos();
        let wait = if wait > step + step / 2 {
            wait - step
        } else {
            wait
        };
        self + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(rhs))
    }
}

/// Seconds since 1970-01-01T00:00:00Z, as a wall clock shows them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// This time plus `seconds`, never overflowing.
    #[must_use]
    pub const fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// This time minus `seconds`, never below zero.
    #[must_use]
    pub const fn minus(self, seconds: u64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }
}

impl fmt::Display for UnixSeconds {
    /// RFC 3339 in UTC, `2026-11-21T02:03:04Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0 / 86_400, self.0 % 86_400);
        let (year, month, day) = civil_from_days(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
            rest / 3_600,
            rest / 60 % 60,
            rest % 60
        )
    }
}

/// Gregorian date of a day count since 1970-01-01 (era arithmetic over 400-year cycles that start
/// on 1 March, so that the leap day is the last of its year).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_every_so_often_falls_on_a_grid() {
        let at = |millis| Moment::from_start(Duration::from_millis(millis));
        let step = Duration::from_millis(250);
        for (now, next) in [
            (0, 250),
            (1, 250),
            (124, 250),
            (126, 500),
            (250, 500),
            (999, 1_250),
        ] {
            assert_eq!(at(now).after_on_grid(step), at(next), "{now}");
        }
    }

    #[test]
    fn unix_seconds_print_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(UnixSeconds(seconds).to_string(), text);
        }
    }
}
