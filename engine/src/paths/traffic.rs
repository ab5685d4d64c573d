//! What the flow of data says about the paths.

use std::time::Duration;

use podmesh_proto::time::{Moment, Now};

use super::{PathAction, Paths};
use crate::path_id::PathId;

/// A peer that was sent something this long ago is busy.
const BUSY: Duration = Duration::from_secs(2);
/// Inner packets of one sample that make a peer one that much is sent to.
const MUCH: u64 = 50;
/// Silence on the path in use after which data over another path makes it doubtful.
const ELSEWHERE: Duration = Duration::from_millis(500);

/// Data since the last sample.
#[derive(Debug, Clone, Copy)]
pub struct TrafficSample<'a> {
    /// Inner packets that were sent.
    pub sent: u64,
    /// Authenticated inner packets that came in, by path.
    pub received: &'a [(PathId, u64)],
}

/// The last signs of data.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    sent: Option<Moment>,
    busy_since: Option<Moment>,
    /// When much was sent last.
    heavy: Option<Moment>,
}

impl Traffic {
    pub(super) fn is_busy(&self, now: Moment) -> bool {
        self.sent.is_some_and(|sent| now.since(sent) < BUSY)
    }

    /// Whether so much is sent that a wrong size would hurt.
    pub(super) fn is_heavy(&self, now: Moment) -> bool {
        self.heavy.is_some_and(|heavy| now.since(heavy) < BUSY)
    }

    pub(super) fn busy_since(&self) -> Option<Moment> {
        self.busy_since
    }
}

impl Paths {
    pub(super) fn take_sample(&mut self, sample: &TrafficSample<'_>, now: Now) {
        let at = now.moment;
        if sample.sent > 0 {
            if !self.traffic.is_busy(at) {
                self.traffic.busy_since = Some(at);
            }
            self.traffic.sent = Some(at);
            if sample.sent >= MUCH {
                self.traffic.heavy = Some(at);
            }
        }
        for (path, _) in sample.received.iter().filter(|(_, packets)| *packets > 0) {
            self.heard(*path, now);
        }
        let elsewhere = sample.received.iter().any(|(path, packets)| {
            *packets > 0 && self.active.is_some_and(|active| active != *path)
        });
        let Some(trial) = self.active.and_then(|active| self.trials.get_mut(&active)) else {
            return;
        };
        let silent = trial
            .heard
            .max(trial.echoes.last_answer())
            .is_none_or(|heard| at.since(heard) >= ELSEWHERE);
        if elsewhere && silent {
            trial.echoes.hurry();
        }
    }

    /// The answer to an echo.
    pub(super) fn echo_answered(&mut self, path: PathId, id: u64, now: Now) {
        self.heard(path, now);
        let Some(trial) = self.trials.get_mut(&path) else {
            return;
        };
        // Only the path that it went over counts: an answer that comes another way shows that this
        // one works in one direction at most.
        let Some(rtt) = trial.echoes.answer(id, now.moment) else {
            return;
        };
        trial.sample(rtt);
        trial.again = None;
        trial.failures = 0;
        trial.worked = true;
        trial.withdrawn = false;
        trial.pings.stop();
        if path.is_direct() {
            self.push(PathAction::Answered { path });
        }
        if self.active == Some(path) {
            self.alarm = None;
        }
        self.compare(path);
    }

    /// The system refused to send over a path.
    pub(super) fn refused(&mut self, path: PathId, now: Now) {
        let doubted = self
            .trials
            .get_mut(&path)
            .is_some_and(|trial| trial.echoes.doubt(now.moment));
        if doubted && self.active == Some(path) {
            self.alarm(now.moment);
        }
    }

    /// This node has moved: no path is certain any more.
    pub(super) fn doubt_everything(&mut self, now: Now) {
        for trial in self.trials.values_mut() {
            trial.echoes.doubt(now.moment);
            trial.mtu.doubt();
            trial.answered = None;
        }
        if self.active.is_some() {
            self.alarm(now.moment);
        } else {
            self.begin_open(now);
        }
    }
}
