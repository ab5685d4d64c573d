//! Whether all is as well as it can be.

use podmesh_engine::engine::Engine;
use podmesh_proto::local_api::PathView;

use crate::grid::PAIRS;
use crate::life::Life;

impl Life {
    pub fn is_well(&self) -> bool {
        self.troubles().is_empty()
    }

    /// Everything about everybody.
    pub fn explain(&self) {
        let now = self.world.now();
        for (index, node) in self.world.nodes.iter().enumerate() {
            let host = &self.world.net.hosts[node.host];
            let outside = self.world.net.sites[host.site]
                .nat
                .as_ref()
                .map(|nat| nat.outside);
            println!(
                "node {index} {:?} site {} at {:?} outside {outside:?} ports {:?}",
                node.kind, host.site, host.addresses, node.keys.ports
            );
            let Some(engine) = &node.engine else { continue };
            let status = engine.status(self.world.now_of(index));
            println!(
                "  {} {:?} {:?}",
                engine.node_id().short(),
                status.state,
                status.planets
            );
            println!("  {:?}", status.health);
            println!("  candidates {:?}", status.candidates);
            for view in engine.peers(now) {
                let detail = engine.peer(&view.name.to_string(), now).unwrap();
                println!("  to {}: {:?} {:?}", view.name, view.path, view.why);
                for trial in detail.candidates {
                    println!("    {trial:?}");
                }
                for switch in detail.history {
                    println!("    {switch:?}");
                }
            }
        }
    }

    /// Pairs that don't have the best path that is possible, or won't have it next time: whoever believes a
    /// later word of a node than its last one believes nothing that the node says.
    pub fn troubles(&self) -> String {
        let mut troubles = String::new();
        for from in 0..self.world.count() {
            let Some(engine) = &self.world.nodes[from].engine else {
                troubles += &format!("{from} is off; ");
                continue;
            };
            if self.world.nodes[from].next.is_some() && engine.renewal_waits().is_none() {
                troubles += &format!("{from} has made keys that it doesn't ask for; ");
            }
            let views = engine.peers(self.world.now_of(from));
            for to in (0..self.world.count()).filter(|to| *to != from) {
                let view = views
                    .iter()
                    .find(|view| view.id == Some(self.world.nodes[to].id));
                let path = view.and_then(|view| view.path.clone());
                let well = match (&path, self.best(from, to)) {
                    (Some(PathView::Lan { .. } | PathView::Direct6 { .. }), Best::Lan) => true,
                    (Some(path), Best::Direct) => path.is_direct(),
                    (Some(PathView::Relay { .. }), Best::Relay) => true,
                    _ => false,
                };
                if !well {
                    let kinds = (self.world.nodes[from].kind, self.world.nodes[to].kind);
                    let why = view.and_then(|view| view.why.clone()).unwrap_or_default();
                    troubles += &format!("{from} -> {to} {kinds:?} has {path:?} ({why}); ");
                }
                let other = &self.world.nodes[to];
                let own = other.engine.as_ref().map(Engine::edition);
                let believed = engine.edition_of(&other.id);
                if own.is_some() && believed > own {
                    troubles +=
                        &format!("{from} believes edition {believed:?} of {to}, not {own:?}; ");
                }
            }
        }
        troubles
    }

    /// What is possible, by the literal table.
    fn best(&self, from: usize, to: usize) -> Best {
        let (a, b) = (&self.world.nodes[from], &self.world.nodes[to]);
        if self.world.net.hosts[a.host].site == self.world.net.hosts[b.host].site {
            return Best::Lan;
        }
        if self.world.has_v6(from) && self.world.has_v6(to) {
            return Best::Direct;
        }
        let (low, high) = (a.kind.min(b.kind), a.kind.max(b.kind));
        match PAIRS.iter().find(|pair| (pair.0, pair.1) == (low, high)) {
            Some((.., true)) => Best::Direct,
            _ => Best::Relay,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Best {
    Lan,
    Direct,
    Relay,
}
