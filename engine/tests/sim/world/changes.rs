//! What an operator or a machine does to a node: other keys, another clock, a leave and a join.

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
        }
        self.drain(index);
    }

    /// A node leaves; it comes back when it is asked to.
    pub fn leave(&mut self, index: usize) {
        let now = self.now_of(index);
        if let Some(engine) = &mut self.nodes[index].engine
            && engine.handle_leave(now).is_ok()
        {
            self.nodes[index].next = None;
            self.drain(index);
        }
    }

    /// A node that is in no network joins.
    pub fn join(&mut self, index: usize) {
        if self.state(index) != Some(NodeState::NotJoined) {
            return;
        }
        let (token, now) = (self.authority.token(), self.now_of(index));
        let label = name(&format!("n{index}"));
        if let Some(engine) = &mut self.nodes[index].engine {
            engine.handle_join(&token, label, now).unwrap();
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
}
