//! What people may ask about the paths.

use std::net::SocketAddr;
use std::time::Duration;

use podmesh_proto::local_api::PeerState;
use podmesh_proto::time::{Moment, Now};

use super::pairing::Remote;
use super::{Paths, Switch, TrialKind};
use crate::path_id::{PathId, SocketId};

/// A peer without a path counts as being looked for this long, then as down.
const LOOKING: Duration = Duration::from_secs(30);

/// A candidate and what became of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrialView {
    /// How it became known.
    pub kind: TrialKind,
    /// The path.
    pub path: PathId,
    /// `waiting`, `probing`, `answers`, `proven`, `active` or `silent`.
    pub state: &'static str,
    /// Smoothed.
    pub rtt: Option<Duration>,
}

impl Paths {
    /// The path that carries data.
    #[must_use]
    pub fn active(&self) -> Option<PathId> {
        self.active
    }

    /// Smoothed round trip time of the path in use.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.trials.get(&self.active?)?.rtt
    }

    /// Bytes of the longest inner packet that the path in use carries; none before that is known.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        self.trials.get(&self.active?)?.mtu.found()
    }

    /// Share of the last echoes over the path in use that got no answer, in percent.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        let loss = self.trials.get(&self.active?)?.echoes.loss()?;
        Some((loss * 10.0).round() / 10.0)
    }

    /// The state in one word; `Quarantined` is not for the paths to say.
    #[must_use]
    pub fn state(&self, now: Now) -> PeerState {
        let since = self.lost_at.unwrap_or(self.started);
        match self.active {
            Some(_) if self.alarm.is_some() => PeerState::Degraded,
            Some(_) => PeerState::Up,
            None if now.moment.since(since) < LOOKING => PeerState::Probing,
            None => PeerState::Down,
        }
    }

    /// The last direct paths that worked, for the next start; newest first.
    #[must_use]
    pub fn last_good(&self) -> Vec<(SocketId, SocketAddr)> {
        self.last_good
            .iter()
            .filter_map(|path| match path {
                PathId::Direct { socket, endpoint } => Some((*socket, *endpoint)),
                PathId::Relay { .. } => None,
            })
            .collect()
    }

    /// The last switches, newest first.
    pub fn history(&self) -> impl Iterator<Item = &Switch> {
        self.history.iter()
    }

    /// Every candidate and what became of it.
    #[must_use]
    pub fn trials(&self, now: Now) -> Vec<TrialView> {
        let view = |(path, trial): (&PathId, &super::trial::Trial)| {
            let state = if self.active == Some(*path) {
                "active"
            } else if trial.echoes.is_proven() {
                "proven"
            } else if !path.is_direct() || trial.pings.under_way() {
                "probing"
            } else if trial.answers(now.moment) {
                "answers"
            } else if trial.sent.is_none() {
                "waiting"
            } else {
                "silent"
            };
            TrialView {
                kind: trial.kind,
                path: *path,
                state,
                rtt: trial.rtt,
            }
        };
        self.trials.iter().map(view).collect()
    }

    /// Why the path in use is not a direct one; none if it is.
    #[must_use]
    pub fn why(&self, now: Now) -> Option<String> {
        if self.is_direct() {
            return None;
        }
        let direct = self.why_not_direct(now.moment);
        if self.active.is_some() {
            return Some(direct);
        }
        let relay = if !self.has_relay() {
            "no planet in common is connected"
        } else if !self.session.is_up() {
            "no handshake was answered over the relay"
        } else {
            "no echo of 1,280 bytes came back over the relay"
        };
        Some(format!("{relay}; {direct}"))
    }

    fn why_not_direct(&self, now: Moment) -> String {
        let Some(remote) = self
            .remote
            .as_ref()
            .filter(|remote| !remote.candidates.is_empty())
        else {
            return "the peer has published no endpoint".to_owned();
        };
        if let Some(sentence) = self.no_common_family(remote) {
            return sentence;
        }
        if self
            .trials
            .iter()
            .any(|(path, trial)| path.is_direct() && trial.answers(now))
        {
            // Whatever proves a path has the size that each path must carry: where it fails for good, that
            // is the thing to look at.
            return "an endpoint of the peer answers; waiting for an echo of 1,280 bytes through the tunnel"
                .to_owned();
        }
        let next = self.next_try(now);
        if self.rounds.failures == 0 {
            return format!("looking for a direct path{next}");
        }
        let tries = match self.rounds.failures {
            1 => "1 try".to_owned(),
            several => format!("{several} tries"),
        };
        match (self.local.symmetric, remote.symmetric) {
            (true, true) => format!(
                "hard NAT on both sides: each gives every destination another port ({tries}){next}"
            ),
            (true, false) => format!(
                "hole punch got no answer: this node's NAT gives every destination another port ({tries}){next}"
            ),
            (false, true) => format!(
                "hole punch got no answer: the peer's NAT gives every destination another port ({tries}){next}"
            ),
            (false, false) if self.local.reflexive.is_empty() => {
                format!("this node doesn't know its endpoint outside yet{next}")
            }
            (false, false) => format!("hole punch got no answer ({tries}){next}"),
        }
    }

    /// That no endpoint of the peer is of a kind of address that this node has, if so.
    fn no_common_family(&self, remote: &Remote) -> Option<String> {
        let seen = self.local.reflexive.iter().map(|(_, seen)| seen.ip());
        let mut own = self.local.hosts.iter().copied().chain(seen);
        let own_v4 = own.next()?.is_ipv4();
        let mut others = remote.candidates.iter().map(|(_, _, at)| at.is_ipv4());
        if own.any(|address| address.is_ipv4() != own_v4) || others.any(|v4| v4 == own_v4) {
            return None;
        }
        let (here, there) = if own_v4 { (4, 6) } else { (6, 4) };
        Some(format!(
            "no address family in common: this node has IPv{here} alone and the peer IPv{there}"
        ))
    }

    fn next_try(&self, now: Moment) -> String {
        if self.rounds.under_way() {
            return ", a try is under way".to_owned();
        }
        let round = self.rounds_due(now);
        let next = round.or_else(|| self.knocks.due());
        next.map_or_else(String::new, |next| {
            let wait = next.since(now).as_millis().div_ceil(1_000);
            format!(", next in {wait} s")
        })
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
    use podmesh_proto::id::{NetworkId, NodeId};
    use podmesh_proto::time::UnixSeconds;

    use super::*;
    use crate::paths::pairing::Local;

    #[test]
    fn a_peer_of_another_address_family_is_named_as_that() {
        let now = Now {
            moment: Moment::from_start(Duration::from_secs(1_000)),
            unix: UnixSeconds(1_800_000_000),
            nanos: 0,
        };
        let (v4, v6) = ("192.0.2.7:7077", "[2001:db8::7]:7077");
        for (own, endpoints, named) in [
            (
                "192.0.2.1",
                vec![v6],
                Some("has IPv4 alone and the peer IPv6"),
            ),
            (
                "2001:db8::1",
                vec![v4],
                Some("has IPv6 alone and the peer IPv4"),
            ),
            ("192.0.2.1", vec![v6, v4], None),
            ("192.0.2.1", vec![v4], None),
        ] {
            let mut paths = Paths::new(NodeId([1; 32]), NodeId([2; 32]), 7, now);
            let local = Local {
                hosts: vec![own.parse().unwrap()],
                ..Local::default()
            };
            paths.set_local(local, now);
            let candidate = |at: &str| Candidate {
                kind: CandidateKind::Host,
                endpoint: at.parse().unwrap(),
            };
            let record = EndpointRecord {
                network: NetworkId([7; 16]),
                node: NodeId([2; 32]),
                incarnation: 1,
                sequence: 1,
                candidates: endpoints.into_iter().map(candidate).collect(),
                planets: Vec::new(),
            };
            paths.set_remote(&record, now);
            let why = paths.why(now).unwrap();
            let says = "no address family in common: this node ";
            match named {
                Some(words) => assert!(why.ends_with(&format!("{says}{words}")), "{why}"),
                None => assert!(!why.contains(says), "{why}"),
            }
        }
    }
}
