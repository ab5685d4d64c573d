//! Which of this node's sockets talks to which of the peer's endpoints, and when.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podmesh_proto::candidate::{CandidateKind, EndpointRecord, may_be_probed};
use podmesh_proto::time::Moment;

use super::trial::{Gate, TrialKind};
use crate::mutation::{self, Mutant};
use crate::path_id::{PathId, SocketId};
use crate::reach::Reach;

/// What opens this node's own router and nothing more, wherever the peer's is.
const NEXT_DOOR: Opener = Opener {
    reach: Reach {
        routers: 1,
        strict: true,
    },
    head_start: Duration::from_millis(10),
    instead_of: 0,
};
/// The same for a router that drops strict openers. The two ends may misjudge the instant by the
/// head start, because a planet knows round trips and not how they are split.
const OWN_ROUTER: Opener = Opener {
    reach: Reach {
        routers: 1,
        strict: false,
    },
    head_start: Duration::from_millis(300),
    instead_of: 1,
};
/// What passes a provider's NAT behind this node's own router, too.
const PROVIDER: Opener = Opener {
    reach: Reach {
        routers: 3,
        strict: false,
    },
    head_start: Duration::from_millis(300),
    instead_of: 1,
};

/// What leaves as soon as a round is known. It opens this node's NAT and dies on the way, so the
/// peer's can't be spoilt by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opener {
    pub(super) reach: Reach,
    /// From the opener to the instant of the round.
    pub(super) head_start: Duration,
    /// So many of the burst's first gaps are left out.
    pub(super) instead_of: usize,
}

/// How this node can be reached, as far as the paths need to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// The node's own addresses.
    pub hosts: Vec<IpAddr>,
    /// Where planets see its sockets.
    pub reflexive: Vec<(SocketId, SocketAddr)>,
    /// Whether the node's NAT is known to give every destination a port of its own.
    pub symmetric: bool,
    /// Since when the planets have been told all of this.
    pub since: Option<Moment>,
}

impl Local {
    pub(super) fn reflexive_v4(&self, socket: SocketId) -> Option<SocketAddr> {
        self.reflexive
            .iter()
            .find(|(of, endpoint)| *of == socket && endpoint.is_ipv4())
            .map(|(_, endpoint)| *endpoint)
    }

    /// Whether the node's IPv4 endpoint is seen at an address that is not its own.
    pub(super) fn behind_nat(&self) -> bool {
        self.reflexive_v4(SocketId::MAIN)
            .is_some_and(|seen| !self.hosts.contains(&seen.ip()))
    }
}

/// The peer's record, sorted by what to do with it.
#[derive(Debug, Clone, Default)]
pub(super) struct Remote {
    pub(super) candidates: Vec<(TrialKind, Gate, SocketAddr)>,
    /// The peer's own addresses.
    hosts: Vec<IpAddr>,
    /// Whether the record shows two ports of one socket at one address.
    pub(super) symmetric: bool,
}

impl Remote {
    pub(super) fn new(record: &EndpointRecord, local: &Local) -> Self {
        let hosts: Vec<IpAddr> = record
            .candidates
            .iter()
            .filter(|candidate| candidate.kind == CandidateKind::Host)
            .map(|candidate| candidate.endpoint.ip())
            .collect();
        let mut candidates = Vec::new();
        for candidate in &record.candidates {
            let endpoint = candidate.endpoint;
            let own = local.hosts.contains(&endpoint.ip())
                || local.reflexive.iter().any(|(_, seen)| *seen == endpoint);
            let known = candidates.iter().any(|(_, _, other)| *other == endpoint);
            let unfit = mutation::is(Mutant::NoV6) && endpoint.is_ipv6();
            if own || known || unfit || !may_be_probed(&endpoint) {
                continue;
            }
            let kind = match candidate.kind {
                CandidateKind::Host => TrialKind::Host,
                CandidateKind::Reflexive => TrialKind::Reflexive,
                CandidateKind::Configured => TrialKind::Configured,
                CandidateKind::Spare => TrialKind::Spare,
            };
            let seen = matches!(kind, TrialKind::Reflexive | TrialKind::Spare);
            let outside = seen && endpoint.is_ipv4() && !hosts.contains(&endpoint.ip());
            let held = !mutation::is(Mutant::NoHold);
            let gate = if held && (outside || kind == TrialKind::Spare) {
                Gate::Timed
            } else {
                Gate::Open
            };
            candidates.push((kind, gate, endpoint));
        }
        candidates.extend(kept_ports(record, &candidates));
        Self {
            symmetric: is_symmetric(record),
            candidates,
            hosts,
        }
    }

    /// Whether this is one of the endpoints.
    pub(super) fn names(&self, endpoint: &SocketAddr) -> bool {
        self.candidates.iter().any(|(_, _, one)| one == endpoint)
    }

    /// Whether the peer has an address no more that it had `before`.
    pub(super) fn has_moved(&self, before: &Self) -> bool {
        before.hosts.iter().any(|host| !self.hosts.contains(host))
    }

    /// The endpoints that are pinged from the main socket without further ado.
    pub(super) fn open(&self) -> impl Iterator<Item = (TrialKind, SocketAddr)> + '_ {
        self.candidates
            .iter()
            .filter(|(_, gate, _)| *gate == Gate::Open)
            .map(|(kind, _, endpoint)| (*kind, *endpoint))
    }

    /// The outsides of one of the peer's ports; of its main port, if the spare one has none.
    fn outsides(&self, socket: SocketId) -> Vec<(TrialKind, SocketAddr)> {
        let of = |wanted: TrialKind| -> Vec<(TrialKind, SocketAddr)> {
            self.candidates
                .iter()
                .filter(|(kind, gate, _)| *kind == wanted && *gate == Gate::Timed)
                .map(|(kind, _, endpoint)| (*kind, *endpoint))
                .collect()
        };
        let spare = of(TrialKind::Spare);
        if socket == SocketId::SPARE && !spare.is_empty() {
            spare
        } else {
            of(TrialKind::Reflexive)
        }
    }

    /// Whether a NAT stands before the peer.
    pub(super) fn behind_nat(&self) -> bool {
        !self.outsides(SocketId::MAIN).is_empty()
    }

    /// Whether some of the peer's outsides have the address of this node's own.
    pub(super) fn shares_nat(&self, local: &Local) -> bool {
        local.reflexive_v4(SocketId::MAIN).is_some_and(|own| {
            self.candidates
                .iter()
                .any(|(_, _, other)| other.ip() == own.ip())
        })
    }
}

/// Where the peer's main port would be outside, if its NAT kept it. After the peer has moved inside
/// its network, the flow to the planet may have another port only because the one from before is
/// still remembered, while flows to others have the port that was kept.
fn kept_ports(
    record: &EndpointRecord,
    known: &[(TrialKind, Gate, SocketAddr)],
) -> Vec<(TrialKind, Gate, SocketAddr)> {
    let port = record
        .candidates
        .iter()
        .find(|candidate| candidate.kind == CandidateKind::Host)
        .map(|candidate| candidate.endpoint.port());
    let outside = |(kind, gate, endpoint): &(TrialKind, Gate, SocketAddr)| {
        let seen = *kind == TrialKind::Reflexive && *gate == Gate::Timed;
        let kept = SocketAddr::new(endpoint.ip(), port.filter(|_| seen)?);
        (!known.iter().any(|(_, _, other)| *other == kept)).then_some((*kind, *gate, kept))
    };
    let mut kept: Vec<_> = known.iter().filter_map(outside).collect();
    kept.dedup();
    kept
}

fn is_symmetric(record: &EndpointRecord) -> bool {
    let seen = |candidate: &&podmesh_proto::candidate::Candidate| {
        candidate.kind == CandidateKind::Reflexive && candidate.endpoint.is_ipv4()
    };
    record.candidates.iter().filter(seen).any(|one| {
        record.candidates.iter().filter(seen).any(|other| {
            one.endpoint.ip() == other.endpoint.ip() && one.endpoint.port() != other.endpoint.port()
        })
    })
}

/// The four kinds of rounds, in the order in which they are tried. Both ends derive the kind from
/// the number of the try. Two ports on each side make four pairs of mappings, so that what an
/// unlucky round has spoilt is not in the way of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    kind: u32,
}

impl Round {
    pub(super) const KINDS: u32 = 4;

    /// The round of a try; tries count from one.
    pub(super) const fn of(attempt: u32) -> Self {
        Self {
            kind: attempt.wrapping_sub(1) % Self::KINDS,
        }
    }

    pub(super) const fn is_first_kind(self) -> bool {
        self.kind == 0
    }

    /// The opener of this kind of round. The second kind has none: a NAT that is a program, as
    /// machines in machines have, sends openers on as if they had just begun their way.
    pub(super) const fn opener(self) -> Option<Opener> {
        match self.kind {
            0 => Some(NEXT_DOOR),
            2 => Some(OWN_ROUTER),
            3 => Some(PROVIDER),
            _ => None,
        }
    }

    /// This node's socket and the peer's.
    const fn sockets(self, lower: bool) -> (SocketId, SocketId) {
        match (self.kind, lower) {
            (0, _) => (SocketId::MAIN, SocketId::MAIN),
            (1, _) => (SocketId::SPARE, SocketId::SPARE),
            (2, true) | (3, false) => (SocketId::MAIN, SocketId::SPARE),
            _ => (SocketId::SPARE, SocketId::MAIN),
        }
    }

    /// The pairs that are fired at; `lower` says whether this node's id is the lower one.
    pub(super) fn pairs(
        self,
        lower: bool,
        local: &Local,
        remote: &Remote,
    ) -> Vec<(TrialKind, PathId)> {
        let (mine, theirs) = self.sockets(lower);
        let socket = match local.reflexive_v4(mine) {
            None => SocketId::MAIN,
            Some(_) => mine,
        };
        remote
            .outsides(theirs)
            .into_iter()
            .map(|(kind, endpoint)| (kind, PathId::Direct { socket, endpoint }))
            .collect()
    }
}
