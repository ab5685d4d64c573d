//! When something has to be done without a packet's asking for it (`WireGuard` paper §6).

use std::time::Duration;

use podmesh_proto::time::Moment;

use super::session::Session;

const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const COOKIE_TIME: Duration = Duration::from_secs(120);
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// What was sent and received, as far as it still asks for something.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// Data was received then, and nothing was sent since.
    owes_answer: Option<Moment>,
    /// Data was sent then, and nothing was received since.
    unanswered: Option<Moment>,
    /// The session should be renewed.
    renew: bool,
    /// The first and the last initiation of a handshake that is under way.
    attempt: Option<(Moment, Moment)>,
}

/// What a look at the timers asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Initiation,
    Keepalive,
    /// Nobody answers: what waits is thrown away.
    GiveUp,
}

impl Timers {
    /// A message was sent on `session`.
    pub(super) fn sent(&mut self, session: &Session, is_data: bool, now: Moment) {
        self.owes_answer = None;
        if is_data && self.unanswered.is_none() {
            self.unanswered = Some(now);
        }
        let age = now.since(session.born);
        self.renew |=
            (session.began && age >= REKEY_AFTER_TIME) || session.sent() >= REKEY_AFTER_MESSAGES;
    }

    /// An authentic message was received on `session`.
    pub(super) fn received(&mut self, session: &Session, is_data: bool, now: Moment) {
        self.unanswered = None;
        if is_data && self.owes_answer.is_none() {
            self.owes_answer = Some(now);
        }
        let age = now.since(session.born);
        self.renew |= session.began && age >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
    }

    /// An initiation was sent.
    pub(super) fn initiated(&mut self, now: Moment) {
        let first = self.attempt.map_or(now, |(first, _)| first);
        self.attempt = Some((first, now));
        self.unanswered = None;
        self.renew = false;
    }

    /// A handshake has ended well.
    pub(super) fn established(&mut self) {
        self.attempt = None;
        self.renew = false;
        self.unanswered = None;
    }

    /// Whether an initiation waits for its answer.
    pub(super) fn is_trying(&self) -> bool {
        self.attempt.is_some()
    }

    /// What is due; `scatter` keeps many tunnels from asking at once.
    pub(super) fn look(&mut self, now: Moment, scatter: Duration) -> Due {
        if let Some((first, last)) = self.attempt {
            if now.since(first) >= REKEY_ATTEMPT_TIME {
                self.attempt = None;
                return Due::GiveUp;
            }
            if now.since(last) >= REKEY_TIMEOUT + scatter {
                return Due::Initiation;
            }
        } else {
            let silent = |since: Moment| now.since(since) >= KEEPALIVE_TIMEOUT + REKEY_TIMEOUT;
            if self.renew || self.unanswered.is_some_and(silent) {
                return Due::Initiation;
            }
        }
        if self
            .owes_answer
            .is_some_and(|since| now.since(since) >= KEEPALIVE_TIMEOUT)
        {
            return Due::Keepalive;
        }
        Due::Nothing
    }
}
