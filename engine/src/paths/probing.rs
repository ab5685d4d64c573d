//! Pings: bursts towards candidates, answers, and checks that the peer's own pings trigger.

use std::net::SocketAddr;
use std::time::Duration;

use podmesh_proto::candidate::may_be_probed;
use podmesh_proto::probe::ProbeBody;
use podmesh_proto::time::{Moment, Now};

use super::pairing::Remote;
use super::trial::{Gate, PING_EXPIRY, Trial, TrialKind};
use super::{Evidence, MAX_TRIALS, PathAction, Paths};
use crate::mutation::{self, Mutant};
use crate::path_id::{PathId, SocketId};
use crate::reach::Reach;

/// A peer that pings us is not pinged back more often than this.
const TRIGGER_GAP: Duration = Duration::from_millis(40);
/// How long something that the peer sealed speaks for the place that it came from.
const HEARD: Duration = Duration::from_secs(30);

impl Paths {
    /// Sorts the peer's record anew, and forgets candidates that it doesn't name any more.
    pub(super) fn sort_record(&mut self, now: Now) {
        let Some(record) = &self.record else { return };
        let remote = Remote::new(record, &self.local);
        let before = self.remote.take().unwrap_or_default();
        let moved = remote.has_moved(&before);
        let (active, good) = (self.active, &self.last_good);
        self.trials.retain(|path, trial| match path {
            PathId::Relay { .. } => true,
            PathId::Direct { endpoint, .. } => {
                remote.names(endpoint)
                    || active == Some(*path)
                    || good.contains(path)
                    || trial.kind == TrialKind::PeerReflexive
                    || trial.echoes.is_proven()
            }
        });
        let mut doubtful = false;
        for (path, trial) in &mut self.trials {
            let PathId::Direct { endpoint, .. } = path else {
                continue;
            };
            let named = remote.candidates.iter().find(|(_, _, one)| one == endpoint);
            if let Some((kind, gate, _)) = named {
                (trial.kind, trial.gate) = (*kind, *gate);
            }
            // Through a NAT the peer comes from another port then.
            if moved || named.is_none() && before.names(endpoint) {
                trial.withdrawn = true;
                doubtful |= active == Some(*path) && trial.echoes.doubt(now.moment);
            }
        }
        if doubtful {
            self.alarm(now.moment);
        }
        let open: Vec<(TrialKind, SocketAddr)> = remote.open().collect();
        self.remote = Some(remote);
        for (kind, endpoint) in open {
            let path = PathId::Direct {
                socket: SocketId::MAIN,
                endpoint,
            };
            if !self.trials.contains_key(&path)
                && let Some(trial) = self.ensure(path, kind, Gate::Open)
            {
                trial.pings.restart(now.moment);
            }
        }
    }

    /// Pings every open candidate that doesn't answer, from the start.
    pub(super) fn begin_open(&mut self, now: Now) {
        self.begin_open_at(now.moment);
    }

    pub(super) fn begin_open_at(&mut self, now: Moment) {
        for (path, trial) in &mut self.trials {
            if path.is_direct()
                && trial.gate == Gate::Open
                && !trial.answers(now)
                && !trial.pings.under_way()
            {
                trial.pings.restart(now);
            }
        }
    }

    pub(super) fn drive_pings(&mut self, now: Moment) {
        let due: Vec<PathId> = self
            .trials
            .iter()
            .filter(|(_, trial)| trial.pings.due().is_some_and(|due| due <= now))
            .map(|(path, _)| *path)
            .collect();
        for path in due {
            let wanted = self.is_wanted(&path);
            let Some(trial) = self.trials.get_mut(&path) else {
                continue;
            };
            if !wanted || trial.answers(now) {
                trial.pings.stop();
                continue;
            }
            trial.pings.advance(now, trial.gate == Gate::Open);
            self.send_ping(path, None, now);
        }
    }

    /// Whether a path like this would be better than the one in use.
    pub(super) fn is_wanted(&self, path: &PathId) -> bool {
        match self.active {
            None => true,
            Some(active) => self.alarm.is_some() || self.tier(path) < self.tier(&active),
        }
    }

    pub(super) fn send_ping(&mut self, path: PathId, reach: Option<Reach>, now: Moment) {
        let transaction = self.random.next();
        let Some(trial) = self.trials.get_mut(&path) else {
            return;
        };
        trial.pings.sent(transaction, now);
        trial.sent = Some(now);
        let body = ProbeBody::Ping { transaction };
        let evidence = match reach {
            Some(_) => Evidence::Spared,
            None => self.evidence(&path, now),
        };
        self.push(PathAction::SendProbe {
            path,
            body,
            reach,
            evidence,
        });
    }

    /// What speaks for the peer being at the other end of a path.
    #[must_use]
    pub fn evidence(&self, path: &PathId, now: Moment) -> Evidence {
        if !path.is_direct() {
            // A relay sends to members alone.
            return Evidence::Answers;
        }
        let Some(trial) = self.trials.get(path) else {
            return Evidence::Claimed;
        };
        let heard = trial.heard.is_some_and(|at| now.since(at) < HEARD);
        if trial.answers(now) {
            Evidence::Answers
        } else if heard {
            Evidence::Heard
        } else if trial.worked || self.last_good.contains(path) {
            Evidence::Spared
        } else {
            Evidence::Claimed
        }
    }

    pub(super) fn handle_ping(&mut self, path: PathId, transaction: u64, now: Now) {
        // Over a relay the tunnel's echoes do all that pings do.
        let PathId::Direct { endpoint, .. } = path else {
            return;
        };
        let body = ProbeBody::Pong {
            transaction,
            observed: endpoint,
        };
        // Whoever can send with a false source must not aim this node's answers, either.
        let evidence = self.evidence(&path, now.moment);
        self.push(PathAction::SendProbe {
            path,
            body,
            reach: None,
            evidence,
        });
        self.heard(path, now);
        self.check_back(path, now.moment);
    }

    pub(super) fn handle_pong(
        &mut self,
        path: PathId,
        transaction: u64,
        observed: SocketAddr,
        now: Now,
    ) {
        let PathId::Direct { socket, .. } = path else {
            return;
        };
        let answer = self
            .trials
            .get_mut(&path)
            .and_then(|trial| trial.pings.answer(transaction, now.moment));
        let Some(rtt) = answer else {
            // The answer to a ping that went elsewhere shows where the peer's answers come from: no
            // path yet, but worth a ping.
            if self
                .trials
                .values()
                .any(|trial| trial.pings.knows(transaction))
            {
                self.check_back(path, now.moment);
            }
            return;
        };
        if let Some(trial) = self.trials.get_mut(&path) {
            trial.sample(rtt);
            trial.answered = Some(now.moment);
            trial.heard = Some(now.moment);
            trial.pings.stop();
        }
        self.push(PathAction::Answered { path });
        if !self.is_local(&path) {
            self.push(PathAction::Observed {
                socket,
                endpoint: observed,
            });
        }
    }

    /// The peer answers at the other end of `path`, where it was asked at `since`.
    pub(super) fn reached(&mut self, path: PathId, since: Moment, now: Moment) {
        let late = now.since(since) >= PING_EXPIRY;
        if !path.is_direct() || late || mutation::is(Mutant::HandshakeProvesNothing) {
            return;
        }
        if let Some(trial) = self.trials.get_mut(&path) {
            (trial.answered, trial.heard) = (Some(now), Some(now));
            self.push(PathAction::Answered { path });
        }
    }

    /// The peer has this node's session. If it had forgotten the one before, no echo that is under way is
    /// answered: asks anew, where somebody is known to be.
    pub(super) fn confirmed(&mut self, path: PathId, now: Moment) {
        self.session_confirmed(now);
        let wanted = self.is_wanted(&path);
        for (way, trial) in &mut self.trials {
            if way.is_direct() && !trial.answers(now) {
                continue;
            }
            if *way == path && wanted && trial.echoes.is_off() {
                (trial.again, trial.failures) = (None, 0);
                trial.echoes.prove();
            }
            trial.echoes.prove_at_once();
        }
    }

    /// Something sealed by the peer came over `path`.
    pub(super) fn heard(&mut self, path: PathId, now: Now) {
        let idle = match self.trials.get_mut(&path) {
            None => true,
            Some(trial) => {
                trial.heard = Some(now.moment);
                trial.echoes.is_off() && trial.again.is_none() && self.is_wanted(&path)
            }
        };
        if idle && path.is_direct() {
            self.check_back(path, now.moment);
        }
    }

    /// The peer has sent something over `path`, so its NAT is open for it: pings it.
    fn check_back(&mut self, path: PathId, now: Moment) {
        let may = matches!(path, PathId::Direct { endpoint, .. } if may_be_probed(&endpoint));
        if !may || mutation::is(Mutant::NoTriggeredCheck) {
            return;
        }
        let news = !self.trials.contains_key(&path);
        let wanted = news || self.is_wanted(&path);
        let up = self.session.is_up() && !self.session.is_doubted();
        let Some(trial) = self.ensure(path, TrialKind::PeerReflexive, Gate::Timed) else {
            return;
        };
        trial.heard = Some(now);
        #[cfg(feature = "virtual-time")]
        if mutation::is(Mutant::NoEcho) {
            trial.echoes.assume(now);
        }
        if wanted && up && trial.again.is_none() {
            // The tunnel seals better than any ping: spares the round trip of the ping.
            trial.echoes.prove();
        }
        let recent = trial
            .pings
            .last_sent()
            .is_some_and(|at| now.since(at) < TRIGGER_GAP);
        let recent = recent || trial.answers(now);
        if !recent {
            self.send_ping(path, None, now);
        }
    }

    /// The trial of a path; a new one takes the place of the least useful when there are too many.
    pub(super) fn ensure(
        &mut self,
        path: PathId,
        kind: TrialKind,
        gate: Gate,
    ) -> Option<&mut Trial> {
        if !self.trials.contains_key(&path) && self.trials.len() >= MAX_TRIALS {
            let idle = |trial: &Trial| trial.echoes.is_off() && !trial.pings.under_way();
            let worst = self
                .trials
                .iter()
                .filter(|(path, trial)| {
                    path.is_direct() && idle(trial) && self.active != Some(**path)
                })
                .min_by_key(|(_, trial)| (trial.heard, trial.sent))
                .map(|(path, _)| *path)?;
            self.trials.remove(&worst);
        }
        Some(
            self.trials
                .entry(path)
                .or_insert_with(|| Trial::new(kind, gate)),
        )
    }
}
