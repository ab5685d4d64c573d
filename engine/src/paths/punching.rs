//! Timed hole punching: rounds that a planet gives both ends the instant of.

use std::time::Duration;

use podmesh_proto::time::{Moment, Now};

use super::pairing::Round;
use super::trial::{Gate, TrialKind};
use super::{PathAction, Paths};
use crate::path_id::PathId;

/// A NAT forgets what was never answered after 30 s (Linux); pairs of endpoints that may be spoilt
/// are left alone a little longer.
const QUIET: Duration = Duration::from_secs(35);
/// The same for what was answered once (120 s).
const QUIET_STREAM: Duration = Duration::from_secs(125);
/// After the instant of a punch, until it counts as failed: its burst of pings and an answer.
const ROUND: Duration = Duration::from_millis(1_800);
/// How long a planet's word is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// The node with the higher id asks this much later, so that one of the two asks.
const STAGGER: Duration = Duration::from_millis(250);
/// A node that no planet has seen yet punches all the same after this long.
const UNKNOWN: Duration = Duration::from_secs(3);
/// A public node needs no punch; the first round waits this long for its answer.
const HEAD_START: Duration = Duration::from_millis(400);
/// Seconds between rounds once each kind has failed.
const BACKOFF: [u64; 4] = [15, 30, 45, 60];
/// Instants of punches that are waited for.
const MAX_FIRING: usize = 4;
/// A planet's instant is not waited for longer than this.
const MAX_HOLD: Duration = Duration::from_secs(5);

/// The rounds with one peer.
#[derive(Debug)]
pub(super) struct Rounds {
    lower: bool,
    /// The highest number seen of this peer's tries and this node's.
    attempt: u32,
    pub(super) failures: u32,
    pub(super) next: Option<Moment>,
    asked: Option<Moment>,
    firing: Vec<(Moment, u32)>,
    until: Option<Moment>,
}

impl Rounds {
    pub(super) fn new(lower: bool) -> Self {
        Self {
            lower,
            attempt: 0,
            failures: 0,
            next: None,
            asked: None,
            firing: Vec::new(),
            until: None,
        }
    }

    /// Something has changed that makes success likelier: starts over.
    pub(super) fn news(&mut self, now: Moment) {
        self.failures = 0;
        if self.asked.is_none() {
            self.next = Some(if self.lower { now } else { now + STAGGER });
        }
    }

    /// Whether a round is being asked for or under way.
    pub(super) fn under_way(&self) -> bool {
        self.asked.is_some() || self.until.is_some() || !self.firing.is_empty()
    }
}

impl Paths {
    pub(super) fn punch(&mut self, attempt: u32, fire_in: Duration, now: Now) {
        let round = Round::of(attempt);
        let head_start = round
            .opener()
            .map_or(Duration::ZERO, |opener| opener.head_start);
        let at = now.moment + fire_in.min(MAX_HOLD) + head_start;
        self.rounds.attempt = self.rounds.attempt.max(attempt);
        self.rounds.asked = None;
        self.rounds.next = None;
        if self.rounds.firing.len() < MAX_FIRING {
            self.rounds.firing.push((at, attempt));
        }
        if let Some(opener) = round.opener() {
            for (kind, path) in self.round_pairs(round) {
                if self.ensure(path, kind, Gate::Timed).is_some() {
                    self.send_ping(path, Some(opener.reach), now.moment);
                }
            }
        }
    }

    pub(super) fn drive_rounds(&mut self, now: Moment) {
        let (fire, wait) = std::mem::take(&mut self.rounds.firing)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.rounds.firing = wait;
        for (_, attempt) in fire {
            self.fire(Round::of(attempt), now);
        }
        if self.rounds.until.is_some_and(|until| until <= now) {
            self.rounds.until = None;
            self.rounds.failures += 1;
            self.rounds.next = Some(now + self.backoff());
        }
        if self
            .rounds
            .asked
            .is_some_and(|asked| asked + PATIENCE <= now)
        {
            self.rounds.asked = None;
            self.rounds.failures += 1;
            self.rounds.next = Some(now + self.backoff());
        }
        if self.rounds_due(now).is_some_and(|due| due <= now) {
            self.ask(now);
        }
    }

    /// When something of the rounds is due.
    pub(super) fn rounds_due(&self, now: Moment) -> Option<Moment> {
        let rounds = &self.rounds;
        let firing = rounds.firing.iter().map(|(at, _)| *at).min();
        let asked = rounds.asked.map(|asked| asked + PATIENCE);
        let next = rounds
            .next
            .filter(|_| !rounds.under_way() && self.wants_round());
        let next = next.map(|next| next.max(self.round_not_before(now)));
        [firing, asked, rounds.until, next]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a direct path is missing that a punch could make.
    pub(super) fn wants_round(&self) -> bool {
        !self.is_direct()
            && self.has_relay()
            && self
                .remote
                .as_ref()
                .is_some_and(|remote| !remote.candidates.is_empty())
    }

    /// Rounds wait until a planet knows this node's record, which it passes on before it says when
    /// to punch; and for candidates that answer without: public ones at the beginning, and those
    /// that have just answered.
    fn round_not_before(&self, now: Moment) -> Moment {
        let easy = self.remote.as_ref().is_some_and(|remote| {
            !remote.behind_nat() || !self.local.behind_nat() || remote.shares_nat(&self.local)
        });
        let known = match self.local.since {
            Some(since) => since,
            None => self.started + UNKNOWN,
        };
        let start = if easy {
            known.max(self.started + HEAD_START)
        } else {
            known
        };
        let answered = self
            .trials
            .iter()
            .filter(|(path, trial)| {
                path.is_direct() && !trial.echoes.is_off() && trial.answers(now)
            })
            .filter_map(|(_, trial)| trial.answered)
            .max();
        answered.map_or(start, |at| start.max(at + ROUND))
    }

    fn ask(&mut self, now: Moment) {
        let ahead = || (1..=Round::KINDS).map(|ahead| self.rounds.attempt.wrapping_add(ahead));
        let clean = ahead().find(|attempt| self.clean_from(Round::of(*attempt)) <= now);
        match clean {
            Some(attempt) => {
                self.rounds.attempt = attempt;
                self.rounds.asked = Some(now);
                self.rounds.next = None;
                self.push(PathAction::Introduce { attempt });
            }
            None => {
                let earliest = ahead()
                    .map(|attempt| self.clean_from(Round::of(attempt)))
                    .min();
                self.rounds.next = earliest;
            }
        }
    }

    /// Since when no NAT can remember an unlucky ping of the pairs of a round.
    fn clean_from(&self, round: Round) -> Moment {
        self.pairs(round)
            .iter()
            .filter_map(|path| {
                let trial = self.trials.get(path)?;
                Some(trial.sent? + if trial.worked { QUIET_STREAM } else { QUIET })
            })
            .max()
            .unwrap_or(Moment::ZERO)
    }

    /// The pairs of a round, with a trial each.
    fn pairs(&self, round: Round) -> Vec<PathId> {
        self.round_pairs(round)
            .into_iter()
            .map(|(_, path)| path)
            .collect()
    }

    fn round_pairs(&self, round: Round) -> Vec<(TrialKind, PathId)> {
        self.remote
            .as_ref()
            .map(|remote| round.pairs(self.rounds.lower, &self.local, remote))
            .unwrap_or_default()
    }

    fn fire(&mut self, round: Round, now: Moment) {
        self.rounds.until = Some(now + ROUND);
        for (kind, path) in self.round_pairs(round) {
            if let Some(trial) = self.ensure(path, kind, Gate::Timed)
                && !trial.answers(now)
            {
                let skip = round.opener().map_or(0, |opener| opener.instead_of);
                trial.pings.punch(skip, now);
            }
        }
        if round.is_first_kind() {
            self.begin_open_at(now);
        }
    }

    fn backoff(&mut self) -> Duration {
        if let Some(over) = self.rounds.failures.checked_sub(Round::KINDS) {
            let last = BACKOFF.len() - 1;
            let seconds = BACKOFF
                .get((over as usize).min(last))
                .copied()
                .unwrap_or(60);
            let jitter = self.random.below(2_000);
            return Duration::from_secs(seconds) + Duration::from_millis(jitter);
        }
        if self.rounds.lower {
            Duration::ZERO
        } else {
            STAGGER
        }
    }
}
