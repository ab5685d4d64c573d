//! What pods send, and what a node says that they sent.

use std::time::Duration;

use podmesh_proto::time::Moment;

use super::{Work, World};

impl World {
    pub fn talk(&mut self, from: usize, to: usize, every: Duration, until: Moment) {
        let at = self.net.now + every;
        self.net.schedule(
            at,
            Work::Talk {
                from,
                to,
                every,
                until,
            },
        );
    }

    /// A node sends a packet that says it is from a pod of another.
    pub fn pretend(&mut self, node: usize, victim: usize, target: usize) {
        let (Some(source), Some(destination)) = (self.nodes[victim].pods, self.nodes[target].pods)
        else {
            return;
        };
        if victim == node || target == node {
            return;
        }
        let now = self.now_of(node);
        let packet = self.watch.forged((node, source), (target, destination));
        if let Some(engine) = &mut self.nodes[node].engine {
            engine.handle_pod_packet(&packet, now);
            self.drain(node);
        }
    }

    /// One packet from a pod of one node to a pod of another.
    pub(super) fn say(&mut self, from: usize, to: usize) {
        let (Some(source), Some(destination)) = (self.nodes[from].pods, self.nodes[to].pods) else {
            return;
        };
        let now = self.now_of(from);
        let packet = self
            .watch
            .packet((from, source), (to, destination), now.moment);
        if let Some(engine) = &mut self.nodes[from].engine {
            engine.handle_pod_packet(&packet, now);
            self.drain(from);
        }
    }
}
