//! This node's own endpoint record: made, published, and told to its paths.

use ipnet::IpNet;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::engine::Engine;

impl Engine {
    /// Ranges in which no endpoint of anybody lies: a tunnel must not run inside itself.
    pub(super) fn excluded(&self) -> Vec<IpNet> {
        self.members.as_ref().map_or_else(Vec::new, |members| {
            let network = members.network();
            let services = network.ranges.services.iter().copied();
            network.protected().into_iter().chain(services).collect()
        })
    }

    /// Publishes the record if it has changed, or (`again`) because somebody may not have it. The
    /// planets get it before the paths act on it.
    pub(super) fn publish(&mut self, again: bool, now: Now) {
        let Some(network) = self.members.as_ref().map(|members| members.network().id) else {
            return;
        };
        let candidates = self.endpoints.candidates(&self.excluded());
        let planets: Vec<PlanetId> = self.planets.legs().map(|leg| leg.planet).collect();
        let same = self.record.as_ref().is_some_and(|(record, _)| {
            record.candidates == candidates && record.planets == planets
        });
        if !same {
            self.sequence = self.sequence.saturating_add(1);
            let record = EndpointRecord {
                network,
                node: self.node_id(),
                incarnation: self.incarnation,
                sequence: self.sequence,
                candidates,
                planets,
            };
            match Signed::seal(&record, &self.config.keys.identity) {
                Ok(signed) => self.record = Some((record, signed)),
                Err(error) => {
                    tracing::debug!(%error, "endpoint record not made");
                    return;
                }
            }
        }
        if !same || again {
            self.send_record();
            if !same {
                self.endpoints.published(now.moment);
                self.gossip_own_record(now);
            }
        }
        self.spread_local(now);
    }

    fn send_record(&mut self) {
        let Some((_, signed)) = self.record.clone() else {
            return;
        };
        let connected: Vec<PlanetId> = self.planets.legs().map(|leg| leg.planet).collect();
        for planet in connected {
            self.say(planet, NodeMessage::Publish(signed.clone()));
        }
    }

    pub(super) fn underlay_changed(&mut self, now: Now) {
        self.publish(false, now);
        let planets: Vec<PlanetId> = self.planets.legs().map(|leg| leg.planet).collect();
        for planet in planets {
            self.observe(planet, now);
        }
    }

    /// Tells the paths of all peers what this node knows of itself.
    fn spread_local(&mut self, now: Now) {
        let local = self.endpoints.local();
        for node in self.awake() {
            self.with_paths(&node, now, |paths| paths.set_local(local.clone(), now));
        }
    }

    /// Tells the paths of all peers which relays there are.
    pub(super) fn spread_relays(&mut self, now: Now) {
        for node in self.awake() {
            self.spread_relays_to(&node, now);
        }
    }

    pub(super) fn spread_relays_to(&mut self, node: &NodeId, now: Now) {
        let relays = self.relays_to(node);
        self.with_paths(node, now, |paths| paths.set_relays(&relays, now));
    }

    /// The planets that can relay to a node: those that this node has a session with, and that the
    /// peer is connected to, by the planet's word or else by the peer's own record.
    pub(super) fn relays_to(&self, node: &NodeId) -> Vec<PlanetId> {
        let record = self.peers.get(node).and_then(|peer| peer.record.as_ref());
        let recorded =
            |planet: &PlanetId| record.is_some_and(|(record, _)| record.planets.contains(planet));
        self.planets
            .legs()
            .map(|leg| leg.planet)
            .filter(|planet| {
                self.presence
                    .get(&(*node, *planet))
                    .copied()
                    .unwrap_or_else(|| recorded(planet))
            })
            .collect()
    }

    /// Peers whose paths are looked after.
    pub(super) fn awake(&self) -> Vec<NodeId> {
        self.peers
            .nodes()
            .filter(|peer| peer.paths.is_some())
            .map(|peer| peer.member.node)
            .collect()
    }
}
