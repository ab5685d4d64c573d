//! What nodes send each other and what becomes of it.

use std::net::SocketAddr;
use std::time::Duration;

use podmesh_engine::path_id::{PathId, SocketId};
use podmesh_engine::paths::PathAction;
use podmesh_engine::reach::Reach;

use crate::net::HostId;

use super::{Ask, Fake, Node, PORTS, Wire, Work};

impl Node {
    /// Whether somebody sees this socket at another port of the same address.
    fn is_elsewhere(&self, socket: SocketId, endpoint: SocketAddr) -> bool {
        self.seen.iter().any(|((_, of), seen)| {
            *of == socket && seen.ip() == endpoint.ip() && seen.port() != endpoint.port()
        })
    }
}

impl Fake {
    pub(super) fn transmit(
        &mut self,
        (from, to): (usize, usize),
        path: PathId,
        reach: Option<Reach>,
        wire: Wire,
    ) {
        let host = self.nodes[from].host;
        match path {
            PathId::Direct { socket, endpoint } => {
                let port = PORTS[usize::from(socket.0)];
                if !self.net.send((host, port), endpoint, reach, wire) {
                    let now = self.now();
                    if let Some(peer) = self.nodes[from].peers.get_mut(&to) {
                        peer.paths.handle_unreachable(path, now);
                    }
                }
            }
            PathId::Relay { planet } => {
                let planet = self
                    .planets
                    .iter()
                    .position(|one| one.id == planet)
                    .unwrap();
                let endpoint = self.planet_endpoint(planet);
                let wire = Wire::Relayed {
                    from,
                    to,
                    inner: Box::new(wire),
                };
                self.net.send((host, PORTS[0]), endpoint, None, wire);
            }
        }
    }

    /// Does what a node's paths say, and plans when to wake it.
    pub(super) fn flush(&mut self, index: usize) {
        let now = self.now();
        let others: Vec<usize> = self.nodes[index].peers.keys().copied().collect();
        for other in &others {
            while let Some(action) = self.nodes[index]
                .peers
                .get_mut(other)
                .and_then(|peer| peer.paths.poll_action())
            {
                self.act(index, *other, action);
            }
        }
        let node = &mut self.nodes[index];
        let next = node
            .peers
            .values()
            .filter_map(|peer| peer.paths.poll_timeout(now))
            .min();
        if let Some(next) = next {
            let next = next.max(now.moment + Duration::from_nanos(1));
            if node
                .wake
                .is_none_or(|wake| next < wake || wake <= now.moment)
            {
                node.wake = Some(next);
                self.net.schedule(next, Work::Wake(index));
            }
        }
    }

    pub(super) fn act(&mut self, index: usize, other: usize, action: PathAction) {
        let now = self.now();
        self.trace(index, other, &action);
        let peer_id = self.nodes[other].id;
        let node = &mut self.nodes[index];
        if !action.is_granted(peer_id, &mut node.budget, now.moment) {
            return;
        }
        match action {
            PathAction::SendProbe {
                path, body, reach, ..
            } => {
                assert!(path.is_direct(), "probe over a relay");
                node.probes += 1;
                self.transmit((index, other), path, reach, Wire::Probe(body));
            }
            PathAction::SendEcho {
                path,
                id,
                reply,
                length,
                ..
            } => {
                let Some(session) = node.peers[&other].session else {
                    return;
                };
                let echo = Wire::Echo {
                    session,
                    id,
                    reply,
                    length,
                };
                self.transmit((index, other), path, None, echo);
            }
            PathAction::Answered { path } => {
                if let PathId::Direct { endpoint, .. } = path {
                    node.budget.answered(peer_id, endpoint.ip(), now.moment);
                }
            }
            // All links carry the same here.
            PathAction::SendSizeProbe { .. } => {}
            PathAction::Introduce { attempt } => {
                if let Some(planet) = node.connected.first().copied() {
                    let peer = other;
                    self.ask(planet, index, Ask::Introduce { peer, attempt });
                }
            }
            PathAction::Handshake { path } => {
                let session = self.net.random.next();
                node.peers.get_mut(&other).unwrap().offered = Some((session, path));
                self.transmit((index, other), path, None, Wire::Initiation(session));
            }
            PathAction::Select { path, reason } => {
                let peer = node.peers.get_mut(&other).unwrap();
                if let Some(path) = path {
                    assert!(peer.proven.contains(&path), "{path} chosen without an echo");
                }
                peer.switches.push((now.moment, path, reason));
            }
            PathAction::Observed { socket, endpoint } => self.observed(index, socket, endpoint),
        }
    }

    fn trace(&self, index: usize, other: usize, action: &PathAction) {
        if self.verbose {
            let millis = self.now().moment.since_start().as_millis();
            println!("{millis:>9} {index}->{other} {action:?}");
        }
    }

    /// A peer sees a socket of this node there.
    fn observed(&mut self, index: usize, socket: SocketId, endpoint: SocketAddr) {
        let node = &mut self.nodes[index];
        if node.is_elsewhere(socket, endpoint) && !node.symmetric {
            node.symmetric = true;
            self.publish(index);
        }
    }

    fn planet_at(&self, endpoint: SocketAddr) -> usize {
        let has = |planet: &super::Planet| {
            let host = &self.net.hosts[planet.host];
            host.addresses.contains(&endpoint.ip())
        };
        self.planets.iter().position(has).unwrap()
    }

    pub(super) fn datagram(&mut self, host: HostId, port: u16, from: SocketAddr, wire: Wire) {
        if let Some(planet) = self.planets.iter().position(|planet| planet.host == host) {
            self.planet_datagram(planet, port, from, wire);
            return;
        }
        let Some(index) = self
            .nodes
            .iter()
            .position(|node| node.host == host && node.up)
        else {
            return;
        };
        let Some(socket) = PORTS.iter().position(|one| *one == port) else {
            return;
        };
        let socket = SocketId(socket as u8);
        match wire {
            Wire::Relayed {
                from: sender,
                inner,
                ..
            } => {
                let planet = self.planets[self.planet_at(from)].id;
                let path = PathId::Relay { planet };
                self.receive(index, sender, path, *inner);
            }
            Wire::Observed(endpoint) => {
                let planet = self.planet_at(from);
                let node = &mut self.nodes[index];
                if node.seen.insert((planet, socket), endpoint) != Some(endpoint) {
                    node.symmetric |= node.is_elsewhere(socket, endpoint);
                    self.publish(index);
                }
            }
            other => {
                let path = PathId::Direct {
                    socket,
                    endpoint: from,
                };
                // The fake has no seals: the sender is whoever owns the sending host.
                let Some(sender) = self.sender(from, index) else {
                    return;
                };
                self.receive(index, sender, path, other);
            }
        }
        self.flush(index);
    }

    pub(super) fn sender(&self, from: SocketAddr, index: usize) -> Option<usize> {
        let here = self.net.hosts[self.nodes[index].host].site;
        self.nodes.iter().position(|node| {
            let host = &self.net.hosts[node.host];
            let outside = self.net.sites[host.site]
                .nat
                .as_ref()
                .map(|nat| nat.outside);
            outside == Some(from.ip())
                || (host.addresses.contains(&from.ip()) && (outside.is_none() || host.site == here))
        })
    }

    pub(super) fn receive(&mut self, index: usize, sender: usize, path: PathId, wire: Wire) {
        let now = self.now();
        let Some(peer) = self.nodes[index].peers.get_mut(&sender) else {
            return;
        };
        if let Wire::Echo { session, .. } | Wire::Data { session } = wire
            && let Some((_, way, since)) = peer.unconfirmed.take_if(|(own, ..)| *own == session)
            && way == path
        {
            peer.paths.handle_reached((path, since), now);
            peer.paths.handle_confirmed(path, now);
        }
        let current = |session: u64| peer.session == Some(session) || peer.before == Some(session);
        match wire {
            Wire::Probe(body) => peer.paths.handle_probe(path, &body, now),
            Wire::Initiation(session) => {
                peer.before = peer.session.replace(session);
                peer.paths.handle_heard(path, now);
                self.transmit((index, sender), path, None, Wire::Response(session));
                let peer = self.nodes[index].peers.get_mut(&sender).unwrap();
                peer.unconfirmed = Some((session, path, now.moment));
                peer.paths.handle_session(true, now);
            }
            Wire::Response(session) if peer.offered.is_some_and(|(own, _)| own == session) => {
                // There and back by one path.
                if peer.offered.is_some_and(|(_, over)| over == path) {
                    peer.proven.push(path);
                }
                peer.before = peer.session.replace(session);
                peer.paths.handle_answered(now);
                peer.paths.handle_heard(path, now);
                peer.paths.handle_session(true, now);
            }
            Wire::Echo {
                session,
                id,
                reply,
                length,
            } if current(session) => {
                if reply {
                    peer.proven.push(path);
                    peer.paths.handle_echo_reply(path, id, now);
                } else {
                    peer.paths.handle_echo_request(path, id, length, now);
                }
            }
            Wire::Data { session } if current(session) => {
                *peer.received.entry(path).or_default() += 1;
                peer.delivered += 1;
                peer.last_delivery = Some(now.moment);
            }
            _ => {}
        }
    }
}
