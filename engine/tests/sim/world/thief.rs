//! Somebody on the wire who sends again what he has heard.
//!
//! What a node has had already gets no answer. A datagram that was lost on its way and comes from the
//! thief is news to the node: no cryptography tells it from a peer whose NAT has moved. It is
//! answered, and that proves nothing, as no echo comes back through the tunnel.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::id::NodeId;
use podmesh_proto::time::Moment;

use super::{NodeHost, Work, World};
use crate::net::HostId;

const PORT: u16 = 6_666;
const LISTENS: Duration = Duration::from_secs(10);
/// Probes that he keeps for long.
const KEPT: usize = 24;
/// Percent of what he hears.
const REPLAYED: f64 = 20.0;
/// Milliseconds between hearing and sending; the original has arrived by then, if it ever does.
const AFTER: (u64, u64) = (500, 5_000);

/// A probe.
#[derive(Debug)]
struct Kept {
    /// The machine that sent it, in which life, and who it was then.
    from: usize,
    life: u32,
    id: NodeId,
    to: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Thief {
    host: Option<HostId>,
    /// Until when he listens.
    until: Moment,
    /// What each life of a node has had since he began to listen.
    had: BTreeSet<(usize, u32, u64)>,
    /// Nodes that had something from him first.
    fooled: BTreeSet<usize>,
    /// Probes of all times.
    kept: Vec<Kept>,
    /// What he sends is of former lives, which everybody knows to be over.
    of_former_lives: bool,
    /// What a node is handling comes from him; whether it has had that already.
    pub(super) replaying: Option<bool>,
}

/// A datagram that a node handles.
pub(super) struct Handled {
    pub(super) is_his: bool,
    what: (usize, u32, u64),
    /// How much the node had refused before, if anybody asks.
    refused: Option<u64>,
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl World {
    pub fn add_thief(&mut self) {
        let site = self.net.site(None);
        let address = IpAddr::from([192, 0, 2, 66]);
        self.thief.host = Some(self.net.host(site, vec![address]));
    }

    /// The thief listens for a while.
    pub fn tap(&mut self) {
        self.thief.until = self.net.now + LISTENS;
        self.thief.had.clear();
    }

    /// A node sends something; whether to the thief, which it may only if it had from him what it
    /// could not know.
    pub(super) fn overhear(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) -> bool {
        let Some(host) = self.thief.host else {
            return false;
        };
        let to_thief = to.ip() == self.net.hosts[host].addresses[0];
        if to_thief {
            assert!(
                self.thief.replaying != Some(true) && self.thief.fooled.contains(&from),
                "node {from} answers a replay with {:?}",
                DatagramKind::of(bytes)
            );
        }
        if self.net.now < self.thief.until && self.net.random.chance(REPLAYED) {
            let at = self.net.now + self.net.random.millis(AFTER.0, AFTER.1);
            let bytes = bytes.to_vec();
            self.net.schedule(at, Work::Replay { to, bytes });
        }
        to_thief
    }

    /// The thief keeps a probe for a later life of its sender.
    pub(super) fn keep_probe(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) {
        if self.thief.host.is_some() && self.thief.kept.len() < KEPT && self.net.random.chance(5.0)
        {
            let NodeHost { life, id, .. } = self.nodes[from];
            let bytes = bytes.to_vec();
            self.thief.kept.push(Kept {
                from,
                life,
                id,
                to,
                bytes,
            });
        }
    }

    /// Sends what he kept of former lives, when everybody has heard of the present ones.
    pub fn replay_former_lives(&mut self) {
        let nodes = &self.nodes;
        // What a machine said as a copy of another may be of that one's present life.
        let over = |kept: &mut Kept| {
            let is_anothers = |node: usize| node != kept.from && nodes[node].id == kept.id;
            kept.life < nodes[kept.from].life && !(0..nodes.len()).any(is_anothers)
        };
        let former: Vec<_> = self.thief.kept.extract_if(.., over).collect();
        self.thief.of_former_lives = true;
        let lives = self.latest_lives();
        for kept in former {
            self.replay(kept.to, kept.bytes);
        }
        self.run_for(Duration::from_secs(2));
        self.thief.of_former_lives = false;
        assert_eq!(self.latest_lives(), lives, "a replay raises a node's life");
    }

    fn latest_lives(&self) -> Vec<Option<u64>> {
        let engines = self.nodes.iter().map(|node| node.engine.as_ref());
        engines.map(|engine| Some(engine?.latest_life())).collect()
    }

    pub(super) fn replay(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if let Some(host) = self.thief.host {
            self.net.send((host, PORT), to, None, bytes);
        }
    }

    /// Notes what a node is about to handle.
    pub(super) fn begin(&mut self, (node, sender): (usize, HostId), bytes: &[u8]) -> Handled {
        self.watch.comes(node, bytes);
        let is_his = Some(sender) == self.thief.host;
        let watched = is_his || self.net.now < self.thief.until;
        let what = (node, self.nodes[node].life, digest(bytes));
        if is_his {
            let had = self.thief.had.contains(&what) || self.thief.of_former_lives;
            self.thief.replaying = Some(had);
            if !had {
                self.thief.fooled.insert(node);
                let thief = self
                    .thief
                    .host
                    .map(|host| self.net.hosts[host].addresses[0]);
                self.watch.knocked(node, thief.unwrap(), self.net.now);
            }
        }
        Handled {
            is_his,
            what,
            refused: watched.then(|| self.refused(node)),
        }
    }

    /// Notes what became of it. What a node refused (there was no session yet, say) it hasn't had.
    pub(super) fn end(&mut self, handled: &Handled) {
        self.thief.replaying = None;
        let node = handled.what.0;
        if handled
            .refused
            .is_some_and(|before| before == self.refused(node))
        {
            self.thief.had.insert(handled.what);
        }
    }

    fn refused(&self, node: usize) -> u64 {
        let engine = self.nodes[node].engine.as_ref();
        let drops = engine.map(|engine| engine.status(self.now()).drops);
        drops.iter().flatten().map(|drop| drop.count).sum()
    }
}
