//! Answers to local requests.

use std::time::Duration;

use podmesh_engine::engine::Told;
use podmesh_engine::error::{PingError, RequestError};
use podmesh_proto::local_api::{Failure, FailureCode, NodeState, PingView, Request, Response};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Moment, Now};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::Node;
use super::durable::Effect;
use crate::clock;
use crate::local_socket::{Asked, failed};

/// For a planet to answer a join before whoever asked is told that it takes longer.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
/// The longest wait for a ping's answer.
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// Pings that may be under way.
const MAX_PINGS: usize = 64;

/// Those who wait for an answer.
#[derive(Default)]
pub(super) struct Waiting {
    joins: Vec<(Moment, oneshot::Sender<Response>)>,
    pub(super) rotations: Vec<(Moment, oneshot::Sender<Response>)>,
    pings: Vec<Ping>,
    last_ping: u64,
}

struct Ping {
    id: u64,
    target: String,
    deadline: Moment,
    answer: oneshot::Sender<Response>,
}

impl Waiting {
    /// Somebody waits for the end of the join.
    pub(super) fn add_join(&mut self, answer: oneshot::Sender<Response>) {
        self.joins
            .push((clock::now().moment + JOIN_PATIENCE, answer));
    }

    /// The join has ended.
    pub(super) fn finish_joins(&mut self, response: &Response) {
        for (_, answer) in self.joins.drain(..) {
            let _ = answer.send(response.clone());
        }
    }
}

impl Node {
    /// Answers a request, now or later.
    pub(super) fn take_request(&mut self, asked: Asked) {
        let now = clock::now();
        let response = match asked.request {
            Request::Join { token, name } => {
                // The answer goes with it; what is wrong is said there.
                let _ = self.begin_join(&Zeroizing::new(token), name, Some(asked.answer));
                return;
            }
            Request::RotateKeys { identity } => {
                self.begin_rotation(identity, asked.answer);
                return;
            }
            Request::Ping { target, timeout_ms } => {
                self.start_ping(target, timeout_ms, asked.answer);
                return;
            }
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Peers => Response::Peers {
                items: self.engine.peers(now),
            },
            Request::Peer { target } => self.peer(&target, now),
            Request::Routes => Response::Routes {
                items: self.engine.routes(),
            },
            Request::Ready => Response::Ready(self.ready()),
            Request::Leave { forget_keys: true } => {
                self.leave_and_forget_keys(asked.answer);
                return;
            }
            Request::Leave { forget_keys: false } => {
                self.leave(asked.answer, now);
                return;
            }
            Request::Statement { statement } => self.take_statement(&statement),
            Request::Network => self.network(),
            Request::Ledger { trouble } => self.take_ledger_news(trouble),
            Request::Registry => self.registry(),
        };
        let _ = asked.answer.send(response);
    }

    fn peer(&self, target: &str, now: Now) -> Response {
        match self.engine.peer(target, now) {
            Some(peer) => Response::Peer(Box::new(peer)),
            None if self.engine.network_statement().is_none() => not_done(&RequestError::NotJoined),
            None if self.engine.is_own(target) => Response::Failed(Failure {
                code: FailureCode::Usage,
                message: format!("'{target}' is this node itself"),
                next: Some("`meshctl status` shows it".to_owned()),
            }),
            None => unknown_peer(target),
        }
    }

    fn leave(&mut self, answer: oneshot::Sender<Response>, now: Now) {
        let untold = self.untold();
        match self.engine.handle_leave(now) {
            Ok(()) => {
                self.do_outputs();
                self.do_in_order(Effect::Left(answer, untold));
            }
            // Nothing to wait for: a check's exit code would be wrong.
            Err(error) => {
                let _ = answer.send(Response::Failed(Failure {
                    code: FailureCode::Failed,
                    message: error.to_string(),
                    next: Some("nothing to leave; `meshctl join` enters a network".to_owned()),
                }));
            }
        }
    }

    /// That the node has left is on disk, or can't be written there.
    pub(super) fn finish_leave(&mut self, answer: oneshot::Sender<Response>, untold: &str) {
        let response = match self.disk_trouble() {
            None => {
                // Before, a crash would bring back a membership that may name them.
                self.identity.discard_rotation();
                done(&format!(
                    "left the network; the keys stay, coming back needs a valid token{untold}"
                ))
            }
            Some(trouble) => Response::Failed(Failure {
                code: FailureCode::Failed,
                message: format!(
                    "left the network{untold}; but the disk can't be written ({trouble}), and a \
                     restart before it can would forget that"
                ),
                next: Some(format!(
                    "{}; meshd writes it down by itself then",
                    trouble.remedy
                )),
            }),
        };
        let _ = answer.send(response);
    }

    /// What a leave has to add: that no planet hears of it, and that pods stand.
    pub(super) fn untold(&self) -> String {
        let status = self.engine.status(clock::now());
        let Some(node) = status.node else {
            return String::new();
        };
        let mut words = String::new();
        if !status.planets.iter().any(|planet| planet.connected) {
            words += &format!(
                "; no planet could be told, so the name {} stays taken until a peer tells one, or \
                 for good if none was reached: `meshctl node revoke {}` frees it",
                node.name, node.id
            );
        }
        let stand = match self.report.pods {
            0 => return words,
            1 => "a pod stands with an address".to_owned(),
            pods => format!("{pods} pods stand with addresses"),
        };
        words
            + &format!(
                "; {stand} that nobody reaches any more: delete what stands, or join again as {}, which gets its \
                 pod CIDRs back as long as nobody else needs them",
                node.name
            )
    }

    fn take_statement(&mut self, text: &str) -> Response {
        let statement = match Signed::from_base64(text) {
            Ok(statement) => statement,
            Err(error) => return failed(FailureCode::Usage, error.to_string()),
        };
        match self.engine.handle_statement(statement, clock::now()) {
            Ok(told) => {
                let state = self.engine.status(clock::now()).state;
                done(&taken(
                    told,
                    matches!(state, NodeState::Revoked | NodeState::Ended),
                ))
            }
            Err(error) => not_done(&error),
        }
    }

    fn network(&self) -> Response {
        let status = self.engine.status(clock::now());
        let (Some(statement), Some(network)) = (self.engine.network_statement(), status.network)
        else {
            return not_done(&RequestError::NotJoined);
        };
        match statement.to_base64() {
            Ok(statement) => Response::Network {
                statement,
                id: network.id,
                version: network.version,
            },
            Err(error) => failed(FailureCode::Failed, error.to_string()),
        }
    }

    fn registry(&self) -> Response {
        match self.engine.registry() {
            Ok(Some(registry)) => Response::Registry(Box::new(registry)),
            Ok(None) => not_done(&RequestError::NotJoined),
            Err(error) => failed(FailureCode::Failed, error.to_string()),
        }
    }

    fn start_ping(&mut self, target: String, timeout_ms: u64, answer: oneshot::Sender<Response>) {
        if self.waiting.pings.len() >= MAX_PINGS {
            let _ = answer.send(failed(FailureCode::Failed, "too many pings at once"));
            return;
        }
        let now = clock::now();
        self.waiting.last_ping += 1;
        let id = self.waiting.last_ping;
        self.engine.start_ping(&target, id, now);
        self.waiting.pings.push(Ping {
            id,
            target,
            deadline: now.moment + Duration::from_millis(timeout_ms).min(PING_PATIENCE),
            answer,
        });
    }

    /// Answers whoever waits for this ping.
    pub(super) fn finish_ping(&mut self, id: u64, result: Result<PingView, PingError>) {
        let pings = &mut self.waiting.pings;
        let Some(position) = pings.iter().position(|ping| ping.id == id) else {
            return;
        };
        let response = match result {
            Ok(view) => Response::Ping(view),
            Err(PingError::NotFound { target }) => unknown_peer(&target),
            Err(PingError::NotJoined) => not_done(&RequestError::NotJoined),
            Err(error @ PingError::Own { .. }) => Response::Failed(Failure {
                code: FailureCode::Usage,
                message: error.to_string(),
                next: Some("`meshctl peers` lists whom it can ping".to_owned()),
            }),
            Err(error @ PingError::Timeout { .. }) => {
                failed(FailureCode::Timeout, error.to_string())
            }
            Err(error @ PingError::External { .. }) => {
                failed(FailureCode::Usage, error.to_string())
            }
            Err(error) => failed(FailureCode::Failed, error.to_string()),
        };
        let _ = pings.swap_remove(position).answer.send(response);
    }

    /// Answers those whose patience is over.
    pub(super) fn expire_requests(&mut self) {
        let now = clock::now().moment;
        for ping in self
            .waiting
            .pings
            .extract_if(.., |ping| ping.deadline <= now)
        {
            let message = format!("{} did not answer in time", ping.target);
            let _ = ping.answer.send(failed(FailureCode::Timeout, message));
        }
        self.expire_rotations(now);
        if self
            .waiting
            .joins
            .iter()
            .all(|(deadline, _)| *deadline > now)
        {
            return;
        }
        let response = self.still_joining();
        for (_, answer) in self
            .waiting
            .joins
            .extract_if(.., |(deadline, _)| *deadline <= now)
        {
            let _ = answer.send(response.clone());
        }
    }

    /// Why there is no answer to a join yet.
    fn still_joining(&self) -> Response {
        let planets = self.engine.status(clock::now()).planets;
        let next = if planets.iter().any(|planet| planet.connected) {
            "meshd goes on trying; `planet status` on the planet says more, or give up with `meshctl leave`"
        } else {
            "meshd goes on trying; look whether a firewall lets UDP to the planet pass, or give up with `meshctl leave`"
        };
        let reasons: Vec<String> = planets
            .into_iter()
            .map(|planet| match (planet.connected, planet.error) {
                (_, Some(error)) => format!("{}: {error}", planet.name),
                (true, None) => format!("{} is connected and has not answered", planet.name),
                (false, None) => format!("no answer from {} at {}", planet.name, planet.address),
            })
            .collect();
        Response::Failed(Failure {
            code: FailureCode::Timeout,
            message: format!(
                "no planet has admitted this node yet ({})",
                reasons.join("; ")
            ),
            next: Some(next.to_owned()),
        })
    }
}

pub(super) fn done(message: &str) -> Response {
    Response::Done {
        message: message.to_owned(),
    }
}

/// Who hears of a statement, in words.
fn taken(told: Told, is_out: bool) -> String {
    let Told {
        news,
        planets,
        peers,
    } = told;
    let known = if news { "taken" } else { "known already" };
    if is_out {
        return format!(
            "{known}; this node is no member any more, so nobody hears of it from here: hand it to a member or \
             a planet with `meshctl network publish`"
        );
    }
    if planets == 0 && peers == 0 {
        return format!(
            "{known}; no planet is connected and no peer is reachable, so nobody else has been told yet: \
             this node tells them as soon as one is, or hand it to another node with \
             `meshctl network publish`"
        );
    }
    let many = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    format!(
        "{known}, and told to {} and {}",
        many(planets, "planet"),
        many(peers, "peer")
    )
}

pub(super) fn not_done(error: &RequestError) -> Response {
    let (code, next) = match error {
        RequestError::NotJoined => (FailureCode::NotReady, Some("`meshctl join` first")),
        RequestError::NotActive => (FailureCode::NotReady, Some("`meshctl status` says why")),
        RequestError::Renewing => (FailureCode::NotReady, None),
        RequestError::Statement(_) => (FailureCode::Usage, None),
        RequestError::Older { .. } | RequestError::OtherEdition { .. } => (
            FailureCode::Failed,
            Some("`meshctl network pull` where the root key is, then make the change again"),
        ),
        RequestError::Held { .. } => (
            FailureCode::Failed,
            Some(
                "choose a name, key and addresses that nobody has; `meshctl peers --wide` lists them",
            ),
        ),
        _ => (FailureCode::Failed, None),
    };
    Response::Failed(Failure {
        code,
        message: error.to_string(),
        next: next.map(str::to_owned),
    })
}

fn unknown_peer(target: &str) -> Response {
    let target: String = target
        .chars()
        .take(64)
        .flat_map(char::escape_debug)
        .collect();
    Response::Failed(Failure {
        code: FailureCode::NotFound,
        message: format!("no peer has the name, id or address '{target}'"),
        next: Some("`meshctl peers` lists them".to_owned()),
    })
}
