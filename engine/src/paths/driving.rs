//! Doing what is due, and when that is.

use std::time::Duration;

use podmesh_proto::time::{Moment, Now};

use super::echoing::{Pace, Turn};
use super::mtu::{CheckPace, LEAST};
use super::trial::{Gate, Trial};
use super::{PathAction, Paths, SwitchReason};
use crate::mutation::{self, Mutant};
use crate::path_id::PathId;

/// Silence on the path in use, while data is sent over it, after which it is asked.
const SILENCE: Duration = Duration::from_secs(1);
/// Wait before a path that died is pinged again.
const AFTER_DEATH: Duration = Duration::from_secs(1);

impl Paths {
    /// Does everything that is due; the order matters where one step makes another due.
    pub(super) fn drive(&mut self, now: Now) {
        let at = now.moment;
        self.expire_echoes(now);
        self.drive_rounds(at);
        self.drive_pings(at);
        self.drive_knocks(at);
        self.choose(now);
        self.drive_proofs(at);
        self.drive_echoes(at);
        self.drive_mtu(at);
        self.drive_handshake(at);
    }

    pub(super) fn deadline(&self, now: Moment) -> Option<Moment> {
        let up = self.session.is_up();
        let trials = self.trials.iter().flat_map(|(path, trial)| {
            let pace = self.pace(path, trial, now);
            let echoes = [
                trial.again,
                trial.echoes.due(pace, trial.rtt),
                self.echo_due(path, trial, now),
            ];
            echoes
                .into_iter()
                .map(move |due| due.filter(|_| up))
                .chain([trial.pings.due()])
        });
        let rest = [
            self.rounds_due(now),
            self.knocks.due(),
            self.handshake_due(now),
            self.probation_end(now),
            self.mtu_due(now),
        ];
        trials.chain(rest).flatten().min()
    }

    fn expire_echoes(&mut self, now: Now) {
        let turns: Vec<(PathId, Turn)> = self
            .trials
            .iter_mut()
            .map(|(path, trial)| (*path, trial.echoes.expire(trial.rtt, now.moment)))
            .filter(|(_, turn)| *turn != Turn::None)
            .collect();
        for (path, turn) in turns {
            match turn {
                Turn::Suspect if self.active == Some(path) => {
                    if mutation::is(Mutant::BreakBeforeMake) {
                        self.select(None, SwitchReason::Lost, now);
                    }
                    self.alarm(now.moment);
                }
                Turn::Dead => self.after_death(path, now.moment),
                Turn::Unproven => self.after_failure(path, now.moment),
                Turn::Suspect | Turn::None => {}
            }
        }
    }

    /// The path in use doesn't answer: asks every other one whether it does.
    pub(super) fn alarm(&mut self, now: Moment) {
        self.alarm = Some(now);
        for (path, trial) in &mut self.trials {
            if self.active == Some(*path) {
                continue;
            }
            trial.echoes.hurry();
            if trial.again.is_some() {
                trial.again = Some(now);
            }
        }
        self.begin_open_at(now);
    }

    /// No echo came back over a path. What answers pings, and a relay, is worth another proof; what
    /// doesn't must be left alone, or NATs never forget what is wrong with it.
    fn after_failure(&mut self, path: PathId, now: Moment) {
        if let Some(trial) = self.trials.get_mut(&path)
            && (!path.is_direct() || trial.answers(now))
        {
            trial.try_again(now);
        }
    }

    pub(super) fn after_death(&mut self, path: PathId, now: Moment) {
        let Some(trial) = self.trials.get_mut(&path) else {
            return;
        };
        trial.answered = None;
        trial.rtt = None;
        // Data went over it until now.
        trial.sent = Some(now);
        if !path.is_direct() {
            trial.try_again(now);
        } else if trial.gate == Gate::Open {
            trial.pings.restart(now + AFTER_DEATH);
        }
    }

    /// Begins proofs whose time has come, and those of paths that answer and are missed now.
    fn drive_proofs(&mut self, now: Moment) {
        if !self.session.is_up() {
            return;
        }
        let missed: Vec<PathId> = self
            .trials
            .iter()
            .filter(|(path, trial)| match trial.again {
                Some(again) => again <= now,
                None => path.is_direct() && trial.answers(now) && self.is_wanted(path),
            })
            .map(|(path, _)| *path)
            .collect();
        for path in missed {
            if let Some(trial) = self.trials.get_mut(&path) {
                trial.again = None;
                if !path.is_direct() || trial.answers(now) {
                    trial.echoes.prove();
                }
            }
        }
    }

    fn drive_echoes(&mut self, now: Moment) {
        if !self.session.is_up() {
            return;
        }
        let due: Vec<(PathId, bool)> = self
            .trials
            .iter()
            .filter(|(path, trial)| {
                self.echo_due(path, trial, now)
                    .is_some_and(|due| due <= now)
            })
            .map(|(path, trial)| {
                let pace = self.pace(path, trial, now);
                (*path, trial.echoes.full_size(pace))
            })
            .collect();
        for (path, full_size) in due {
            let id = self.random.next();
            let evidence = self.evidence(&path, now);
            if let Some(trial) = self.trials.get_mut(&path) {
                trial.echoes.sent(id, now);
                trial.sent = Some(now);
            }
            let length = if full_size { LEAST } else { 0 };
            self.push(PathAction::SendEcho {
                path,
                id,
                reply: false,
                length,
                evidence,
            });
        }
    }

    /// Looks after the MTU of the path in use; others find theirs when they are.
    fn drive_mtu(&mut self, now: Moment) {
        let (pace, most) = (self.check_pace(now), self.device_mtu);
        let Some(path) = self.active.filter(|_| self.session.is_up()) else {
            return;
        };
        let Some(trial) = self.trials.get_mut(&path) else {
            return;
        };
        for length in trial.mtu.drive((pace, trial.rtt), most, now) {
            let id = self.random.next();
            trial.mtu.sent(id, length);
            self.actions
                .push_back(PathAction::SendSizeProbe { path, id, length });
        }
    }

    fn mtu_due(&self, now: Moment) -> Option<Moment> {
        let trial = self.trials.get(&self.active?)?;
        let up = self.session.is_up();
        up.then(|| trial.mtu.due(self.check_pace(now), trial.rtt))
    }

    fn check_pace(&self, now: Moment) -> CheckPace {
        if self.traffic.is_heavy(now) {
            CheckPace::Heavy
        } else if self.traffic.is_busy(now) {
            CheckPace::Busy
        } else {
            CheckPace::Idle
        }
    }

    /// When the next echo over a path is due.
    fn echo_due(&self, path: &PathId, trial: &Trial, now: Moment) -> Option<Moment> {
        if !self.session.is_up() {
            return None;
        }
        let pace = self.pace(path, trial, now);
        let due = trial.echoes.send_due(pace)?;
        let watched = pace == Pace::Busy && !trial.echoes.is_suspect() && !trial.echoes.waits();
        let Some(since) = self.traffic.busy_since().filter(|_| watched) else {
            return Some(due);
        };
        let heard = trial.heard.max(trial.echoes.last_answer());
        Some(due.min(heard.map_or(since, |heard| heard.max(since)) + SILENCE))
    }

    fn pace(&self, path: &PathId, trial: &Trial, now: Moment) -> Pace {
        if self.active == Some(*path) {
            return if self.traffic.is_busy(now) {
                Pace::Busy
            } else {
                Pace::Idle
            };
        }
        let better = self
            .active
            .is_none_or(|active| self.tier(path) < self.tier(&active));
        if better && trial.echoes.is_proven() {
            Pace::Probation
        } else {
            Pace::Standby
        }
    }

    /// When a better path may have served its probation.
    fn probation_end(&self, now: Moment) -> Option<Moment> {
        self.trials
            .iter()
            .filter(|(path, trial)| self.pace(path, trial, now) == Pace::Probation)
            .filter_map(|(_, trial)| trial.echoes.probation_end(now))
            .filter(|end| *end > now)
            .min()
    }
}
