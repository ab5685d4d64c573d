//! What must hold after every step, whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use podmesh_planet::rules::Event;
use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::NodeId;
use podmesh_proto::local_api::PeerState;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::time::{Moment, UnixSeconds};

use crate::net::HostId;
use crate::nonces::Nonces;

/// Wake-ups of one node within one second that are more than work.
const MAX_WAKES: u32 = 1_000;

/// What a node may send to one address on behalf of one member, while nothing comes back.
const PROBES: usize = 17;
const WINDOW: Duration = Duration::from_secs(30);
const HEARD: Duration = Duration::from_secs(60);

/// Everything that was seen so far, and the rules that it is held against.
#[derive(Default)]
pub struct Watch {
    next_packet: u64,
    /// Packets under way: to which node, and when they were sent.
    sent: BTreeMap<u64, (usize, Moment)>,
    got: BTreeSet<u64>,
    pub packets: u64,
    pub arrived_packets: u64,
    /// When the last pod packet came from each node at each node.
    pub last_packet: BTreeMap<(usize, usize), Moment>,
    /// Pod packets that came from each node to each node.
    pub counts: BTreeMap<(usize, usize), u64>,
    senders: BTreeMap<u64, usize>,
    /// Endpoints that some node has published.
    published: BTreeSet<SocketAddr>,
    /// Endpoints from which a node has received.
    heard: BTreeSet<(usize, SocketAddr)>,
    /// When the last datagram of a host came to a node from an endpoint.
    pub arrivals: BTreeMap<(usize, SocketAddr), (Moment, HostId)>,
    /// When the last direct datagram of a host came to a node.
    pub between: BTreeMap<(HostId, usize), Moment>,
    hosts: BTreeMap<HostId, NodeId>,
    impostors: BTreeMap<NodeId, usize>,
    pub revoked: BTreeSet<usize>,
    /// Who nodes were before they left and came back with another identity.
    pub former: BTreeSet<NodeId>,
    /// Probes of each node to each address within the window, while nothing came from there.
    spent: BTreeMap<(usize, IpAddr), Vec<Moment>>,
    knocks: BTreeMap<(usize, IpAddr), Vec<Moment>>,
    last_from: BTreeMap<(usize, IpAddr), Moment>,
    publishers: BTreeMap<IpAddr, BTreeSet<NodeId>>,
    wakes: BTreeMap<usize, (Moment, u32)>,
    pub probes: u64,
    /// When a planet told somebody something for the last time, but that it is still there.
    pub told: Option<Moment>,
    pub handshakes: u64,
    nonces: Nonces,
    /// When planets have admitted each node, by the receipts that they told.
    admitted: BTreeMap<NodeId, BTreeSet<UnixSeconds>>,
    /// Who has left and doesn't know it, and since when it is connected to a planet that does.
    pub unaware: BTreeMap<usize, Moment>,
    /// Pairs that are watched for how long one hears nothing of the other.
    pub gaps: BTreeMap<(usize, usize), Gap>,
    /// Packets that came to a copy of the machine that they were for.
    pub strayed: u64,
    /// Who was copied at any time.
    pub copied: BTreeSet<NodeId>,
}

/// How long nothing came.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub since: Moment,
    pub longest: Duration,
}

impl Watch {
    pub fn host(&mut self, host: HostId, node: NodeId) {
        self.hosts.insert(host, node);
    }

    pub fn restarted(&mut self, node: usize) {
        self.wakes.remove(&node);
        self.spent.retain(|(of, _), _| *of != node);
    }

    /// A node said something to a planet.
    pub fn said(&mut self, message: &NodeMessage) {
        if let NodeMessage::Publish(record) = message
            && let Ok(record) = record.unverified()
        {
            let endpoints = record.candidates.iter().map(|candidate| candidate.endpoint);
            self.offers(record.node, &endpoints.collect::<Vec<_>>());
        }
        if let NodeMessage::Leave(departure) = message {
            let said = departure.unverified().unwrap();
            let admitted = self.admitted.get(&said.node);
            assert!(
                admitted.is_some_and(|admitted| admitted.contains(&said.time)),
                "{} leaves what no planet has admitted, of {}; admitted {admitted:?}",
                said.node.short(),
                said.time
            );
        }
    }

    /// A planet notes something for people.
    pub fn noted(&self, event: &Event) {
        if let Event::Twins(node, sentence) = event {
            assert!(
                self.copied.contains(node),
                "nobody was copied, but a planet says: {sentence}"
            );
        }
    }

    /// A planet answers a node.
    pub fn answered(&mut self, message: &PlanetMessage) {
        if let PlanetMessage::Admitted(receipt) = message {
            let receipt = receipt.unverified().unwrap();
            let admitted = self.admitted.entry(receipt.node).or_default();
            assert!(
                admitted.last().is_none_or(|last| *last <= receipt.time),
                "{} is admitted before it was admitted last",
                receipt.node.short()
            );
            admitted.insert(receipt.time);
        }
    }

    /// A node's own view of its candidates: peers may have them by way of a tunnel.
    pub fn offers(&mut self, node: NodeId, endpoints: &[SocketAddr]) {
        for one in endpoints {
            self.publishers.entry(one.ip()).or_default().insert(node);
            // An outside address with an inside port is a fair guess.
            let guesses = endpoints
                .iter()
                .map(|other| SocketAddr::new(one.ip(), other.port()));
            self.published.extend(guesses);
        }
    }

    /// Somebody claims what `victim` holds.
    pub fn impostor(&mut self, id: NodeId, victim: usize) {
        self.impostors.insert(id, victim);
    }

    /// Whether somebody claims what a node holds, and gets it if the node leaves.
    pub fn is_victim(&self, node: usize) -> bool {
        self.impostors.values().any(|victim| *victim == node)
    }

    /// Whether a node may know somebody who isn't one of the nodes, in this state: kept apart, as long
    /// as the victim is a member.
    pub fn may_know(&self, id: &NodeId, state: PeerState) -> bool {
        self.impostors
            .get(id)
            .is_some_and(|victim| state == PeerState::Quarantined || self.revoked.contains(victim))
    }

    /// Something that a node can't tell from a peer's own came from an address: it may answer.
    pub fn knocked(&mut self, node: usize, ip: IpAddr, now: Moment) {
        self.knocks.entry((node, ip)).or_default().push(now);
    }

    /// A node probes an address from which nothing has come lately: not without end.
    fn spend(&mut self, node: usize, ip: IpAddr, now: Moment) {
        let last = self.last_from.get(&(node, ip));
        if last.is_some_and(|last| now.since(*last) < HEARD) {
            return;
        }
        let spent = self.spent.entry((node, ip)).or_default();
        spent.retain(|at| now.since(*at) < WINDOW);
        spent.push(now);
        let knocks = self.knocks.get(&(node, ip)).map_or(0, |knocks| {
            knocks.iter().filter(|at| now.since(**at) < WINDOW).count()
        });
        let members = self.publishers.get(&ip).map_or(1, BTreeSet::len);
        assert!(
            spent.len() <= PROBES * members + knocks,
            "node {node} sent {} probes to {ip}, where nothing answers",
            spent.len()
        );
    }

    /// Whether somebody has published this endpoint, or the node has received from it.
    pub fn is_candidate(&self, node: usize, endpoint: SocketAddr) -> bool {
        self.published.contains(&endpoint) || self.heard.contains(&(node, endpoint))
    }

    pub fn transmitted(&mut self, node: usize, to: SocketAddr, bytes: &[u8], now: Moment) {
        self.nonces.sent(node, bytes);
        match DatagramKind::of(bytes) {
            DatagramKind::Probe => {
                self.probes += 1;
                self.spend(node, to.ip(), now);
            }
            DatagramKind::WireGuardHandshake => self.handshakes += 1,
            DatagramKind::WireGuardData | DatagramKind::Relay => {}
            kind => panic!("node {node} sends {kind:?} to {to}"),
        }
    }

    /// A machine is about to handle a datagram.
    pub fn comes(&mut self, machine: usize, bytes: &[u8]) {
        self.nonces.came(machine, bytes);
    }

    pub fn handshakes_answered(&self, machine: usize) -> u64 {
        self.nonces.responses.get(&machine).copied().unwrap_or(0)
    }

    pub fn arrived(&mut self, node: usize, from: SocketAddr, sender: HostId, now: Moment) {
        self.heard.insert((node, from));
        self.last_from.insert((node, from.ip()), now);
        self.arrivals.insert((node, from), (now, sender));
        if self.hosts.contains_key(&sender) {
            self.between.insert((sender, node), now);
        }
    }

    pub fn woken(&mut self, node: usize, now: Moment) {
        let (since, count) = self.wakes.entry(node).or_insert((now, 0));
        if now.since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        assert!(*count <= MAX_WAKES, "node {node} is woken without end");
    }

    /// A new pod packet.
    pub fn packet(
        &mut self,
        (from, source): (usize, Ipv4Addr),
        (to, destination): (usize, Ipv4Addr),
        now: Moment,
    ) -> Vec<u8> {
        self.next_packet += 1;
        self.packets += 1;
        self.sent.insert(self.next_packet, (to, now));
        self.senders.insert(self.next_packet, from);
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(self.next_packet.to_be_bytes());
        packet
    }

    /// A packet whose source is not the sender's; nobody may get it.
    pub fn forged(
        &mut self,
        (_, source): (usize, Ipv4Addr),
        (_, destination): (usize, Ipv4Addr),
    ) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(u64::MAX.to_be_bytes());
        packet
    }

    /// A pod packet came out of the tunnel of a node, on the machine that is known as this one.
    pub fn delivered(&mut self, (node, machine): (usize, usize), packet: &[u8], now: Moment) {
        let id = u64::from_be_bytes(packet[20..28].try_into().unwrap());
        let (to, _) = *self.sent.get(&id).expect("a packet that nobody sent");
        assert_eq!(node, to, "packet {id} came to the wrong node");
        assert!(self.got.insert(id), "packet {id} came twice");
        if machine != node {
            self.strayed += 1;
            return;
        }
        self.arrived_packets += 1;
        let pair = (self.senders[&id], node);
        self.last_packet.insert(pair, now);
        *self.counts.entry(pair).or_default() += 1;
        if let Some(gap) = self.gaps.get_mut(&pair) {
            gap.longest = gap.longest.max(now.since(gap.since));
            gap.since = now;
        }
    }
}
