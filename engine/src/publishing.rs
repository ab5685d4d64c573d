//! How this node can be reached: what it knows of its own endpoints, and the record that says so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use podmesh_proto::candidate::{Candidate, CandidateKind, canonical, may_be_probed};
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::limits::{MAX_CANDIDATES, MAX_CANDIDATES_PER_ADDRESS};
use podmesh_proto::time::Moment;

use crate::path_id::SocketId;
use crate::paths::Local;

/// Peers whose word about this node's endpoints is remembered.
const MAX_WITNESSES: usize = 64;

/// Who saw an endpoint of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// A planet.
    Planet(PlanetId),
    /// A peer.
    Peer(NodeId),
    /// Some planet, in this node's last life.
    Disk,
}

/// A sign that this node's own kernel gives its datagrams another source port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    /// Who saw it.
    pub witness: Witness,
    /// Where: an address of this machine, with a port that is none of the socket's.
    pub seen: SocketAddr,
    /// The socket's port.
    pub port: u16,
}

/// This node's own endpoints.
#[derive(Debug)]
pub struct OwnEndpoints {
    ports: [u16; 2],
    configured: Vec<SocketAddr>,
    addresses: Vec<IpAddr>,
    seen: BTreeMap<(Witness, SocketId, bool), SocketAddr>,
    published: Option<Moment>,
}

impl OwnEndpoints {
    /// Of a node whose sockets have these ports.
    #[must_use]
    pub fn new(ports: [u16; 2], configured: Vec<SocketAddr>) -> Self {
        Self {
            ports,
            configured,
            addresses: Vec::new(),
            seen: BTreeMap::new(),
            published: None,
        }
    }

    /// The planets are told of the present endpoints.
    pub fn published(&mut self, now: Moment) {
        self.published = Some(now);
    }

    /// The node's underlay addresses are these now; whether that is news. What others saw of the
    /// ones before is forgotten then.
    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>) -> bool {
        let mut addresses: Vec<IpAddr> = addresses
            .iter()
            .map(|address| address.to_canonical())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses == self.addresses {
            return false;
        }
        if !self.addresses.is_empty() {
            self.seen.clear();
        }
        self.addresses = addresses;
        true
    }

    /// Somebody saw a socket of this node there; whether that is news.
    pub fn saw(&mut self, witness: Witness, socket: SocketId, endpoint: SocketAddr) -> bool {
        let endpoint = canonical(endpoint);
        let key = (witness, socket, endpoint.is_ipv4());
        if self.seen.get(&key) == Some(&endpoint) {
            return false;
        }
        if matches!(witness, Witness::Peer(_)) && self.seen.len() >= MAX_WITNESSES {
            return false;
        }
        if matches!(witness, Witness::Planet(_)) {
            self.seen
                .remove(&(Witness::Disk, socket, endpoint.is_ipv4()));
        }
        let before = self.seen.insert(key, endpoint);
        if let Some(before) = before.filter(|before| before.ip() != endpoint.ip()) {
            // The router has another address now; nobody sees this node at the old one any more.
            self.seen.retain(|_, seen| seen.ip() != before.ip());
        }
        true
    }

    /// Somebody's word counts no more.
    pub fn forget(&mut self, witness: Witness) {
        self.seen.retain(|(of, _, _), _| *of != witness);
    }

    /// Where the sockets are outside, by the word of planets (in this life or the last): at each
    /// address the port that peers would see, if that is known.
    #[must_use]
    pub fn reflexive(&self) -> Vec<(SocketId, SocketAddr)> {
        let mut all: Vec<(SocketId, SocketAddr)> = self
            .seen
            .iter()
            .filter(|((witness, _, _), _)| !matches!(witness, Witness::Peer(_)))
            .map(|((_, socket, _), endpoint)| (*socket, self.likeliest(*socket, *endpoint)))
            .filter(|(socket, endpoint)| !self.is_translated(*socket, *endpoint))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a socket was seen at this machine's own address, but at another port than it has: no
    /// router was in between, and nobody listens there.
    fn is_translated(&self, socket: SocketId, seen: SocketAddr) -> bool {
        let port = self.ports.get(usize::from(socket.0)).copied();
        self.addresses.contains(&seen.ip()) && port.is_some_and(|port| port != seen.port())
    }

    /// Whether this node's own kernel translates its datagrams, as far as that is seen from outside;
    /// planets' words come first. Behind a router it isn't: whose doing the port is then, nobody knows.
    #[must_use]
    pub fn translated(&self) -> Option<Translated> {
        let words = self
            .seen
            .iter()
            .filter_map(|((witness, socket, is_ipv4), seen)| {
                let told = match witness {
                    Witness::Planet(_) => true,
                    // Planets are asked again and again, peers are not: their word may be of long ago.
                    Witness::Peer(_) => !self.is_seen_right(*socket, *is_ipv4),
                    Witness::Disk => false,
                };
                (told && self.is_translated(*socket, *seen)).then_some(Translated {
                    witness: *witness,
                    seen: *seen,
                    port: *self.ports.get(usize::from(socket.0))?,
                })
            });
        words.min_by_key(|word| word.witness)
    }

    /// Whether a planet sees a socket at one of this machine's own addresses, and at its port.
    fn is_seen_right(&self, socket: SocketId, is_ipv4: bool) -> bool {
        self.seen.iter().any(|((witness, of, family), seen)| {
            matches!(witness, Witness::Planet(_))
                && (*of, *family) == (socket, is_ipv4)
                && self.addresses.contains(&seen.ip())
                && !self.is_translated(socket, *seen)
        })
    }

    /// This peer is no peer any more, and its word counts no more.
    pub fn forget_peer(&mut self, node: &NodeId) {
        self.seen
            .retain(|(witness, _, _), _| *witness != Witness::Peer(*node));
    }

    /// A NAT that keeps ports may have given the flow to a planet another one, because it still
    /// remembered an older flow, or because the planet spoke first. If anybody sees the kept port,
    /// that is the one that a new peer will see.
    fn likeliest(&self, socket: SocketId, endpoint: SocketAddr) -> SocketAddr {
        let own = self.ports.get(usize::from(socket.0)).copied();
        let kept = SocketAddr::new(endpoint.ip(), own.unwrap_or(endpoint.port()));
        let known = |((_, of, _), seen): (&(Witness, SocketId, bool), &SocketAddr)| {
            *of == socket && *seen == kept
        };
        if self.seen.iter().any(known) {
            kept
        } else {
            endpoint
        }
    }

    /// Where the spare socket is likely to be for everybody but the planet that sees it elsewhere:
    /// the NAT has kept the main port, so it keeps this one where it is free.
    fn kept_spare(&self) -> Option<SocketAddr> {
        let [main, spare] = self.ports;
        let seen = self.reflexive();
        let of = |socket: SocketId| {
            seen.iter()
                .filter(move |(of, seen)| *of == socket && seen.is_ipv4())
                .map(|(_, seen)| *seen)
        };
        let outside = of(SocketId::SPARE).next()?;
        let keeps = of(SocketId::MAIN).any(|seen| seen.ip() == outside.ip() && seen.port() == main);
        (keeps && outside.port() != spare).then(|| SocketAddr::new(outside.ip(), spare))
    }

    /// Where one planet sees the main socket.
    #[must_use]
    pub fn seen_by(&self, planet: &PlanetId) -> Option<SocketAddr> {
        [true, false].iter().find_map(|v4| {
            let key = (Witness::Planet(*planet), SocketId::MAIN, *v4);
            self.seen.get(&key).copied()
        })
    }

    /// What the paths need to know.
    #[must_use]
    pub fn local(&self) -> Local {
        Local {
            hosts: self.addresses.clone(),
            reflexive: self.reflexive(),
            symmetric: self.second_mapping().is_some(),
            since: self.published,
        }
    }

    /// The candidates to publish, best first, none in `excluded`.
    #[must_use]
    pub fn candidates(&self, excluded: &[IpNet]) -> Vec<Candidate> {
        let [main, _] = self.ports;
        let hosts = self.addresses.iter().map(|address| Candidate {
            kind: CandidateKind::Host,
            endpoint: SocketAddr::new(*address, main),
        });
        let configured = self.configured.iter().map(|endpoint| Candidate {
            kind: CandidateKind::Configured,
            endpoint: canonical(*endpoint),
        });
        let reflexive = self.reflexive();
        let of = |socket: SocketId, kind: CandidateKind| {
            reflexive
                .iter()
                .filter(move |(of, _)| *of == socket)
                .map(move |(_, endpoint)| Candidate {
                    kind,
                    endpoint: *endpoint,
                })
        };
        let second = self.second_mapping().map(|endpoint| Candidate {
            kind: CandidateKind::Reflexive,
            endpoint,
        });
        let likely = self.kept_spare().map(|endpoint| Candidate {
            kind: CandidateKind::Spare,
            endpoint,
        });
        // The second mapping only shows what kind of NAT this is; it goes before the spare port's,
        // because there may be three candidates per address.
        let all = configured
            .chain(hosts)
            .chain(of(SocketId::MAIN, CandidateKind::Reflexive))
            .chain(second)
            .chain(of(SocketId::SPARE, CandidateKind::Spare))
            .chain(likely);
        let mut kept: Vec<Candidate> = Vec::new();
        for candidate in all {
            let ip = candidate.endpoint.ip();
            let known = kept
                .iter()
                .any(|other| other.endpoint == candidate.endpoint);
            let same = kept
                .iter()
                .filter(|other| other.endpoint.ip() == ip)
                .count();
            if !known
                && same < MAX_CANDIDATES_PER_ADDRESS
                && kept.len() < MAX_CANDIDATES
                && may_be_probed(&candidate.endpoint)
                && !excluded.iter().any(|range| range.contains(&ip))
            {
                kept.push(candidate);
            }
        }
        kept
    }

    /// Another port of the main socket at an address that it is seen at: a NAT that gives every
    /// destination a port of its own. One that keeps the port for anybody does not.
    fn second_mapping(&self) -> Option<SocketAddr> {
        let main: Vec<(&Witness, &SocketAddr)> = self
            .seen
            .iter()
            .filter(|((_, socket, _), _)| *socket == SocketId::MAIN)
            .filter(|((_, socket, _), endpoint)| !self.is_translated(*socket, **endpoint))
            .map(|((witness, _, _), endpoint)| (witness, endpoint))
            .collect();
        main.iter()
            .filter(|(witness, _)| matches!(witness, Witness::Planet(_)))
            .find_map(|(_, first)| {
                main.iter()
                    .filter(|(witness, _)| !matches!(witness, Witness::Disk))
                    .find(|(_, second)| first.ip() == second.ip() && first.port() != second.port())
                    .map(|(_, second)| **second)
                    .filter(|_| self.likeliest(SocketId::MAIN, **first).port() != self.ports[0])
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_bounded_and_never_inside_the_mesh() {
        let mut own = OwnEndpoints::new([7001, 7002], vec!["198.51.100.9:443".parse().unwrap()]);
        own.set_addresses(
            [
                "192.168.1.5",
                "10.77.0.3",
                "127.0.0.1",
                "fe80::1",
                "2001:db8::5",
            ]
            .map(|text| text.parse().unwrap())
            .to_vec(),
        );
        let planet = Witness::Planet(PlanetId([1; 32]));
        own.saw(planet, SocketId::MAIN, "203.0.113.7:4001".parse().unwrap());
        own.saw(planet, SocketId::SPARE, "203.0.113.7:4002".parse().unwrap());
        let excluded = ["10.77.0.0/16".parse().unwrap()];
        let texts: Vec<String> = own
            .candidates(&excluded)
            .iter()
            .map(|candidate| format!("{:?} {}", candidate.kind, candidate.endpoint))
            .collect();
        assert_eq!(
            texts,
            [
                "Host 192.168.1.5:7001",
                "Host [2001:db8::5]:7001",
                "Reflexive 203.0.113.7:4001",
                "Spare 203.0.113.7:4002"
            ]
        );
        assert!(!own.local().symmetric);
        let peer = Witness::Peer(NodeId([9; 32]));
        own.saw(peer, SocketId::MAIN, "203.0.113.7:4999".parse().unwrap());
        assert!(own.local().symmetric);
    }

    #[test]
    fn a_port_that_the_own_kernel_made_up_is_said_and_not_offered() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let planet = |number| Witness::Planet(PlanetId([number; 32]));
        let peer = Witness::Peer(NodeId([9; 32]));
        let mut own = OwnEndpoints::new([7001, 7002], Vec::new());
        own.set_addresses(vec![
            "203.0.113.7".parse().unwrap(),
            "2001:db8::7".parse().unwrap(),
        ]);
        for (socket, seen) in [
            (SocketId::MAIN, "203.0.113.7:7001"),
            (SocketId::SPARE, "203.0.113.7:7002"),
            (SocketId::MAIN, "[2001:db8::7]:7001"),
        ] {
            own.saw(planet(1), socket, at(seen));
        }
        assert_eq!(own.translated(), None);
        let before = own.candidates(&[]);

        // A peer's word of long ago says less than what a planet sees each time it is asked.
        own.saw(peer, SocketId::MAIN, at("203.0.113.7:52001"));
        assert_eq!(own.translated(), None);
        // Each planet gets another port.
        own.saw(planet(1), SocketId::MAIN, at("203.0.113.7:52002"));
        own.saw(planet(2), SocketId::MAIN, at("[2001:db8::7]:52003"));
        own.saw(planet(2), SocketId::SPARE, at("203.0.113.7:52004"));
        assert_eq!(own.translated().unwrap().witness, planet(1));
        assert_eq!(own.candidates(&[]), before);
        assert!(!own.local().symmetric);

        // Once the rule is gone, nothing is said any more.
        own.saw(planet(1), SocketId::MAIN, at("203.0.113.7:7001"));
        own.saw(planet(2), SocketId::MAIN, at("[2001:db8::7]:7001"));
        own.saw(planet(2), SocketId::SPARE, at("203.0.113.7:7002"));
        assert_eq!(own.translated(), None);
    }

    #[test]
    fn a_neighbour_shows_what_the_own_kernel_does_behind_a_router() {
        let mut own = OwnEndpoints::new([7001, 7002], Vec::new());
        own.set_addresses(vec!["192.168.1.5".parse().unwrap()]);
        let router = "203.0.113.7:61000".parse().unwrap();
        own.saw(Witness::Planet(PlanetId([1; 32])), SocketId::MAIN, router);
        let (node, seen) = (NodeId([9; 32]), "192.168.1.5:52001".parse().unwrap());
        own.saw(Witness::Peer(node), SocketId::MAIN, seen);
        let found = own.translated().unwrap();
        let word = (found.witness, found.seen, found.port);
        assert_eq!(word, (Witness::Peer(node), seen, 7001));
        own.forget_peer(&node);
        assert_eq!(own.translated(), None);
    }

    #[test]
    fn a_routers_ports_are_not_taken_for_the_own_kernels() {
        let mut own = OwnEndpoints::new([7001, 7002], Vec::new());
        own.set_addresses(vec!["192.168.1.5".parse().unwrap()]);
        let seen = "203.0.113.7:52001".parse().unwrap();
        own.saw(Witness::Planet(PlanetId([1; 32])), SocketId::MAIN, seen);
        assert_eq!(own.translated(), None);
        assert_eq!(own.reflexive(), [(SocketId::MAIN, seen)]);
    }

    #[test]
    fn a_spare_port_that_only_the_planet_sees_elsewhere_is_offered_as_it_is() {
        let mut own = OwnEndpoints::new([7001, 7002], Vec::new());
        own.set_addresses(vec!["192.168.1.5".parse().unwrap()]);
        let planet = Witness::Planet(PlanetId([1; 32]));
        let spares = |own: &OwnEndpoints| -> Vec<String> {
            own.candidates(&[])
                .iter()
                .filter(|candidate| candidate.kind == CandidateKind::Spare)
                .map(|candidate| candidate.endpoint.to_string())
                .collect()
        };
        own.saw(planet, SocketId::MAIN, "203.0.113.7:4001".parse().unwrap());
        own.saw(planet, SocketId::SPARE, "203.0.113.7:4002".parse().unwrap());
        assert_eq!(spares(&own), ["203.0.113.7:4002"], "no port is kept");
        own.saw(planet, SocketId::MAIN, "203.0.113.7:7001".parse().unwrap());
        assert_eq!(spares(&own), ["203.0.113.7:4002", "203.0.113.7:7002"]);
        own.saw(planet, SocketId::SPARE, "203.0.113.7:7002".parse().unwrap());
        assert_eq!(spares(&own), ["203.0.113.7:7002"]);
    }
}
