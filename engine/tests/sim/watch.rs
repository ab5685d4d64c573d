//! What must hold after every step, whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::NodeId;
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::time::Moment;

use crate::net::HostId;

/// Wake-ups of one node within one second that are more than work.
const MAX_WAKES: u32 = 1_000;

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
    wakes: BTreeMap<usize, (Moment, u32)>,
    pub probes: u64,
    pub handshakes: u64,
}

impl Watch {
    pub fn host(&mut self, host: HostId, node: NodeId) {
        self.hosts.insert(host, node);
    }

    pub fn restarted(&mut self, node: usize) {
        self.wakes.remove(&node);
    }

    /// A node said something to a planet.
    pub fn said(&mut self, message: &NodeMessage) {
        if let NodeMessage::Publish(record) = message
            && let Ok(record) = record.unverified()
        {
            let endpoints = record.candidates.iter().map(|candidate| candidate.endpoint);
            self.offers(&endpoints.collect::<Vec<_>>());
        }
    }

    /// A node's own view of its candidates: peers may have them by way of a tunnel.
    pub fn offers(&mut self, endpoints: &[SocketAddr]) {
        for one in endpoints {
            // An outside address with an inside port is a fair guess.
            let guesses = endpoints
                .iter()
                .map(|other| SocketAddr::new(one.ip(), other.port()));
            self.published.extend(guesses);
        }
    }

    /// Whether somebody has published this endpoint, or the node has received from it.
    pub fn is_candidate(&self, node: usize, endpoint: SocketAddr) -> bool {
        self.published.contains(&endpoint) || self.heard.contains(&(node, endpoint))
    }

    pub fn transmitted(&mut self, node: usize, to: SocketAddr, bytes: &[u8]) {
        match DatagramKind::of(bytes) {
            DatagramKind::Probe => self.probes += 1,
            DatagramKind::WireGuardHandshake => self.handshakes += 1,
            DatagramKind::WireGuardData | DatagramKind::Relay => {}
            kind => panic!("node {node} sends {kind:?} to {to}"),
        }
    }

    pub fn arrived(&mut self, node: usize, from: SocketAddr, sender: HostId, now: Moment) {
        self.heard.insert((node, from));
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

    /// A pod packet came out of a node's tunnel.
    pub fn delivered(&mut self, node: usize, packet: &[u8], now: Moment) {
        let id = u64::from_be_bytes(packet[20..28].try_into().unwrap());
        let (to, _) = *self.sent.get(&id).expect("a packet that nobody sent");
        assert_eq!(node, to, "packet {id} came to the wrong node");
        assert!(self.got.insert(id), "packet {id} came twice");
        self.arrived_packets += 1;
        self.last_packet.insert((self.senders[&id], node), now);
    }
}
