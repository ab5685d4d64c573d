//! What is measured of a storm, and how much of it is too much.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmesh_lab::process::last_lines;
use serde_json::Value;

/// A greeting may take so many times as long as in peace.
const GREETINGS: u32 = 3;
/// Below this nobody feels the difference, and a busy machine can't tell it; the less so in seconds.
const BARELY: Duration = Duration::from_millis(20);
const BARELY_IN_SECONDS: Duration = Duration::from_millis(100);
/// Greetings that it takes for the slowest of them to say anything.
const MANY: usize = 100;
/// Bytes a second that reach who has nothing to do with it, from everybody together.
const REACHED: f64 = 10_000.0;
/// What comes at the beginning, when places are tried that nothing was heard of yet, counts as spread over
/// so many seconds at least.
const BEGINNING: f64 = 10.0;

/// What was seen while a storm went on, or nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    /// How long each greeting of the planet took, in ascending order.
    pub(super) greetings: Vec<Duration>,
    /// Greetings that were not answered.
    pub(super) unanswered: usize,
    pub(super) pings: usize,
    pub(super) lost: usize,
    /// Until a node that was started anew had all its direct paths again.
    pub(super) direct: Duration,
    /// Bytes that reached the bystander's networks.
    pub(super) reached: u64,
    /// From when to when.
    pub(super) span: Option<(Instant, Instant)>,
    /// What the rogue says that it did.
    pub(super) tally: Value,
}

impl Figures {
    fn lasted(&self) -> Duration {
        self.span.map_or(Duration::ZERO, |(begin, end)| end - begin)
    }

    /// How long at most so many of a hundred greetings took.
    fn greeting(&self, percent: usize) -> Duration {
        let at = (self.greetings.len() * percent).div_ceil(100).max(1) - 1;
        self.greetings.get(at).copied().unwrap_or_default()
    }

    /// How long a slow greeting may take, and how long it took: one in twenty is slower, or one in two where
    /// there were few.
    fn slow_greeting(&self, peace: &Self) -> (Duration, Duration) {
        let (percent, barely) = if self.greetings.len() >= MANY {
            (95, BARELY)
        } else {
            (50, BARELY_IN_SECONDS)
        };
        let most = (peace.greeting(percent) * GREETINGS).max(barely);
        (most, self.greeting(percent))
    }

    /// Bytes a second.
    fn reached_in_a_second(&self) -> f64 {
        self.reached as f64 / self.lasted().as_secs_f64().max(BEGINNING)
    }

    /// What is worse than it may be, if it was as in `peace` before.
    pub(super) fn complaints(&self, peace: &Self) -> Vec<String> {
        let (most, greeting) = self.slow_greeting(peace);
        let direct = peace.direct * 2 + Duration::from_secs(2);
        let judged = [
            (self.unanswered > 0, "greetings without an answer"),
            (greeting > most, "greetings take too long"),
            (self.lost > 0, "pings are lost"),
            (self.direct > direct, "direct paths take too long"),
            (
                self.reached_in_a_second() > REACHED,
                "too much reaches the bystander",
            ),
        ];
        let bad = judged.into_iter().filter(|(is_bad, _)| *is_bad);
        bad.map(|(_, words)| format!("{words}: {self}")).collect()
    }

    /// Reads what the greeter wrote into its log.
    pub(super) fn take_greetings(&mut self, log: &Path) -> Result<()> {
        let line = last_lines(log, 1);
        let told: Value =
            serde_json::from_str(&line).with_context(|| format!("the greeter says: {line}"))?;
        let times = told["microseconds"].as_array().into_iter().flatten();
        let times = times.filter_map(Value::as_u64);
        self.greetings = times.map(Duration::from_micros).collect();
        self.greetings.sort();
        ensure!(!self.greetings.is_empty(), "nobody was greeted: {line}");
        let failed = told["failed"].as_u64().unwrap_or(u64::MAX);
        self.unanswered = usize::try_from(failed)?;
        Ok(())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} greetings, median {:.1?}, p95 {:.1?}, {} unanswered; {} of {} pings lost; \
             direct again after {:.2?}; {} bytes to the bystander in {:.1?}; {}",
            self.greetings.len(),
            self.greeting(50),
            self.greeting(95),
            self.unanswered,
            self.lost,
            self.pings,
            self.direct,
            self.reached,
            self.lasted(),
            self.tally
        )
    }
}
