//! When to start a handshake, and over which path.

use std::time::Duration;

use podmesh_proto::time::{Moment, Now};

use super::{PathAction, Paths, SwitchReason};
use crate::mutation::{self, Mutant};
use crate::path_id::PathId;

/// Seconds between handshakes that get no answer.
const GAPS: [u64; 5] = [1, 2, 3, 5, 10];
/// The node with the higher id starts this much later, so that one of the two starts.
const STAGGER: Duration = Duration::from_millis(400);
/// A peer that has started anew has forgotten the session and starts a handshake itself; this is
/// how long it gets.
const DOUBT: Duration = Duration::from_secs(1);
/// How long the first handshake of a new life gets over the path that the former one used.
const RESUME: Duration = Duration::from_millis(300);
/// A handshake that came by a path this long ago says that it works.
const JUST_HEARD: Duration = Duration::from_secs(1);
/// Age of a session that its initiator should have renewed (at 120 s, and it is tried each 5 s). When two
/// handshakes cross, each end may take itself for the one that answered, so that nobody does.
const OVERDUE: Duration = Duration::from_secs(135);
/// The node with the higher id waits this much longer, or these handshakes would cross, too. All is over
/// at 180 s.
const OVERDUE_STAGGER: Duration = Duration::from_secs(10);
/// Shortest time between a handshake over a relay and one over the direct path that appears then.
const SHORTEST: Duration = Duration::from_millis(20);

/// What is known about the tunnel's session.
#[derive(Debug)]
pub(super) struct Session {
    lower: bool,
    up: bool,
    /// When the session was made that both ends have, as far as is known.
    made: Option<Moment>,
    doubted: Option<Moment>,
    wanted: Option<Moment>,
    last: Option<Moment>,
    tries: usize,
    direct: bool,
    /// Where the last handshake went.
    over: Option<PathId>,
    /// When the peer answered one of this node's last.
    pub(super) answered: Option<Moment>,
    /// This node was restarted: the peer thinks that all is well, so that this one must begin. Until its second try.
    resumes: bool,
    /// The next try goes to where the former life ended.
    goes_back: bool,
}

impl Session {
    pub(super) fn new(lower: bool) -> Self {
        Self {
            lower,
            up: false,
            made: None,
            doubted: None,
            wanted: None,
            last: None,
            tries: 0,
            direct: false,
            over: None,
            answered: None,
            resumes: false,
            goes_back: false,
        }
    }

    /// Paths of a former life are known.
    pub(super) fn resume(&mut self) {
        self.resumes = true;
        self.goes_back = true;
    }

    /// Whether the next handshake is the first of a new life.
    fn is_resuming(&self) -> bool {
        self.goes_back && self.tries == 0 && !self.up
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Whether the peer has probably forgotten the session.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// When a path that is in use needs a new session, because nobody has renewed this one.
    fn overdue(&self) -> Option<Moment> {
        let stagger = if self.lower {
            Duration::ZERO
        } else {
            OVERDUE_STAGGER
        };
        Some(self.made? + OVERDUE + stagger)
    }

    /// The peer may have forgotten the session.
    pub(super) fn doubt(&mut self, now: Moment) {
        if self.up {
            self.doubted = Some(now);
        }
    }
}

impl Paths {
    pub(super) fn session_changed(&mut self, established: bool, now: Now) {
        let was_up = std::mem::replace(&mut self.session.up, established);
        // Of a later try nobody knows by which way it was answered; and one of the peer's own, which makes a
        // session as well, says nothing about the way out.
        let answered = self.session.answered.take() == Some(now.moment);
        let first_was_answered = answered
            && self.session.tries == 1
            && self
                .session
                .last
                .is_some_and(|last| now.moment.since(last) < JUST_HEARD);
        self.session.doubted = None;
        self.session.wanted = None;
        self.session.tries = 0;
        // The peer may not have the answer to its handshake, and answer this node's own, which has crossed it: then
        // none of the two is a session, and neither end renews the one before.
        let goes_on = self.session.made.filter(|_| was_up && !answered);
        self.session.made = established.then_some(goes_on.unwrap_or(now.moment));
        if established {
            self.session.last = Some(now.moment);
            if std::mem::take(&mut self.session.resumes) && !was_up && first_was_answered {
                self.take_up(now.moment);
            }
            self.prove_all(now.moment);
        } else if was_up {
            for trial in self.trials.values_mut() {
                trial.echoes.stop();
                trial.again = None;
            }
            self.select(None, SwitchReason::SessionEnded, now);
        }
    }

    /// The peer has the session that it has begun.
    pub(super) fn session_confirmed(&mut self, now: Moment) {
        if self.session.up {
            self.session.made = Some(now);
        }
    }

    /// The first handshake of a new life went over the path that the former one had proven, and was
    /// answered: no echo could tell more.
    fn take_up(&mut self, now: Moment) {
        let over = self.session.over;
        let over = over.filter(|path| self.last_good.contains(path));
        let Some(trial) = over.and_then(|path| self.trials.get_mut(&path)) else {
            return;
        };
        let just_heard = trial.heard.is_some_and(|at| now.since(at) < JUST_HEARD);
        if just_heard {
            // An echo of full size follows at once: a handshake is short.
            trial.echoes.vouch(now);
        }
    }

    /// Proves every path that may work, from the start where that went badly with an old session.
    fn prove_all(&mut self, now: Moment) {
        for (path, trial) in &mut self.trials {
            if trial.echoes.is_proven() {
                continue;
            }
            let just_heard = trial.heard.is_some_and(|at| now.since(at) < JUST_HEARD);
            if !path.is_direct() || trial.answers(now) || just_heard {
                trial.again = None;
                trial.failures = 0;
                trial.echoes.stop();
                trial.echoes.prove();
            }
        }
    }

    pub(super) fn drive_handshake(&mut self, now: Moment) {
        let way = self.way_for_handshake(now);
        if self.session.wanted.is_none() && way.is_some() && !self.session.up {
            self.session.wanted = Some(now);
        }
        let Some(path) = way.filter(|_| self.handshake_due(now).is_some_and(|due| due <= now))
        else {
            return;
        };
        self.session.last = Some(now);
        self.session.tries += 1;
        // A new life tries the former path once, though what the peer begins meanwhile begins the count of tries
        // anew: to go there again would take the place of the handshake that is under way, at both ends by turns.
        if !self.session.goes_back {
            self.session.resumes = false;
        }
        if !mutation::is(Mutant::GoesBackAgain) {
            self.session.goes_back = false;
        }
        self.session.direct = path.is_direct();
        self.session.over = Some(path);
        self.push(PathAction::Handshake { path });
    }

    pub(super) fn handshake_due(&self, now: Moment) -> Option<Moment> {
        let way = self.way_for_handshake(now)?;
        let session = &self.session;
        let gap = GAPS.get(session.tries.saturating_sub(1)).copied();
        let gap = Duration::from_secs(gap.unwrap_or(15));
        let gap = if session.resumes && session.tries == 1 {
            RESUME
        } else {
            gap
        };
        let after_last = session.last.map_or(Moment::ZERO, |last| last + gap);
        if !session.up {
            let stagger = if session.lower || session.resumes {
                Duration::ZERO
            } else {
                STAGGER
            };
            let wanted = session.wanted? + stagger;
            // A direct path has appeared since the last try over a relay.
            let sooner = way.is_direct() && !session.direct;
            let after_last = match session.last.filter(|_| sooner) {
                Some(last) => after_last.min(last + SHORTEST),
                None => after_last,
            };
            return Some(after_last.max(wanted));
        }
        if let Some(doubted) = session.doubted {
            return Some(after_last.max(doubted + DOUBT));
        }
        if self.active.is_some() {
            return session.overdue().map(|overdue| after_last.max(overdue));
        }
        // Something answers, yet no echo returns: the peer may have lost the session.
        let struggles = self.trials.values().any(|trial| trial.echoes.struggles());
        struggles.then(|| {
            after_last.max(
                session
                    .last
                    .map_or(Moment::ZERO, |last| last + Duration::from_secs(5)),
            )
        })
    }

    /// The best path that a handshake may get through: one that answers, else a relay. In a new life it
    /// is first tried where the former one ended.
    fn way_for_handshake(&self, now: Moment) -> Option<PathId> {
        let resuming = self.session.is_resuming();
        self.trials
            .iter()
            .filter(|(path, trial)| {
                let former = resuming && self.last_good.contains(path);
                !path.is_direct() || trial.answers(now) || former
            })
            .min_by_key(|(path, trial)| (!trial.echoes.is_proven(), self.tier(path), trial.rtt))
            .map(|(path, _)| *path)
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::id::{NodeId, PlanetId};
    use podmesh_proto::time::UnixSeconds;

    use super::*;
    use crate::path_id::SocketId;
    use crate::paths::Evidence;

    const ENDPOINT: &str = "192.0.2.7:7077";

    fn at(millis: u64) -> Now {
        Now {
            moment: Moment::from_start(Duration::from_secs(1_000) + Duration::from_millis(millis)),
            unix: UnixSeconds(1_800_000_000),
            nanos: 0,
        }
    }

    /// A node in a new life, which knows by which way it reached its peer, and what it has asked for.
    fn resumed() -> (Paths, PathId) {
        let path = PathId::Direct {
            socket: SocketId::MAIN,
            endpoint: ENDPOINT.parse().expect("an endpoint"),
        };
        let mut paths = Paths::new(NodeId([1; 32]), NodeId([2; 32]), 7, at(0));
        paths.set_cached(
            &[(SocketId::MAIN, ENDPOINT.parse().expect("an endpoint"))],
            at(0),
        );
        assert!(asked(&mut paths).contains(&PathAction::Handshake { path }));
        (paths, path)
    }

    fn asked(paths: &mut Paths) -> Vec<PathAction> {
        std::iter::from_fn(|| paths.poll_action()).collect()
    }

    fn is_taken(paths: &mut Paths) -> bool {
        let selects =
            |action: &PathAction| matches!(action, PathAction::Select { path: Some(_), .. });
        asked(paths).iter().any(selects)
    }

    /// Both ends are in a new life, and the path of the former one is dead: each hears the other's handshake before
    /// the answer to its own.
    #[test]
    fn the_former_path_is_tried_once_whatever_the_peer_begins() {
        for every in [50, 100, 300, 1_100] {
            former_path_is_tried_once(every);
        }
    }

    /// The peer begins a handshake every so many milliseconds.
    fn former_path_is_tried_once(every: u64) {
        let (mut paths, former) = resumed();
        let planet = PlanetId([3; 32]);
        paths.set_relays(&[planet], at(0));
        let over = |paths: &mut Paths| {
            asked(paths).into_iter().find_map(|action| match action {
                PathAction::Handshake { path } => Some(path),
                _ => None,
            })
        };
        let mut relayed = false;
        for millis in (50..20_000).step_by(50) {
            if millis % every == 0 {
                paths.handle_session(false, at(millis));
            }
            paths.handle_timeout(at(millis));
            let way = over(&mut paths);
            assert_ne!(way, Some(former), "after {millis} ms, one each {every}");
            relayed |= way == Some(PathId::Relay { planet });
        }
        assert!(relayed, "one each {every} ms");
    }

    #[test]
    fn an_answer_to_the_first_handshake_of_a_new_life_is_enough() {
        let (mut paths, path) = resumed();
        paths.handle_heard(path, at(40));
        paths.handle_answered(at(40));
        paths.handle_session(true, at(40));
        assert!(is_taken(&mut paths));
    }

    /// Both begin at once, and the way out is cut: it is the peer's own handshake that came.
    #[test]
    fn a_handshake_of_the_peers_is_no_answer_to_the_first_of_a_new_life() {
        let (mut paths, path) = resumed();
        paths.handle_heard(path, at(40));
        paths.handle_session(true, at(40));
        assert!(!is_taken(&mut paths));
    }

    #[test]
    fn the_answer_to_a_handshake_speaks_for_its_place_unless_it_comes_late() {
        for (millis, evidence) in [(40, Evidence::Answers), (6_000, Evidence::Heard)] {
            let (mut paths, path) = resumed();
            paths.handle_heard(path, at(millis));
            paths.handle_reached((path, at(0).moment), at(millis));
            assert_eq!(paths.evidence(&path, at(millis).moment), evidence);
        }
    }

    /// When each of the two ends asks for a new session, if the peer begins one, which it gets an answer for or
    /// not, or doesn't.
    fn renews(lower: bool, renewed: Option<u64>, arrives: bool) -> Option<u64> {
        let (me, peer) = if lower { (1, 2) } else { (2, 1) };
        let mut paths = Paths::new(NodeId([me; 32]), NodeId([peer; 32]), 7, at(0));
        paths.handle_session(true, at(0));
        let planet = PlanetId([3; 32]);
        let path = PathId::Relay { planet };
        paths.set_relays(&[planet], at(0));
        for millis in (0..180_000).step_by(250) {
            if Some(millis) == renewed {
                paths.handle_session(true, at(millis));
                if arrives {
                    paths.handle_confirmed(path, at(millis + 20));
                }
            }
            paths.handle_timeout(at(millis));
            for action in asked(&mut paths) {
                match action {
                    PathAction::SendEcho { path, id, .. } => {
                        paths.handle_echo_reply(path, id, at(millis));
                    }
                    PathAction::Handshake { .. } => return Some(millis / 1_000),
                    _ => {}
                }
            }
        }
        None
    }

    /// Two handshakes crossed, and each end thinks that it is the other's turn.
    #[test]
    fn a_session_that_nobody_renews_is_renewed_by_one_end_before_it_ends() {
        assert_eq!(renews(true, None, true), Some(135));
        assert_eq!(renews(false, None, true), Some(145));
        assert_eq!(renews(true, Some(120_000), true), None);
        assert_eq!(renews(true, Some(120_000), false), Some(135));
        assert_eq!(renews(false, Some(120_000), false), Some(145));
    }

    /// The way out is cut: what comes in is the peer's own doing, and says nothing of it.
    #[test]
    fn a_session_that_comes_later_takes_no_path_by_itself() {
        let (mut paths, path) = resumed();
        for millis in (100..20_000).step_by(100) {
            paths.handle_timeout(at(millis));
        }
        asked(&mut paths);
        paths.handle_heard(path, at(20_000));
        paths.handle_answered(at(20_000));
        paths.handle_session(true, at(20_000));
        assert!(!is_taken(&mut paths));
    }
}
