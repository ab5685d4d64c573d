//! Whether everything that follows from the membership does follow. Tests and the simulator ask after
//! whatever they did; a state that is entered by one way and left by another shows here.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_proto::id::NodeId;
use podmesh_proto::key::PublicKey;

use crate::engine::Engine;
use crate::engine::syncing::Place;
use crate::membership::Members;
use crate::membership::holdings::MemberId;
use crate::peer::Peer;
use crate::timers::Timer;

impl Engine {
    /// The first thing that isn't as membership and standing say; `None` if all is as it should be.
    /// Holds after every input.
    #[must_use]
    pub fn astray(&self) -> Option<String> {
        self.peers_astray()
            .or_else(|| self.links_astray())
            .or_else(|| self.planets_astray())
            .or_else(|| self.plan_astray())
    }

    /// The number of this node's life. It grows when the node hears of a later one of its own.
    #[must_use]
    pub const fn life(&self) -> u64 {
        self.incarnation
    }

    /// The life of a peer that this node believes; `None` as long as it knows of none.
    #[must_use]
    pub fn life_of(&self, node: &NodeId) -> Option<u64> {
        let (record, _) = self.peers.known(node)?.record.as_ref()?;
        Some(record.incarnation)
    }

    /// The number of this node's life and of its last word in it where it can be reached.
    #[must_use]
    pub const fn edition(&self) -> (u64, u64) {
        (self.incarnation, self.sequence)
    }

    /// The same of the word of a peer's that this node believes; `None` as long as it knows of none.
    #[must_use]
    pub fn edition_of(&self, node: &NodeId) -> Option<(u64, u64)> {
        let (record, _) = self.peers.known(node)?.record.as_ref()?;
        Some((record.incarnation, record.sequence))
    }

    /// The peers are those of a node that has always had this membership and this standing.
    fn peers_astray(&self) -> Option<String> {
        let (mut served, mut resting) = (BTreeSet::new(), BTreeSet::new());
        let members = self.members.iter();
        let known = members.clone().flat_map(Members::all);
        let apart = members.clone().flat_map(Members::quarantined);
        let nodes = known.map(|known| known.member.node);
        for node in nodes.chain(apart.map(|(member, _)| member.node)) {
            match self.place_of(&node) {
                Place::Served(_) => served.insert(node),
                Place::Resting(_) => resting.insert(node),
                Place::Nowhere => continue,
            };
        }
        let ids = |peers: &mut dyn Iterator<Item = &Peer>| -> BTreeSet<NodeId> {
            peers.map(|peer| peer.member.node).collect()
        };
        let of = |set: &BTreeSet<NodeId>| set.iter().map(|node| node.short()).collect::<Vec<_>>();
        let (is, rests) = (ids(&mut self.peers.nodes()), ids(&mut self.peers.resting()));
        if is != served {
            return Some(format!("peers are {:?}, not {:?}", of(&is), of(&served)));
        }
        if rests != resting {
            return Some(format!("{:?} rest, not {:?}", of(&rests), of(&resting)));
        }
        let active = self.is_active();
        let wanted = members.flat_map(Members::externals);
        let wanted = wanted.filter(|_| active).map(|peer| peer.wireguard);
        let wanted: BTreeSet<PublicKey> = wanted.collect();
        let is: BTreeSet<PublicKey> = self.peers.externals().map(|peer| peer.wireguard).collect();
        (is != wanted).then(|| format!("{} externals, not {}", is.len(), wanted.len()))
    }

    /// Everybody is found by number and tag, is looked after, and nobody else is.
    fn links_astray(&self) -> Option<String> {
        let few = self.peers.len() <= self.config.thresholds.eager_peers;
        let mut waiting = 0;
        for peer in self.peers.nodes() {
            let (node, name) = (peer.member.node, &peer.member.name);
            waiting += peer.waiting_bytes();
            let found = self.peers.with_index(peer.link.index) == Some(MemberId::Node(node))
                && self.peers.with_tag(&peer.probes.receive_tag()) == Some(node);
            if !found || peer.link.lock().closed {
                return Some(format!("{name} is a peer that can't be found"));
            }
            if few && peer.paths.is_none() {
                return Some(format!("nobody looks after the paths of {name}"));
            }
        }
        for peer in self.peers.resting() {
            let name = &peer.member.name;
            let state = peer.link.lock();
            let busy = state.tunnel.is_some() || state.path.is_some() || peer.paths.is_some();
            if busy || peer.deadline.is_some() || !peer.waiting.is_empty() {
                return Some(format!("{name} rests, and something is done for it"));
            }
        }
        if waiting != self.waiting_bytes {
            return Some(format!("{waiting} bytes wait, not {}", self.waiting_bytes));
        }
        let looked_after = self.timers.is_set(Timer::Tunnels) && self.timers.is_set(Timer::Traffic);
        (self.peers.has_tunnels() && !looked_after).then(|| "tunnels without a timer".to_owned())
    }

    fn planets_astray(&self) -> Option<String> {
        if !self.timers.is_set(Timer::Second) {
            return Some("nobody looks each second".to_owned());
        }
        let connected: BTreeMap<_, _> = self
            .planets
            .all()
            .filter_map(|planet| Some((planet.entry.id, planet.connection.as_ref()?)))
            .collect();
        for (planet, connection) in &connected {
            let observes = self.timers.is_set(Timer::Observe(*planet));
            if !self.timers.is_set(Timer::Heartbeat(*planet))
                || (connection.leg.is_some() && !observes)
            {
                return Some("a planet is connected and has no timers".to_owned());
            }
        }
        let mut legs = self.planets.legs();
        let asked = legs.all(|leg| self.timers.is_set(Timer::Renew(leg.planet)));
        let asks = self.renewing.request.is_some() && self.renewing.held_for.is_none();
        if asks && !asked {
            return Some("a renewal waits for nothing".to_owned());
        }
        let strange = |(node, planet): &&(NodeId, _)| {
            self.peers.known(node).is_none() || !connected.contains_key(planet)
        };
        let (node, _) = self.presence.keys().find(strange)?;
        Some(format!("the presence of {} is kept", node.short()))
    }

    fn plan_astray(&self) -> Option<String> {
        if self.dirty {
            return None;
        }
        if self.table.len() != self.peers.len() {
            let (table, peers) = (self.table.len(), self.peers.len());
            return Some(format!("the table has {table} peers of {peers}"));
        }
        (self.plan != self.wanted_plan()).then(|| "the host plan is an old one".to_owned())
    }
}
