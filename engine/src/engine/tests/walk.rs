//! Every state of a node, entered and left again: afterwards it is as one that has always been well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podmesh_proto::id::Name;
use podmesh_proto::key::SecretKey;
use podmesh_proto::local_api::{NodeState, PathView, PeerState};
use podmesh_proto::network::{ExternalPeer, RootStatement};
use podmesh_proto::planet_api::{DirectoryCursor, PlanetMessage};

use crate::random::Random;
use crate::testing::{START, World, name, nets};

const LIFE: u64 = 6_000;
const HOUR: i64 = 3_600;
const NODES: u8 = 4;
const WALKS: u8 = 6;
/// Nothing happens to this one but what happens to all.
const STEADY: usize = 3;

/// Something that a node goes through.
#[derive(Debug, Clone, Copy)]
enum Step {
    ClockEnds,
    ClockAhead,
    ClockBehind,
    ClockRight,
    Restart,
    RestartInTheFuture,
    /// Its disk says of its membership what was true before its keys changed.
    OldState,
    Rotate,
    Rejoin,
    PlanetDies,
    PlanetBack,
    External,
    NoExternal,
    /// With all in order, longer than it takes to renew a membership.
    Long,
    /// All members have ended, by everybody's clock but the steady one's.
    AllClocks,
}

const STEPS: [Step; 15] = [
    Step::ClockEnds,
    Step::ClockAhead,
    Step::ClockBehind,
    Step::ClockRight,
    Step::Restart,
    Step::RestartInTheFuture,
    Step::OldState,
    Step::Rotate,
    Step::Rejoin,
    Step::PlanetDies,
    Step::PlanetBack,
    Step::External,
    Step::NoExternal,
    Step::Long,
    Step::AllClocks,
];

struct Walk {
    world: World,
    random: Random,
    rotated: u8,
    said: u64,
}

impl Walk {
    fn new(seed: u8) -> Self {
        let mut world = World::new(NODES);
        world.life = Some(LIFE);
        world.reconnects = true;
        world.join_all();
        let random = Random::new([seed; 32]);
        Self {
            world,
            random,
            rotated: 50,
            said: 0,
        }
    }

    fn pass(&mut self, span: Duration) {
        const STEP: Duration = Duration::from_secs(10);
        let end = self.world.now.moment + span;
        while self.world.now.moment < end {
            self.beat();
            self.world.run(STEP.min(end.since(self.world.now.moment)));
            self.whole();
        }
    }

    fn beat(&mut self) {
        let cursor = DirectoryCursor {
            epoch: 7,
            version: 1,
        };
        for node in 0..self.world.engines.len() {
            if self.world.planet_alive {
                let beat = PlanetMessage::Heartbeat { cursor };
                self.world.planet_says(node, beat);
            }
        }
    }

    /// Nothing is half done, in whatever state.
    fn whole(&self) {
        for (node, engine) in self.world.engines.iter().enumerate() {
            assert_eq!(engine.astray(), None, "node {node}");
        }
    }

    fn take(&mut self, step: Step) {
        let node = usize::try_from(self.random.number() % 3).unwrap();
        let world = &mut self.world;
        match step {
            Step::ClockEnds => {
                world.clocks.insert(node, 3 * HOUR);
            }
            Step::ClockAhead => {
                world.clocks.insert(node, HOUR / 2);
            }
            Step::ClockBehind => {
                world.clocks.insert(node, -3 * HOUR);
            }
            Step::ClockRight => world.clocks.clear(),
            Step::AllClocks => world
                .clocks
                .extend((0..STEADY).map(|node| (node, 5 * HOUR))),
            Step::Restart => world.restart(node),
            Step::RestartInTheFuture => {
                world.clocks.insert(node, 3 * HOUR);
                world.restart(node);
            }
            Step::OldState => {
                if let Some(stored) = &mut world.stored[node]
                    && let Some(membership) = &mut stored.membership
                {
                    (membership.renewed, stored.renewing) = (None, None);
                    world.next.remove(&world.keys[node]);
                    world.restart(node);
                }
            }
            Step::Rotate => self.rotate(node),
            Step::Rejoin => self.rejoin(node),
            Step::PlanetDies => {
                if world.planet_alive {
                    world.kill_planet();
                }
            }
            Step::PlanetBack => self.revive(),
            Step::External | Step::NoExternal => {
                self.external(matches!(step, Step::External));
            }
            Step::Long => {
                world.clocks.clear();
                self.revive();
                return self.pass(Duration::from_secs(LIFE * 3 / 4));
            }
        }
        let seconds = 1 + self.random.number() % 60;
        self.pass(Duration::from_secs(seconds));
    }

    fn rotate(&mut self, node: usize) {
        let engine = &self.world.engines[node];
        let idle = engine.is_active() && engine.renewal_waits().is_none();
        if idle && !self.world.next.contains_key(&self.world.keys[node]) {
            self.rotated += 1;
            self.world.rotate(node, self.rotated);
        }
    }

    fn rejoin(&mut self, node: usize) {
        let number = self.world.keys[node];
        let changed =
            self.world.moved.contains_key(&number) || self.world.next.contains_key(&number);
        if !self.world.planet_alive || !self.world.clocks.is_empty() || changed {
            return;
        }
        let now = self.world.now_of(node);
        self.world.engines[node].handle_leave(now).unwrap();
        self.world.drain(node);
        self.pass(Duration::from_secs(5));
        let token = self.world.authority.token_for(1, Some(LIFE));
        let (now, label) = (self.world.now_of(node), name(&format!("n{number}")));
        let engine = &mut self.world.engines[node];
        engine.handle_join(&token, label, now).unwrap();
        self.world.drain(node);
        self.world.connect(node);
    }

    fn revive(&mut self) {
        if !self.world.planet_alive {
            self.world.planet_alive = true;
            for node in 0..self.world.engines.len() {
                self.world.connect(node);
            }
        }
    }

    fn external(&mut self, there: bool) {
        self.said += 1;
        let wireguard = SecretKey::from_bytes([77; 32]).public();
        let (network, issued) = (self.world.authority.network.id, START.plus(self.said));
        let statement = if there {
            RootStatement::External(ExternalPeer {
                network,
                name: name("phone"),
                wireguard,
                prefixes: nets(&["10.77.9.9/32"]),
                endpoint: None,
                issued,
            })
        } else {
            RootStatement::RevokeExternal {
                network,
                wireguard,
                issued,
            }
        };
        let statement = self.world.authority.say(&statement);
        let now = self.world.now_of(STEADY);
        let engine = &mut self.world.engines[STEADY];
        engine.handle_statement(statement, now).unwrap();
        self.world.drain(STEADY);
    }

    /// All is put right, and a minute later as it would be had nothing happened.
    fn come_home(&mut self, path: &[Step]) {
        self.world.clocks.clear();
        self.revive();
        self.pass(Duration::from_secs(60));
        let steady = &self.world.engines[STEADY];
        let mut all: BTreeSet<Name> = steady
            .peers(self.world.now)
            .into_iter()
            .map(|view| view.name)
            .collect();
        all.insert(name("n4"));
        assert!(all.len() >= usize::from(NODES), "{path:?}: {all:?}");
        for (node, engine) in self.world.engines.iter().enumerate() {
            let status = engine.status(self.world.now);
            let own = status.node.map(|view| view.name).unwrap();
            assert_eq!(status.state, NodeState::Online, "{path:?} node {node}");
            let views = engine.peers(self.world.now);
            let mut seen: BTreeSet<Name> = views.iter().map(|view| view.name.clone()).collect();
            seen.insert(own);
            assert_eq!(seen, all, "{path:?} node {node}");
            for view in views.iter().filter(|view| !view.external) {
                assert_eq!(view.state, PeerState::Up, "{path:?} node {node} {view:?}");
                let direct = view.path.as_ref().is_some_and(PathView::is_direct);
                assert!(direct, "{path:?} node {node} {view:?}");
            }
            let clock = |code: &str| status.health.iter().any(|entry| entry.code == code);
            assert!(!clock("MESH-CLOCK-001"), "{path:?} {:?}", status.health);
        }
        self.agree(path);
    }

    /// What everybody knows of everybody is what that one says of itself.
    fn agree(&self, path: &[Step]) {
        let engines = &self.world.engines;
        let own: BTreeMap<_, _> = engines
            .iter()
            .map(|engine| (engine.node_id(), engine.record.as_ref().unwrap()))
            .collect();
        for engine in engines {
            for peer in engine.peers.nodes() {
                let (id, name) = (peer.member.node, &peer.member.name);
                let known = peer.record.as_ref().map(|(_, signed)| signed);
                assert_eq!(known, Some(&own[&id].1), "{path:?}: of {name}");
                assert_eq!(engine.relays_to(&id).len(), 1, "{path:?}: to {name}");
            }
        }
    }
}

/// Whatever a node went through, its peers are those of one that has always been a member.
#[test]
fn whoever_has_gone_through_something_is_as_if_it_had_not() {
    for seed in 0..WALKS {
        let mut walk = Walk::new(seed);
        let mut path = Vec::new();
        for _ in 0..3 {
            for _ in 0..4 {
                let which = usize::try_from(walk.random.number()).unwrap_or(0) % STEPS.len();
                path.push(STEPS[which]);
                println!("seed {seed}: {:?}", STEPS[which]);
                walk.take(STEPS[which]);
            }
            walk.come_home(&path);
        }
    }
}

/// Each step by itself, so that a failure names it.
#[test]
fn whoever_has_gone_through_one_thing_is_as_if_it_had_not() {
    for step in STEPS {
        let mut walk = Walk::new(1);
        walk.take(step);
        walk.come_home(&[step]);
        walk.take(step);
        walk.come_home(&[step, step]);
    }
}
