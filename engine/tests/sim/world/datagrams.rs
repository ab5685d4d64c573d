//! Datagrams between the nodes' engines and the simulated internet.

use std::net::SocketAddr;

use podmesh_engine::output::{Received, Transmit};
use podmesh_engine::path_id::SocketId;
use podmesh_proto::datagram::DatagramKind;

use super::World;
use crate::authority::PLANET_PORT;
use crate::net::HostId;

impl World {
    pub(super) fn transmit(&mut self, index: usize, transmit: Transmit) {
        let Transmit {
            socket,
            to,
            passage,
            bytes,
        } = transmit;
        self.watch.transmitted(index, to, &bytes, self.net.now);
        let to_thief = self.overhear(index, to, &bytes);
        let probe = DatagramKind::of(&bytes) == DatagramKind::Probe;
        assert!(
            !probe || to_thief || self.watch.is_candidate(index, to) || self.is_recorded(index, to),
            "node {index} probes {to}, which is nobody's candidate"
        );
        let node = &self.nodes[index];
        let port = node.keys.ports[usize::from(socket.0)];
        if probe {
            self.keep_probe(index, to, &bytes);
        }
        if self.loses.is_some_and(|loses| loses(index, &bytes)) {
            return;
        }
        let node = &self.nodes[index];
        if !self.net.send((node.host, port), to, passage.reach(), bytes) {
            let now = self.now_of(index);
            if let Some(engine) = &mut self.nodes[index].engine {
                engine.handle_unreachable(socket, to, now);
            }
        }
    }

    /// Whether a node has this endpoint from a record that came through a tunnel and was replaced
    /// before anybody looked.
    fn is_recorded(&self, index: usize, endpoint: SocketAddr) -> bool {
        let now = self.now();
        let Some(engine) = &self.nodes[index].engine else {
            return false;
        };
        engine.peers(now).iter().any(|view| {
            let detail = engine.peer(view.name.as_str(), now);
            detail.is_some_and(|detail| {
                detail
                    .candidates
                    .iter()
                    .any(|trial| trial.endpoint == Some(endpoint) && trial.kind != "peer-reflexive")
            })
        })
    }

    pub(super) fn datagram(
        &mut self,
        (host, port): (HostId, u16),
        (from, sender): (SocketAddr, HostId),
        bytes: Vec<u8>,
    ) {
        if let Some(planet) = self.planets.iter().position(|planet| planet.host == host) {
            if port == PLANET_PORT {
                self.planet_datagram(planet, from, &bytes);
            }
            return;
        }
        let Some(index) = self.nodes.iter().position(|node| node.host == host) else {
            return;
        };
        let Some(socket) = self.nodes[index]
            .keys
            .ports
            .iter()
            .position(|one| *one == port)
        else {
            return;
        };
        let handled = self.begin((index, sender), &bytes);
        if !handled.is_his {
            self.watch.arrived(index, from, sender, self.net.now);
        }
        let now = self.now_of(index);
        if let Some(engine) = &mut self.nodes[index].engine {
            let received = Received {
                socket: SocketId(socket as u8),
                from,
                relay: None,
                bytes,
            };
            engine.handle_datagram(received, now);
            self.drain(index);
        }
        self.end(&handled);
    }
}
