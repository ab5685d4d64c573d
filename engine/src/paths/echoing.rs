//! In-tunnel echoes of one path: the proof that it carries data, and the watch over it.
//!
//! A path is off, being proven, steady, or suspect. A steady path whose echo stays unanswered
//! becomes suspect; a suspect path gets a burst of echoes and is dead when none of them returns.

use std::time::Duration;

use podmesh_proto::time::Moment;

use crate::mutation::{self, Mutant};

/// Gaps between the echoes that prove a path; full size, so that a path that carries only small
/// packets is not taken.
const PROOF_GAPS: [u64; 7] = [200, 300, 500, 1_000, 1_000, 2_000, 2_000];
/// Gap between the echoes of the burst over a suspect path.
const SUSPECT_GAP: Duration = Duration::from_millis(250);
/// Unanswered echoes in a row, the first included, after which a suspect path is dead: one in five
/// lost each way kills a working path in one of 1,300 checks.
const DEAD_AFTER: u32 = 7;
/// Shortest and longest wait for an answer.
const EXPIRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// Answers that are waited for at once.
const MAX_OUTSTANDING: usize = 16;
/// Probation of a path that has died once; doubled by each further death, up to the second.
const PROBATION: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(64));
/// A death this long ago is forgiven.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Between two echoes over a path on which nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Carries data and is busy: shows a path that works one way only.
    Busy,
    /// Carries data, if there were any: keeps NATs open.
    Idle,
    /// Better than the path in use, but not trusted yet.
    Probation,
    /// Ready to take over.
    Standby,
}

impl Pace {
    const fn gap(self) -> Duration {
        Duration::from_secs(match self {
            Self::Busy => 5,
            Self::Idle => 15,
            Self::Probation => 1,
            Self::Standby => 25,
        })
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Off,
    Proving {
        step: usize,
    },
    Steady,
    Suspect {
        since: Moment,
    },
}

/// What became of the echoes that were waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing new.
    None,
    /// A steady path has become suspect.
    Suspect,
    /// A suspect path is dead.
    Dead,
    /// A path could not be proven.
    Unproven,
}

/// The echoes over one path.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    phase: Phase,
    outstanding: Vec<(u64, Moment)>,
    unanswered: u32,
    last_sent: Option<Moment>,
    last_answer: Option<Moment>,
    /// Since when every echo has been answered.
    faultless: Option<Moment>,
    deaths: u32,
    died: Option<Moment>,
    /// Ask at once, once.
    hurry: bool,
    /// The fate of the last sixteen echoes, the newest in the lowest bit.
    fates: u16,
    counted: u32,
}

impl Echoes {
    /// Begins to prove the path, if it is off.
    pub(super) fn prove(&mut self) {
        if self.phase == Phase::Off {
            self.phase = Phase::Proving { step: 0 };
            self.unanswered = 0;
            self.outstanding.clear();
        }
    }

    /// Begins the gaps of a proof that is under way anew. Answers to what went out before still count.
    pub(super) fn prove_at_once(&mut self) {
        if let Phase::Proving { step } = &mut self.phase {
            *step = 0;
        }
    }

    /// Something else has shown that the path works both ways; asks at once whether it really does.
    pub(super) fn vouch(&mut self, now: Moment) {
        if !self.is_proven() {
            (self.phase, self.faultless) = (Phase::Steady, Some(now));
            self.outstanding.clear();
            self.unanswered = 0;
            self.last_answer = Some(now);
            self.hurry = true;
        }
    }

    /// Takes a path for proven that isn't.
    #[cfg(feature = "virtual-time")]
    pub(super) fn assume(&mut self, now: Moment) {
        (self.phase, self.faultless) = (Phase::Steady, Some(now));
        (self.last_sent, self.last_answer) = (Some(now), Some(now));
    }

    /// Stops; the path is not proven any more.
    pub(super) fn stop(&mut self) {
        self.phase = Phase::Off;
        self.outstanding.clear();
        self.unanswered = 0;
        self.faultless = None;
    }

    /// Doubts a proven path at once.
    pub(super) fn doubt(&mut self, now: Moment) -> bool {
        let steady = self.phase == Phase::Steady;
        if steady {
            self.phase = Phase::Suspect { since: now };
            self.faultless = None;
        }
        steady
    }

    /// Asks a steady path at once.
    pub(super) fn hurry(&mut self) {
        self.hurry = self.phase == Phase::Steady && !self.waits();
    }

    pub(super) fn is_off(&self) -> bool {
        self.phase == Phase::Off
    }

    /// Whether an echo has come back and the path hasn't died since.
    pub(super) fn is_proven(&self) -> bool {
        matches!(self.phase, Phase::Steady | Phase::Suspect { .. })
    }

    pub(super) fn is_suspect(&self) -> bool {
        matches!(self.phase, Phase::Suspect { .. })
    }

    /// Whether the last echo that was waited for got no answer.
    pub(super) fn is_unanswered(&self) -> bool {
        self.unanswered > 0
    }

    /// Whether the path is proven and has served its probation.
    pub(super) fn is_trusted(&self, now: Moment) -> bool {
        self.phase == Phase::Steady
            && self
                .faultless
                .is_some_and(|since| now.since(since) >= self.probation(now))
    }

    /// Whether proving goes badly: several echoes are out and none came back.
    pub(super) fn struggles(&self) -> bool {
        matches!(self.phase, Phase::Proving { step } if step >= 2) && self.unanswered > 0
    }

    pub(super) fn last_answer(&self) -> Option<Moment> {
        self.last_answer
    }

    /// When the next echo is due on a path of this pace, or the wait for one ends.
    pub(super) fn due(&self, pace: Pace, rtt: Option<Duration>) -> Option<Moment> {
        let expiry = self.outstanding.first().map(|(_, at)| *at + wait(rtt));
        let send = self.send_due(pace);
        match (expiry, send) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// When the next echo is due.
    pub(super) fn send_due(&self, pace: Pace) -> Option<Moment> {
        let last = self.last_sent.unwrap_or(Moment::ZERO);
        match self.phase {
            Phase::Off => None,
            Phase::Proving { step: 0 } => Some(Moment::ZERO),
            Phase::Proving { step } => PROOF_GAPS
                .get(step - 1)
                .map(|gap| last + Duration::from_millis(*gap)),
            Phase::Steady if self.hurry => Some(Moment::ZERO),
            Phase::Steady => (!self.waits()).then(|| last + pace.gap()),
            Phase::Suspect { .. } => (self.unanswered < DEAD_AFTER).then(|| last + SUSPECT_GAP),
        }
    }

    /// Whether an answer is waited for.
    pub(super) fn waits(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// Whether the next echo on a path of this pace has the full size. Where data goes it has: a path
    /// that carries only small packets any more must be noticed.
    pub(super) fn full_size(&self, pace: Pace) -> bool {
        let is_idle = matches!(pace, Pace::Idle | Pace::Standby);
        self.phase != Phase::Steady || self.hurry || !is_idle
    }

    pub(super) fn sent(&mut self, id: u64, now: Moment) {
        if let Phase::Proving { step } = &mut self.phase {
            *step += 1;
        }
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push((id, now));
        self.last_sent = Some(now);
        self.hurry = false;
    }

    /// The round trip time of an answer, once per echo.
    pub(super) fn answer(&mut self, id: u64, now: Moment) -> Option<Duration> {
        let place = self.outstanding.iter().position(|(sent, _)| *sent == id)?;
        let (_, at) = self.outstanding.remove(place);
        // Older ones may still come; they must not count as lost once this path is well.
        self.outstanding.retain(|(_, sent)| *sent > at);
        if let Phase::Proving { .. } = self.phase {
            // What was lost before the path worked says nothing about it.
            self.counted = 0;
        }
        self.count(true);
        self.unanswered = 0;
        self.last_answer = Some(now);
        if self.phase != Phase::Steady {
            self.phase = Phase::Steady;
            self.faultless = Some(now);
        }
        Some(now.since(at))
    }

    /// Counts echoes whose answer didn't come in time.
    pub(super) fn expire(&mut self, rtt: Option<Duration>, now: Moment) -> Turn {
        let patience = wait(rtt);
        let before = self.outstanding.len();
        self.outstanding.retain(|(_, at)| *at + patience > now);
        let expired = before - self.outstanding.len();
        for _ in 0..expired {
            self.count(false);
            self.unanswered += 1;
        }
        match self.phase {
            Phase::Steady if expired > 0 => {
                self.doubt(now);
                Turn::Suspect
            }
            Phase::Suspect { .. } if mutation::is(Mutant::NeverDead) => Turn::None,
            Phase::Suspect { .. } if self.unanswered >= dead_after() => {
                self.die(now);
                Turn::Dead
            }
            Phase::Proving { step } if step > PROOF_GAPS.len() && !self.waits() => {
                self.stop();
                Turn::Unproven
            }
            _ => Turn::None,
        }
    }

    /// Gives up a path that cannot work any more.
    pub(super) fn die(&mut self, now: Moment) {
        if self.is_proven() {
            if self.died.is_none_or(|died| now.since(died) > FORGIVEN) {
                self.deaths = 0;
            }
            self.deaths += 1;
            self.died = Some(now);
        }
        self.stop();
    }

    /// Share of the last echoes that got no answer, in percent.
    pub(super) fn loss(&self) -> Option<f64> {
        let counted = self.counted.min(16);
        let kept = u32::from(u16::MAX).checked_shr(16 - counted)?;
        let lost = (u32::from(!self.fates) & kept).count_ones();
        (counted > 0).then(|| f64::from(lost) * 100.0 / f64::from(counted))
    }

    /// When a steady path will have served its probation.
    pub(super) fn probation_end(&self, now: Moment) -> Option<Moment> {
        Some(self.faultless? + self.probation(now))
    }

    fn probation(&self, now: Moment) -> Duration {
        match (self.deaths, self.died) {
            (deaths @ 1.., Some(died)) if now.since(died) <= FORGIVEN => {
                let doubled = 2_u32.saturating_pow(deaths.min(6) - 1);
                (PROBATION.0 * doubled).min(PROBATION.1)
            }
            _ => Duration::ZERO,
        }
    }

    fn count(&mut self, answered: bool) {
        self.fates = self.fates << 1 | u16::from(answered);
        self.counted = self.counted.saturating_add(1);
    }
}

fn dead_after() -> u32 {
    if mutation::is(Mutant::LateDead) {
        DEAD_AFTER * 16
    } else {
        DEAD_AFTER
    }
}

fn wait(rtt: Option<Duration>) -> Duration {
    rtt.map_or(Duration::from_secs(1), |rtt| rtt * 3)
        .clamp(EXPIRY.0, EXPIRY.1)
}
