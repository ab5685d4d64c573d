//! One candidate path and all that is known about it.

use std::time::Duration;

use podmesh_proto::time::Moment;

use super::echoing::Echoes;
use super::mtu::PathMtu;
use crate::mutation::{self, Mutant};

/// Gaps between the pings of a burst to an open candidate: six tries in 1.55 s, so that one in five
/// lost each way costs one burst in five hundred.
const BURST_GAPS: [u64; 5] = [50, 100, 200, 400, 800];
/// Gaps in a round of hole punching: four tries, so that four rounds fit into the budget.
const ROUND_GAPS: [u64; 3] = [60, 200, 500];
/// Seconds until an open candidate that didn't answer is tried again.
const RETRY_GAPS: [u64; 6] = [5, 15, 30, 60, 120, 300];
/// Seconds until an echo is tried again over a path on which none came back.
const AGAIN_GAPS: [u64; 4] = [1, 3, 8, 15];
/// Pings whose answer is still waited for.
const MAX_OUTSTANDING: usize = 8;
/// How long an answer to a ping is waited for.
pub(super) const PING_EXPIRY: Duration = Duration::from_secs(5);
/// After this long without an answer a path doesn't count as answering.
const ANSWER_FRESH: Duration = Duration::from_secs(40);

/// How a candidate path became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrialKind {
    /// The peer's record names it as its own address.
    Host,
    /// The peer's record names it as the outside of its main port.
    Reflexive,
    /// The same of its spare port.
    Spare,
    /// The peer's operator named it.
    Configured,
    /// Something sealed by the peer came from there.
    PeerReflexive,
    /// It worked before this node's restart.
    Cached,
    /// A planet in common.
    Relay,
}

impl TrialKind {
    /// The word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Reflexive => "reflexive",
            Self::Spare => "spare",
            Self::Configured => "configured",
            Self::PeerReflexive => "peer-reflexive",
            Self::Cached => "cached",
            Self::Relay => "relay",
        }
    }
}

/// When a candidate may be pinged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// At any time.
    Open,
    /// A NAT that an early ping would spoil stands before it: only at the instant of a hole punch.
    Timed,
}

/// One candidate path.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) kind: TrialKind,
    pub(super) gate: Gate,
    pub(super) pings: Pings,
    pub(super) echoes: Echoes,
    pub(super) mtu: PathMtu,
    /// Last answer to a ping.
    pub(super) answered: Option<Moment>,
    /// Last time anything authenticated came over it.
    pub(super) heard: Option<Moment>,
    /// Smoothed round trip time.
    pub(super) rtt: Option<Duration>,
    /// Last time something went out over it.
    pub(super) sent: Option<Moment>,
    /// When to try again to prove it, after that has failed.
    pub(super) again: Option<Moment>,
    /// How often it has failed in a row.
    pub(super) failures: u32,
    /// It has worked once, so that NATs remember it longer.
    pub(super) worked: bool,
    /// Samples in a row in which it was clearly faster than the path in use.
    pub(super) faster: u8,
    /// The peer has moved or taken this endpoint back, and no echo has come back over it since.
    pub(super) withdrawn: bool,
}

impl Trial {
    pub(super) fn new(kind: TrialKind, gate: Gate) -> Self {
        Self {
            kind,
            gate,
            pings: Pings::default(),
            echoes: Echoes::default(),
            mtu: PathMtu::default(),
            answered: None,
            heard: None,
            rtt: None,
            sent: None,
            again: None,
            failures: 0,
            worked: false,
            faster: 0,
            withdrawn: false,
        }
    }

    /// Whether a ping was answered lately, or the path is known to work.
    pub(super) fn answers(&self, now: Moment) -> bool {
        self.echoes.is_proven() || self.answered.is_some_and(|at| now.since(at) < ANSWER_FRESH)
    }

    /// Plans another proof after one has failed.
    pub(super) fn try_again(&mut self, now: Moment) {
        let gap = AGAIN_GAPS.get(self.failures as usize).copied();
        self.failures = self.failures.saturating_add(1);
        self.again = Some(now + Duration::from_secs(gap.unwrap_or(25)));
    }

    /// Takes a round trip into the average (weights of RFC 6298 §2). A shorter one counts more: no
    /// way is shorter than it is, while the first answers of a busy start come late.
    pub(super) fn sample(&mut self, rtt: Duration) {
        self.rtt = Some(match self.rtt {
            None => rtt,
            Some(smoothed) if rtt < smoothed => (smoothed + rtt) / 2,
            Some(smoothed) => (smoothed * 7 + rtt) / 8,
        });
    }
}

/// How a burst of pings is spread.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Gaps {
    #[default]
    Full,
    /// The last three of a full burst: for a candidate that didn't answer one.
    Retry,
    /// For a round of hole punching, without so many of the first gaps.
    Round(usize),
}

impl Gaps {
    fn after(self, step: usize) -> Option<Duration> {
        let millis = match self {
            Self::Full => BURST_GAPS.get(step),
            Self::Retry => BURST_GAPS.get(step + 3),
            Self::Round(skip) => ROUND_GAPS.get(step + skip),
        };
        millis.copied().map(Duration::from_millis)
    }
}

/// The pings of one candidate.
#[derive(Debug, Default)]
pub(super) struct Pings {
    next: Option<Moment>,
    step: usize,
    retries: usize,
    gaps: Gaps,
    outstanding: Vec<(u64, Moment)>,
}

impl Pings {
    /// Starts a burst now, unless one is under way.
    pub(super) fn burst(&mut self, now: Moment) {
        if !self.under_way() {
            (self.step, self.next, self.gaps) = (0, Some(now), Gaps::Full);
        }
    }

    /// Starts the burst of a round of hole punching, without so many of its first gaps.
    pub(super) fn punch(&mut self, skip: usize, now: Moment) {
        (self.step, self.next, self.gaps) = (0, Some(now), Gaps::Round(skip));
    }

    /// Starts a burst at `when`, with the retries counted from none.
    pub(super) fn restart(&mut self, when: Moment) {
        self.step = 0;
        self.retries = 0;
        self.gaps = Gaps::Full;
        self.next = Some(when);
    }

    /// No more pings until told otherwise.
    pub(super) fn stop(&mut self) {
        self.next = None;
        self.step = 0;
    }

    pub(super) fn due(&self) -> Option<Moment> {
        self.next
    }

    pub(super) fn under_way(&self) -> bool {
        self.next.is_some() && self.step > 0
    }

    /// Notes a ping of the burst and plans the next; `again` says whether another burst follows.
    pub(super) fn advance(&mut self, now: Moment, again: bool) {
        let gap = self.gaps.after(self.step);
        let endless = mutation::is(Mutant::NoBudget).then_some(Duration::from_millis(100));
        let gap = gap.or(endless);
        self.step += 1;
        self.next = match gap {
            Some(gap) => Some(now + gap),
            None if again => {
                let last = RETRY_GAPS.len() - 1;
                let gap = RETRY_GAPS.get(self.retries.min(last)).copied();
                self.retries += 1;
                self.step = 0;
                self.gaps = Gaps::Retry;
                Some(now + Duration::from_secs(gap.unwrap_or(300)))
            }
            None => None,
        };
    }

    pub(super) fn sent(&mut self, transaction: u64, now: Moment) {
        self.outstanding
            .retain(|(_, at)| now.since(*at) < PING_EXPIRY);
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push((transaction, now));
    }

    /// The round trip time of an answer, once per ping.
    pub(super) fn answer(&mut self, transaction: u64, now: Moment) -> Option<Duration> {
        let place = self
            .outstanding
            .iter()
            .position(|(sent, _)| *sent == transaction)?;
        let (_, at) = self.outstanding.remove(place);
        (now.since(at) < PING_EXPIRY).then(|| now.since(at))
    }

    pub(super) fn knows(&self, transaction: u64) -> bool {
        self.outstanding
            .iter()
            .any(|(sent, _)| *sent == transaction)
    }

    pub(super) fn last_sent(&self) -> Option<Moment> {
        self.outstanding.last().map(|(_, at)| *at)
    }
}
