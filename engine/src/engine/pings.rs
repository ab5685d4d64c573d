//! In-tunnel echoes that a person asked for.

use podmesh_proto::id::NodeId;
use podmesh_proto::local_api::PingView;
use podmesh_proto::time::{Moment, Now};

use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::error::PingError;
use crate::limits;
use crate::membership::holdings::MemberId;
use crate::output::Output;
use crate::path_id::PathId;

/// A ping under way, by the id of its echo.
#[derive(Debug)]
pub(super) struct Ping {
    id: u64,
    node: NodeId,
    target: String,
    begun: Moment,
    sent: Option<Moment>,
}

impl Engine {
    pub(super) fn begin_ping(&mut self, target: &str, id: u64, now: Now) {
        if self.members.is_none() {
            self.ping_done(id, Err(PingError::NotJoined));
            return;
        }
        let node = match self.find(target) {
            Some(MemberId::Node(node)) if node == self.node => {
                let target = super::joining::printable(target);
                self.ping_done(id, Err(PingError::Own { target }));
                return;
            }
            Some(MemberId::Node(node)) if self.peers.get(&node).is_some() => node,
            Some(MemberId::External(key)) => {
                let name = self.peers.external(&key).map(|peer| peer.name.clone());
                let error =
                    name.map_or_else(|| not_found(target), |peer| PingError::External { peer });
                self.ping_done(id, Err(error));
                return;
            }
            _ => {
                self.ping_done(id, Err(not_found(target)));
                return;
            }
        };
        if self.pings.len() >= limits::MAX_PINGS {
            self.ping_done(id, Err(PingError::TooMany));
            return;
        }
        let echo = self.random.number();
        let target = target.to_owned();
        self.pings.insert(
            echo,
            Ping {
                id,
                node,
                target,
                begun: now.moment,
                sent: None,
            },
        );
        self.wake(&node, now);
        self.ping_waiting(&node, now);
    }

    /// Sends the echoes that wait for a path to this peer.
    pub(super) fn ping_waiting(&mut self, node: &NodeId, now: Now) {
        if self.pings.is_empty()
            || self
                .peers
                .get(node)
                .is_none_or(|peer| peer.link.lock().path.is_none())
        {
            return;
        }
        let mut echoes = Vec::new();
        for (echo, ping) in &mut self.pings {
            if ping.node == *node && ping.sent.is_none() {
                ping.sent = Some(now.moment);
                echoes.push(*echo);
            }
        }
        for id in echoes {
            self.send_control(node, &ControlMessage::EchoRequest { id }, now);
        }
    }

    /// The answer to an echo, if a ping waits for it.
    pub(super) fn end_ping(&mut self, echo: u64, path: PathId, now: Now) -> bool {
        let Some(ping) = self.pings.remove(&echo) else {
            return false;
        };
        let name = self
            .peers
            .get(&ping.node)
            .map(|peer| peer.member.name.clone());
        let result = match (name, ping.sent) {
            (Some(name), Some(sent)) => Ok(PingView {
                name,
                address: ping.target.parse().ok(),
                path: self.path_view(path),
                rtt_ms: crate::views::millis(now.moment.since(sent)),
            }),
            _ => Err(not_found(&ping.target)),
        };
        self.ping_done(ping.id, result);
        true
    }

    /// Gives up pings that have waited long enough.
    pub(super) fn end_pings(&mut self, now: Now) {
        let late: Vec<u64> = self
            .pings
            .iter()
            .filter(|(_, ping)| now.moment.since(ping.begun) >= limits::PING_TIMEOUT)
            .map(|(echo, _)| *echo)
            .collect();
        for echo in late {
            let Some(ping) = self.pings.remove(&echo) else {
                continue;
            };
            let error = self.peers.get(&ping.node).map_or_else(
                || not_found(&ping.target),
                |peer| {
                    let name = peer.member.name.clone();
                    if ping.sent.is_some() {
                        return PingError::Timeout { peer: name };
                    }
                    let paths = peer.paths.as_deref();
                    let reason = paths.and_then(|paths| paths.why(now));
                    PingError::NoPath {
                        peer: name,
                        reason: reason.unwrap_or_else(|| "not looked for".to_owned()),
                    }
                },
            );
            self.ping_done(ping.id, Err(error));
        }
    }

    fn ping_done(&mut self, id: u64, result: Result<PingView, PingError>) {
        self.outputs.push_back(Output::PingDone { id, result });
    }
}

fn not_found(target: &str) -> PingError {
    PingError::NotFound {
        target: super::joining::printable(target),
    }
}
