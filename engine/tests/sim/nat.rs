//! A NAT as kernels make them, with the one trait that textbooks leave out: port poisoning.
//!
//! A Linux router whose INPUT chain accepts remembers a stranger's datagram to one of its ports.
//! While it does, no inner flow to that stranger can have that port outside: the flow gets another,
//! which the stranger doesn't expect.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podmesh_proto::time::Moment;

use crate::random::Random;

/// Which flows of one inner socket share a port outside (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// All.
    Independent,
    /// None.
    PerEndpoint,
}

/// Who may answer (RFC 4787 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Anyone.
    Independent,
    /// The endpoints that were sent to.
    PerEndpoint,
}

/// What a router does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatRules {
    pub mapping: Mapping,
    pub filter: Filter,
    /// Whether the inner port is kept where it is free.
    pub keeps_port: bool,
    /// Everything for the outer address goes to the one inner host.
    pub one_to_one: bool,
    /// Whether the router's INPUT chain accepts, so that ports can be poisoned.
    pub accepts_input: bool,
}

/// The kinds of the grid, by the names that the lab gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatKind {
    /// None: a public address.
    N0,
    /// One to one.
    N1,
    /// Full cone.
    N2,
    /// Masquerade, INPUT drops.
    N4,
    /// Masquerade, INPUT accepts: poisonable.
    N5,
    /// Masquerade with random ports: a new one for each destination.
    N8,
}

impl NatKind {
    pub const ALL: [Self; 6] = [Self::N0, Self::N1, Self::N2, Self::N4, Self::N5, Self::N8];

    pub fn rules(self) -> Option<NatRules> {
        let linux = NatRules {
            mapping: Mapping::Independent,
            filter: Filter::PerEndpoint,
            keeps_port: true,
            one_to_one: false,
            accepts_input: false,
        };
        Some(match self {
            Self::N0 => return None,
            Self::N1 => NatRules {
                filter: Filter::Independent,
                one_to_one: true,
                ..linux
            },
            Self::N2 => NatRules {
                filter: Filter::Independent,
                ..linux
            },
            Self::N4 => linux,
            Self::N5 => NatRules {
                accepts_input: true,
                ..linux
            },
            Self::N8 => NatRules {
                mapping: Mapping::PerEndpoint,
                keeps_port: false,
                ..linux
            },
        })
    }
}

const UNREPLIED: Duration = Duration::from_secs(30);
const STREAM: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Flow {
    outside: u16,
    last: Moment,
    replied: bool,
}

impl Flow {
    fn is_live(&self, now: Moment) -> bool {
        now.since(self.last) < if self.replied { STREAM } else { UNREPLIED }
    }
}

/// A router between a private network and the internet.
#[derive(Debug)]
pub struct Nat {
    pub rules: NatRules,
    pub outside: IpAddr,
    /// By inner socket and destination.
    flows: BTreeMap<(SocketAddr, SocketAddr), Flow>,
    /// The same, found by port outside and destination.
    ports: BTreeMap<(u16, SocketAddr), SocketAddr>,
    /// Strangers' datagrams that INPUT accepted: port outside and source.
    pins: BTreeMap<(u16, SocketAddr), Moment>,
    /// The inner host of a one-to-one NAT.
    pub inner: Option<IpAddr>,
    /// Random ports so far.
    drawn: u16,
}

impl Nat {
    pub fn new(rules: NatRules, outside: IpAddr) -> Self {
        Self {
            rules,
            outside,
            flows: BTreeMap::new(),
            ports: BTreeMap::new(),
            pins: BTreeMap::new(),
            inner: None,
            drawn: 0,
        }
    }

    /// Forgets everything, like a reboot.
    pub fn reboot(&mut self) {
        self.flows.clear();
        self.ports.clear();
        self.pins.clear();
    }

    /// The endpoint that a datagram from inside has outside.
    pub fn outbound(
        &mut self,
        inner: SocketAddr,
        to: SocketAddr,
        now: Moment,
        random: &mut Random,
    ) -> SocketAddr {
        self.expire(now);
        if let Some(flow) = self.flows.get_mut(&(inner, to)) {
            flow.last = now;
            return SocketAddr::new(self.outside, flow.outside);
        }
        let mut port = self.wanted_port(inner, random);
        while self.ports.contains_key(&(port, to)) || self.pins.contains_key(&(port, to)) {
            port = self.draw(random);
        }
        self.insert(inner, to, port, now);
        SocketAddr::new(self.outside, port)
    }

    /// The inner socket that a datagram from outside goes to, if any.
    pub fn inbound(&mut self, from: SocketAddr, port: u16, now: Moment) -> Option<SocketAddr> {
        self.expire(now);
        if let Some(inner) = self.ports.get(&(port, from)).copied() {
            let flow = self.flows.get_mut(&(inner, from))?;
            (flow.last, flow.replied) = (now, true);
            return Some(inner);
        }
        if self.rules.one_to_one {
            return Some(SocketAddr::new(self.inner?, port));
        }
        if self.rules.filter == Filter::Independent {
            let inner = self
                .ports
                .range((port, lowest())..)
                .take_while(|((outside, _), _)| *outside == port)
                .map(|(_, inner)| *inner)
                .next()?;
            self.insert(inner, from, port, now);
            return Some(inner);
        }
        if self.rules.accepts_input {
            self.pins.insert((port, from), now);
        }
        None
    }

    /// A random port: none that a node listens on, and seldom one that was drawn before, so that a
    /// life has no luck that the table of pairs doesn't know of.
    fn draw(&mut self, random: &mut Random) -> u16 {
        self.drawn = self.drawn % 9_000 + 1;
        1_024 + self.drawn * 2 + random.range(0, 2) as u16
    }

    fn wanted_port(&mut self, inner: SocketAddr, random: &mut Random) -> u16 {
        if self.rules.keeps_port {
            return inner.port();
        }
        let known = self
            .flows
            .iter()
            .find(|((of, _), _)| *of == inner)
            .filter(|_| self.rules.mapping == Mapping::Independent);
        match known.map(|(_, flow)| flow.outside) {
            Some(outside) => outside,
            None => self.draw(random),
        }
    }

    fn insert(&mut self, inner: SocketAddr, to: SocketAddr, outside: u16, now: Moment) {
        let flow = Flow {
            outside,
            last: now,
            replied: false,
        };
        self.flows.insert((inner, to), flow);
        self.ports.insert((outside, to), inner);
    }

    fn expire(&mut self, now: Moment) {
        let ports = &mut self.ports;
        self.flows.retain(|(_, to), flow| {
            let live = flow.is_live(now);
            if !live {
                ports.remove(&(flow.outside, *to));
            }
            live
        });
        self.pins.retain(|_, last| now.since(*last) < UNREPLIED);
    }
}

fn lowest() -> SocketAddr {
    SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    fn nat(kind: NatKind) -> Nat {
        Nat::new(kind.rules().unwrap(), "198.51.100.1".parse().unwrap())
    }

    #[test]
    fn a_strangers_datagram_poisons_the_port_until_both_are_silent() {
        let (inner, peer) = (
            "10.0.0.2:5000".parse().unwrap(),
            "203.0.113.9:6000".parse().unwrap(),
        );
        let mut random = Random(1);
        for (kind, spoilt) in [(NatKind::N4, false), (NatKind::N5, true)] {
            let mut nat = nat(kind);
            assert_eq!(nat.inbound(peer, 5000, at(0)), None);
            let outside = nat.outbound(inner, peer, at(1), &mut random);
            assert_eq!(outside.port() != 5000, spoilt, "{kind:?}");
            // Knocking on keeps it spoilt, silence heals it.
            for second in (10..=50).step_by(10) {
                nat.inbound(peer, 5000, at(second));
                let same = nat.outbound(inner, peer, at(second), &mut random);
                assert_eq!(same, outside);
            }
            let healed = nat.outbound(inner, peer, at(200), &mut random);
            assert_eq!(healed.port(), 5000, "{kind:?}");
        }
    }

    #[test]
    fn the_inside_first_keeps_the_port_for_every_destination() {
        let mut random = Random(1);
        let inner = "10.0.0.2:5000".parse().unwrap();
        for (kind, kept) in [(NatKind::N2, 40), (NatKind::N5, 40), (NatKind::N8, 0)] {
            let mut nat = nat(kind);
            let same = (0..40)
                .filter(|n| {
                    let to = SocketAddr::new("203.0.113.9".parse().unwrap(), 7000 + n);
                    nat.outbound(inner, to, at(0), &mut random).port() == 5000
                })
                .count();
            assert_eq!(same, kept, "{kind:?}");
        }
    }

    #[test]
    fn filters_let_in_whom_they_should() {
        let mut random = Random(1);
        let inner = "10.0.0.2:5000".parse().unwrap();
        let (known, stranger) = (
            "203.0.113.9:6000".parse().unwrap(),
            "203.0.113.9:6001".parse().unwrap(),
        );
        for (kind, open) in [
            (NatKind::N2, true),
            (NatKind::N4, false),
            (NatKind::N5, false),
        ] {
            let mut nat = nat(kind);
            let port = nat.outbound(inner, known, at(0), &mut random).port();
            assert_eq!(nat.inbound(known, port, at(1)), Some(inner));
            assert_eq!(
                nat.inbound(stranger, port, at(1)).is_some(),
                open,
                "{kind:?}"
            );
            assert_eq!(
                nat.inbound(known, port, at(100)),
                Some(inner),
                "a stream lives 120 s"
            );
            assert_eq!(nat.inbound(known, port, at(250)), None);
        }
    }
}
