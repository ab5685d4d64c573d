//! What an operator or a machine does to a node: other keys, another clock, a leave and a join.

use std::net::IpAddr;

use podmesh_engine::engine::Engine;
use podmesh_proto::local_api::NodeState;
use podmesh_proto::time::{Now, UnixSeconds};

use super::World;
use crate::authority::name;

impl World {
    /// Both clocks of a node.
    pub fn now_of(&self, index: usize) -> Now {
        let now = self.now();
        let unix = now.unix.0.saturating_add_signed(self.nodes[index].clock);
        Now {
            unix: UnixSeconds(unix),
            ..now
        }
    }

    /// Both clocks of a planet.
    pub(super) fn now_of_planet(&self, index: usize) -> Now {
        let now = self.now();
        let unix = now.unix.0.saturating_add_signed(self.planets[index].clock);
        Now {
            unix: UnixSeconds(unix),
            ..now
        }
    }

    pub fn state(&self, index: usize) -> Option<NodeState> {
        let engine = self.nodes[index].engine.as_ref()?;
        Some(engine.status(self.now_of(index)).state)
    }

    /// Begins to change a node's keys, if that is possible.
    pub fn rotate(&mut self, index: usize, identity: bool) {
        let keys = self.nodes[index]
            .keys
            .renewed(&mut self.net.random, identity);
        let now = self.now_of(index);
        let node = &mut self.nodes[index];
        let refused = node.disk.refuses || node.next.is_some();
        let Some(engine) = node.engine.as_mut().filter(|_| !refused) else {
            return;
        };
        if engine.handle_rotation(keys.secrets(), now).is_ok() {
            node.next = Some(keys);
            node.rotated |= identity;
            // Put back to it, the machine would have keys that are out of force.
            node.image = None;
        }
        self.drain(index);
    }

    /// A node leaves; it comes back when it is asked to.
    pub fn leave(&mut self, index: usize) {
        let now = self.now_of(index);
        if let Some(engine) = &mut self.nodes[index].engine
            && engine.handle_leave(now).is_ok()
        {
            let node = &mut self.nodes[index];
            (node.next, node.image, node.forgot) = (None, None, false);
            let id = node.engine.as_ref().map_or(node.id, Engine::node_id);
            let former = std::mem::replace(&mut node.id, id);
            if former != id {
                node.rotated = false;
                self.watch.former.insert(former);
                self.watch.host(self.nodes[index].host, id);
            }
            self.drain(index);
        }
    }

    /// A node that is in no network joins.
    pub fn join(&mut self, index: usize) {
        if self.state(index) != Some(NodeState::NotJoined) {
            return;
        }
        if self.nodes[index].clock != 0 {
            // A certificate of another time admits nobody; the operator sees to the clock first.
            return self.join_later(index);
        }
        let (token, now) = (self.authority.token(), self.now_of(index));
        let label = name(&format!("n{index}"));
        self.nodes[index].applied = self.net.now;
        if let Some(engine) = &mut self.nodes[index].engine {
            engine.handle_join(&token, label, now).unwrap();
            self.drain(index);
        }
    }

    pub fn set_address(&mut self, index: usize, address: IpAddr) {
        let host = self.nodes[index].host;
        let addresses = &mut self.net.hosts[host].addresses;
        addresses.retain(|other| other.is_ipv4() != address.is_ipv4());
        addresses.insert(0, address);
        let site = self.net.hosts[host].site;
        if let Some(nat) = &mut self.net.sites[site].nat {
            nat.inner = Some(address);
        }
        self.tell_underlay(index);
    }

    /// A node hears of the addresses of its machine.
    fn tell_underlay(&mut self, index: usize) {
        let addresses = self.net.hosts[self.nodes[index].host].addresses.clone();
        let now = self.now_of(index);
        if let Some(engine) = &mut self.nodes[index].engine {
            engine.handle_underlay(addresses, now);
            self.note_candidates_of(index);
            self.drain(index);
        }
    }

    /// Gives the host of a node an IPv6 address beside the other.
    pub fn add_v6(&mut self, index: usize) {
        let host = self.nodes[index].host;
        let site = self.net.hosts[host].site as u16;
        let address = [0x2001, 0xdb8, site, 0, 0, 0, 0, 2 + index as u16];
        self.net.hosts[host].addresses.push(address.into());
    }

    /// Takes the IPv6 address of a host away, or gives it one.
    pub fn flip_v6(&mut self, index: usize) {
        if self.has_v6(index) {
            let addresses = &mut self.net.hosts[self.nodes[index].host].addresses;
            addresses.retain(IpAddr::is_ipv4);
        } else {
            self.add_v6(index);
        }
        self.tell_underlay(index);
    }

    pub fn has_v6(&self, index: usize) -> bool {
        let addresses = &self.net.hosts[self.nodes[index].host].addresses;
        addresses.iter().any(IpAddr::is_ipv6)
    }
}
