//! The other members: tunnels and probes with each, and what came out of the tunnels.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::{Departure, Member, Membership, NodeCertificate};
use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::key::PublicKey;
use podmesh_proto::network::Network;
use podmesh_proto::probe::{Probe, ProbeBody, ProbeKeys, tag_of};
use podmesh_proto::signed::Signed;

use crate::clock;
use crate::loot::Keys;
use crate::packet;
use crate::random;

/// Bytes. Room for any message of a tunnel.
const ROOM: usize = 70_000;
/// First byte of the payload of a control packet, and the two messages that are answered here.
const CONTROL_VERSION: u8 = 1;
const ECHO_REQUEST: u8 = 0;
const ECHO_REPLY: u8 = 1;

/// Where to send what.
pub(super) type Datagrams = Vec<(SocketAddr, Vec<u8>)>;

/// Everybody.
pub(super) struct Crowd {
    pub(super) me: Member,
    network: Network,
    peers: BTreeMap<NodeId, Peer>,
    pub(super) seen: Vec<Membership>,
    pub(super) departures: Vec<Signed<Departure>>,
    located: BTreeMap<NodeId, Vec<SocketAddr>>,
    incarnation: u64,
}

/// One other member.
pub(super) struct Peer {
    pub(super) name: Name,
    pub(super) overlay6: Ipv6Addr,
    pub(super) wireguard: PublicKey,
    tunnel: Tunn,
    probes: ProbeKeys,
    counter: u64,
    /// Where it was heard last.
    pub(super) at: Option<SocketAddr>,
    pub(super) tally: Tally,
}

/// What came from a peer.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub(super) struct Tally {
    /// Inner packets to addresses of this member.
    pub(super) mine: u64,
    /// Inner packets to addresses of somebody else.
    pub(super) foreign: u64,
    /// The last of those destinations.
    pub(super) last_foreign: Option<IpAddr>,
    /// Answers to probes.
    pub(super) pongs: u64,
    /// Answers to echoes in the tunnel.
    pub(super) echoes: u64,
}

impl Crowd {
    pub(super) fn new(me: Member, network: Network) -> Self {
        Self {
            me,
            network,
            peers: BTreeMap::new(),
            seen: Vec::new(),
            departures: Vec::new(),
            located: BTreeMap::new(),
            incarnation: clock::now().0,
        }
    }

    /// Learns of a member, or of news about it.
    pub(super) fn meet(&mut self, keys: &Keys, membership: &Membership) {
        let Ok(member) = membership.verify(&self.network, clock::now()) else {
            return;
        };
        if !self.seen.contains(membership) {
            self.seen.push(membership.clone());
        }
        let known = self.peers.contains_key(&member.node);
        let certificate = membership.application.certificate.unverified();
        if let (false, true, Ok(certificate)) = (known, member.node != self.me.node, certificate)
            && let Some(peer) = self.greet(keys, &certificate)
        {
            self.peers.insert(member.node, peer);
        }
    }

    /// Learns where a member may be.
    pub(super) fn locate(&mut self, record: &Signed<EndpointRecord>) {
        let Ok(claimed) = record.unverified() else {
            return;
        };
        let identity = claimed.node.into();
        if let Ok(record) = EndpointRecord::verify(record, self.network.id, &identity) {
            let candidates = record.candidates.iter();
            let places = candidates.map(|candidate| candidate.endpoint).collect();
            self.located.insert(record.node, places);
        }
    }

    /// Takes a datagram; gives what it has to be answered with.
    pub(super) fn handle(&mut self, datagram: &[u8], from: SocketAddr) -> Result<Datagrams> {
        match DatagramKind::of(datagram) {
            DatagramKind::Probe => self.probed(datagram, from),
            DatagramKind::WireGuardHandshake | DatagramKind::WireGuardData => {
                Ok(self.tunnelled(datagram, from))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// What tunnels want to send now.
    pub(super) fn tick(&mut self) -> Datagrams {
        let mut room = vec![0; ROOM];
        let mut due = Vec::new();
        for (node, peer) in &mut self.peers {
            let to = peer.at.or_else(|| self.located.get(node)?.first().copied());
            if let (TunnResult::WriteToNetwork(message), Some(to)) =
                (peer.tunnel.update_timers(&mut room), to)
            {
                due.push((to, message.to_vec()));
            }
        }
        due
    }

    /// A handshake to everywhere the peer may be.
    pub(super) fn initiate(&mut self, name: &Name) -> Result<Datagrams> {
        let (node, peer) = self.named(name)?;
        let mut room = vec![0; ROOM];
        let message = match peer.tunnel.format_handshake_initiation(&mut room, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            _ => return Ok(Vec::new()),
        };
        let places = self.located.get(&node).cloned().unwrap_or_default();
        Ok(places.into_iter().map(|to| (to, message.clone())).collect())
    }

    /// An inner packet in the peer's tunnel, to where the peer was heard last.
    pub(super) fn seal(&mut self, name: &Name, packet: &[u8]) -> Result<(SocketAddr, Vec<u8>)> {
        let (_, peer) = self.named(name)?;
        let at = peer.at.context("that peer was never heard")?;
        let mut room = vec![0; ROOM];
        match peer.tunnel.encapsulate(packet, &mut room) {
            TunnResult::WriteToNetwork(message) if message.first() == Some(&4) => {
                Ok((at, message.to_vec()))
            }
            _ => anyhow::bail!("there is no session with {name}"),
        }
    }

    /// A probe for a peer, to where it was heard last.
    pub(super) fn ping(&mut self, name: &Name) -> Result<(SocketAddr, Vec<u8>)> {
        let incarnation = self.incarnation;
        let (_, peer) = self.named(name)?;
        let at = peer.at.context("that peer was never heard")?;
        let transaction = random::number()?;
        let body = ProbeBody::Ping { transaction };
        Ok((at, peer.probe(incarnation, body)?))
    }

    /// The peer of this name.
    pub(super) fn named(&mut self, name: &Name) -> Result<(NodeId, &mut Peer)> {
        let mut peers = self.peers.iter_mut();
        let found = peers.find(|(_, peer)| peer.name == *name);
        let (node, peer) = found.with_context(|| format!("no peer is called {name}"))?;
        Ok((*node, peer))
    }

    /// Everybody's id.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.peers.keys().copied().collect()
    }

    /// All peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    fn greet(&self, keys: &Keys, peer: &NodeCertificate) -> Option<Peer> {
        let index = u32::try_from(self.peers.len()).ok()? + 1;
        let public = x25519::PublicKey::from(peer.wireguard.0);
        Some(Peer {
            name: peer.name.clone(),
            overlay6: self.network.overlay6(&peer.node),
            wireguard: peer.wireguard,
            tunnel: Tunn::new(keys.wireguard.to_dalek(), public, None, None, index, None),
            probes: keys.probes_with(peer, &self.network.id)?,
            counter: 0,
            at: None,
            tally: Tally::default(),
        })
    }

    fn probed(&mut self, datagram: &[u8], from: SocketAddr) -> Result<Datagrams> {
        let incarnation = self.incarnation;
        let tag = tag_of(datagram);
        let mut peers = self.peers.values_mut();
        let Some(peer) = peers.find(|peer| Some(peer.probes.receive_tag()) == tag) else {
            return Ok(Vec::new());
        };
        match peer.probes.open(datagram).map(|probe| probe.body) {
            Ok(ProbeBody::Ping { transaction }) => {
                peer.at = Some(from);
                let pong = ProbeBody::Pong {
                    transaction,
                    observed: from,
                };
                Ok(vec![(from, peer.probe(incarnation, pong)?)])
            }
            Ok(ProbeBody::Pong { .. }) => {
                peer.tally.pongs += 1;
                Ok(Vec::new())
            }
            Err(_) => Ok(Vec::new()),
        }
    }

    fn tunnelled(&mut self, datagram: &[u8], from: SocketAddr) -> Datagrams {
        let own = self.me.prefixes();
        for peer in self.peers.values_mut() {
            if let Some(answers) = peer.open(datagram, from, &own) {
                return answers.into_iter().map(|answer| (from, answer)).collect();
            }
        }
        Vec::new()
    }
}

impl Peer {
    /// Time since the handshake of the present session.
    pub(super) fn session_age(&self) -> Option<Duration> {
        self.tunnel.time_since_last_handshake()
    }

    fn probe(&mut self, incarnation: u64, body: ProbeBody) -> Result<Vec<u8>> {
        self.counter += 1;
        let probe = Probe {
            incarnation,
            counter: self.counter,
            body,
            known: 0,
        };
        Ok(self.probes.seal(&probe, &random::bytes()?))
    }

    /// What a message of this tunnel is answered with; `None` if it belongs to another one.
    fn open(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        own: &[ipnet::IpNet],
    ) -> Option<Vec<Vec<u8>>> {
        let mut room = vec![0; ROOM];
        let mut answers = Vec::new();
        let inner = match self.tunnel.decapsulate(Some(from.ip()), message, &mut room) {
            TunnResult::Err(_) => return None,
            TunnResult::Done => None,
            TunnResult::WriteToNetwork(answer) => {
                answers.push(answer.to_vec());
                None
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Some(packet.to_vec())
            }
        };
        self.at = Some(from);
        if let Some(packet) = inner {
            answers.extend(self.inspect(&packet, own));
        }
        Some(answers)
    }

    fn inspect(&mut self, inner: &[u8], own: &[ipnet::IpNet]) -> Option<Vec<u8>> {
        let (source, destination, protocol) = packet::addresses(inner)?;
        if !own.iter().any(|prefix| prefix.contains(&destination)) {
            self.tally.foreign += 1;
            self.tally.last_foreign = Some(destination);
            return None;
        }
        let (IpAddr::V6(source), IpAddr::V6(destination), packet::CONTROL) =
            (source, destination, protocol)
        else {
            self.tally.mine += 1;
            return None;
        };
        let payload = inner.get(40..)?;
        match payload {
            [CONTROL_VERSION, ECHO_REQUEST, rest @ ..] => {
                let reply = [&[CONTROL_VERSION, ECHO_REPLY], rest].concat();
                let reply = packet::control(destination, source, &reply).ok()?;
                let mut room = vec![0; ROOM];
                match self.tunnel.encapsulate(&reply, &mut room) {
                    TunnResult::WriteToNetwork(message) => Some(message.to_vec()),
                    _ => None,
                }
            }
            [CONTROL_VERSION, ECHO_REPLY, ..] => {
                self.tally.echoes += 1;
                None
            }
            _ => None,
        }
    }
}
