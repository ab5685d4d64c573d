//! A walk over the states of nodes: clocks jump, memberships end and go on, keys change, disks refuse or
//! forget, nodes leave and come back. After each stretch all is put right; a minute later everybody who
//! is a member reaches everybody.

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_engine::config::Thresholds;
use podmesh_engine::engine::Engine;
use podmesh_proto::local_api::{NodeState, PeerState};
use podmesh_proto::time::Moment;

use crate::life::Report;
use crate::lives::number;
use crate::nat::NatKind;
use crate::random::Random;
use crate::world::{NodeHost, World};

const JOIN: Duration = Duration::from_secs(25);
const ROUNDS: u64 = 4;
/// Everybody reaches everybody this long after all was put right.
const SETTLE: u64 = 60;
/// Two of a large mesh between which there is no traffic sleep this long after they have met: when they are
/// idle, and one of them may have asked for the other once more.
const ASLEEP: Duration = Duration::from_secs(50);
pub const ASLEEP_WHY: &str = "no traffic wants it";
const LOOK: Duration = Duration::from_secs(2);
/// Who has left, and doesn't know it, has this long to find its planet again.
const HEARS: Duration = Duration::from_secs(30);
/// Of so many nodes that leave, the disk of one goes back to before that.
const FORGETFUL: u128 = 4;
/// Packets that are sent each way when everybody must be reached, and how many must arrive.
const SENT: u32 = 16;
const ARRIVE: u64 = 13;
/// A restarted node that is over its time has this long to be admitted anew.
const AGAIN: Duration = Duration::from_secs(20);
const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;

/// What a node goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    ClockAhead,
    ClockBehind,
    ClockRight,
    Restart,
    /// Its clock is another one in its next life.
    RestartAhead,
    RestartBehind,
    DiskRefuses,
    DiskForgets,
    Keys,
    Identity,
    Rejoin,
    /// Off for longer than a membership lasts.
    LongOff,
    PlanetRestart,
    Moves,
    Cut,
    /// A planet's clock is wrong.
    PlanetClock,
    /// A copy of its disk is switched on elsewhere.
    Copied,
    /// It is put back to an earlier copy of its disk, or such a copy is made.
    PutBack,
}

const BLOWS: [Blow; 18] = [
    Blow::ClockAhead,
    Blow::ClockBehind,
    Blow::ClockRight,
    Blow::Restart,
    Blow::RestartAhead,
    Blow::RestartBehind,
    Blow::DiskRefuses,
    Blow::DiskForgets,
    Blow::Keys,
    Blow::Identity,
    Blow::Rejoin,
    Blow::LongOff,
    Blow::PlanetRestart,
    Blow::Moves,
    Blow::Cut,
    Blow::PlanetClock,
    Blow::Copied,
    Blow::PutBack,
];

pub struct Walk {
    world: World,
    start: Moment,
    path: Vec<(Blow, usize)>,
    next_address: u8,
    verbose: bool,
    /// Where each node saw each peer last, of the large meshes.
    awake: BTreeMap<(usize, usize), u32>,
    talked: BTreeMap<(usize, usize), Moment>,
    /// Since when each node knows each peer.
    known: BTreeMap<(usize, usize), Moment>,
    /// Nothing is wrong anywhere.
    calm: bool,
    settle: Duration,
}

impl Walk {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed ^ 0x77a1_4b0d);
        let planets = if random.chance(30.0) { 2 } else { 1 };
        let mut world = World::new(random.next(), planets);
        let is_large = random.chance(20.0);
        let nodes = if is_large { 5 } else { random.range(2, 5) };
        if random.chance(75.0) {
            world.authority.life = Some(random.range(300, 900));
        }
        for _ in 0..nodes {
            let kinds = [
                NatKind::N0,
                NatKind::N0,
                NatKind::N2,
                NatKind::N4,
                NatKind::N5,
            ];
            let kind = *random.pick(&kinds);
            let site = world.site(kind);
            let node = world.node(site, kind);
            if random.chance(30.0) {
                world.add_v6(node);
            }
            if is_large {
                world.nodes[node].thresholds = Thresholds {
                    eager_peers: 2,
                    idle: Duration::from_secs(20),
                    in_vain: Duration::from_secs(10),
                };
            }
        }
        world.add_spare();
        world.add_thief();
        world.links(|_, _, random| random.millis(1, 60));
        let start = world.net.now;
        Self {
            world,
            start,
            path: Vec::new(),
            next_address: 1,
            verbose: std::env::var_os("SIM_VERBOSE").is_some(),
            awake: BTreeMap::new(),
            talked: BTreeMap::new(),
            known: BTreeMap::new(),
            calm: false,
            settle: Duration::from_secs(number("SIM_SETTLE", SETTLE)),
        }
    }

    pub fn run(mut self) -> Report {
        for planet in 0..self.world.planets.len() {
            self.world.start_planet(planet);
        }
        for node in 0..self.world.count() {
            self.world.start(node);
            self.run_for(Duration::from_millis(500));
        }
        self.run_for(JOIN);
        self.all_reach_all();
        for _ in 0..ROUNDS {
            for _ in 0..self.world.net.random.range(1, 4) {
                self.strike();
                let span = self.world.net.random.millis(500, 30_000);
                self.run_for(span);
            }
            self.put_right();
            self.run_for(self.settle);
            self.all_sleep();
            self.all_reach_all();
            self.world.replay_former_lives();
            self.path.clear();
        }
        Report {
            nodes: self.world.count() as u64,
            digest: self.world.net.digest,
            virtual_time: self.world.net.now.since(self.start),
            ..Report::default()
        }
    }

    fn strike(&mut self) {
        let world = &mut self.world;
        let blow = *world.net.random.pick(&BLOWS);
        let node = world.net.random.range(0, world.count() as u64) as usize;
        if self.verbose {
            println!(
                "{:.1?} {blow:?} node {node}",
                world.net.now.since(self.start)
            );
        }
        self.path.push((blow, node));
        match blow {
            Blow::ClockAhead | Blow::ClockBehind => {
                self.world.nodes[node].clock = self.jump(blow == Blow::ClockAhead);
            }
            Blow::ClockRight => world.nodes[node].clock = 0,
            Blow::Restart => self.restart(node),
            Blow::RestartAhead | Blow::RestartBehind => {
                world.stop(node);
                self.world.nodes[node].clock = self.jump(blow == Blow::RestartAhead);
                self.restart(node);
            }
            Blow::DiskRefuses => world.nodes[node].disk.refuses = true,
            Blow::DiskForgets => {
                world.nodes[node].older = true;
                self.restart(node);
            }
            Blow::Keys | Blow::Identity if world.twin(node).is_some() => {}
            Blow::Keys | Blow::Identity => {
                world.rotate(node, blow == Blow::Identity);
                // It takes the keys, and no more.
                let fills = world.net.random.chance(30.0);
                world.nodes[node].disk.refuses |= fills;
            }
            Blow::Rejoin => self.rejoin(node),
            Blow::LongOff => {
                world.stop(node);
                if let Some(life) = world.authority.life {
                    self.run_for(Duration::from_secs(life + 400));
                }
            }
            Blow::PlanetRestart => {
                let planets = world.planets.len() as u64;
                let planet = world.net.random.range(0, planets) as usize;
                world.stop_planet(planet);
            }
            Blow::Moves => self.move_host(node),
            Blow::PlanetClock => {
                let ahead = world.net.random.chance(50.0);
                let by = self.jump(ahead);
                self.world.planets[0].clock = by;
            }
            Blow::Copied if world.can_be_copied(node) => world.copy_machine(node),
            Blow::Copied => {}
            Blow::PutBack => self.put_back(node),
            Blow::Cut => {
                let site = world.net.hosts[world.nodes[node].host].site;
                for ((from, to), link) in &mut world.net.links {
                    link.cut |= *from == site || *to == site;
                }
            }
        }
    }

    fn jump(&mut self, ahead: bool) -> i64 {
        let random = &mut self.world.net.random;
        let far = *random.pick(&[10 * MINUTE, 3 * HOUR, 10 * DAY]);
        let by = i64::try_from(far + random.range(0, MINUTE)).unwrap();
        if ahead { by } else { -by }
    }

    fn put_back(&mut self, node: usize) {
        let world = &mut self.world;
        if !world.can_be_imaged(node) {
            return;
        }
        match world.nodes[node].image.take() {
            Some(image) => {
                world.stop(node);
                world.write_image(node, image);
                self.restart(node);
            }
            None => world.nodes[node].image = Some(world.image(node)),
        }
    }

    fn restart(&mut self, node: usize) {
        self.world.stop(node);
        let span = self.world.net.random.millis(300, 20_000);
        self.run_for(span);
        self.world.start(node);
    }

    fn rejoin(&mut self, node: usize) {
        let host = &self.world.nodes[node];
        // With another identity it would come back as another node.
        let unfit = host.rotated || host.disk.refuses;
        if unfit || self.world.twin(node).is_some() {
            return;
        }
        let image = self
            .world
            .can_be_imaged(node)
            .then(|| self.world.image(node));
        self.world.leave(node);
        let span = self.world.net.random.millis(0, 10_000);
        self.run_for(span);
        let image = image.filter(|_| span.as_millis().is_multiple_of(FORGETFUL));
        if image.is_some() {
            self.world.nodes[node].image = image;
            self.world.go_back(node);
        } else {
            self.world.join(node);
        }
    }

    fn move_host(&mut self, node: usize) {
        let site = self.world.net.hosts[self.world.nodes[node].host].site;
        self.next_address += 1;
        let address = match &self.world.net.sites[site].nat {
            None => [198, 18, 0, self.next_address],
            Some(_) => [192, 168, site as u8, 100 + self.next_address % 150],
        };
        self.world.set_address(node, address.into());
    }

    fn put_right(&mut self) {
        self.world.put_right();
        self.run_for(Duration::from_secs(5));
        let latest = self.world.net.now + HEARS;
        while self.world.has_to_hear() && self.world.net.now < latest {
            self.run_for(LOOK);
        }
        for node in 0..self.world.count() {
            if self.world.is_over(node) {
                self.world.leave(node);
                self.run_for(Duration::from_secs(2));
                self.world.join(node);
                self.run_for(AGAIN);
            }
        }
    }

    fn run_for(&mut self, span: Duration) {
        let end = self.world.net.now + span;
        while self.world.net.now < end {
            let step = LOOK.min(end.since(self.world.net.now));
            self.world.run_for(step);
            self.look();
        }
    }

    /// What must hold at any time.
    fn look(&mut self) {
        self.world.note_candidates();
        self.world.look_at_leavers();
        let before = std::mem::take(&mut self.known);
        for from in 0..self.world.count() {
            let node = &self.world.nodes[from];
            let (life, idle) = (node.life, node.thresholds.idle);
            let Some(engine) = &node.engine else {
                continue;
            };
            if let Some(astray) = engine.astray() {
                panic!("node {from}: {astray}, after {:?}", self.path);
            }
            for view in engine.peers(self.world.now_of(from)) {
                let to = self
                    .world
                    .nodes
                    .iter()
                    .position(|node| Some(node.id) == view.id);
                let Some(to) = to else { continue };
                let since = before.get(&(from, to)).copied();
                let since = since.unwrap_or(self.world.net.now);
                self.known.insert((from, to), since);
                let sleeps = view.why.as_deref() == Some(ASLEEP_WHY);
                let was_awake = self.awake.remove(&(from, to)) == Some(life);
                if !sleeps && view.state == PeerState::Up {
                    self.awake.insert((from, to), life);
                }
                let talked = self.talked.get(&(from.min(to), from.max(to)));
                let silent = talked.map(|at| self.world.net.now.since(*at));
                assert!(
                    !(self.calm
                        && sleeps
                        && was_awake
                        && silent.is_some_and(|silent| silent + LOOK < idle)),
                    "{from} lets {to} go after {silent:?}"
                );
            }
        }
    }

    /// Everybody is a member, and hears from everybody.
    fn all_reach_all(&mut self) {
        let path = format!("{:?}", self.path);
        let nodes = self.world.count();
        for node in 0..nodes {
            let state = self.world.state(node);
            if self.verbose && state != Some(NodeState::Online) {
                self.explain();
            }
            assert_eq!(state, Some(NodeState::Online), "node {node} after {path}");
            let asks = self.world.nodes[node].engine.as_ref();
            let asks = asks.and_then(Engine::renewal_waits).is_some();
            let forgotten = self.world.nodes[node].next.is_some() && !asks;
            assert!(
                !forgotten,
                "node {node} has made keys after {path} that it doesn't ask for"
            );
        }
        let before = self.world.watch.counts.clone();
        let every = Duration::from_millis(250);
        let until = self.world.net.now + every * (SENT - 1);
        let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
        let pairs: Vec<(usize, usize)> = pairs.filter(|(a, b)| a != b).collect();
        for (a, b) in &pairs {
            self.world.talk(*a, *b, every, until);
            self.talked.insert((*a.min(b), *a.max(b)), until);
        }
        self.run_for(every * SENT);
        self.calm = true;
        self.run_for(Duration::from_secs(6));
        self.calm = false;
        self.all_know_all(&path);
        for pair in pairs {
            let count = |of: &BTreeMap<_, u64>| of.get(&pair).copied().unwrap_or(0);
            let arrived = count(&self.world.watch.counts) - count(&before);
            if self.verbose && arrived < ARRIVE {
                self.explain();
            }
            assert!(
                arrived >= ARRIVE,
                "{pair:?}: {arrived} of {SENT} packets arrived, after {path}"
            );
        }
    }

    /// In a large mesh nobody looks after a peer that there was no traffic with for long. Who has just come
    /// to know the other has looked for it.
    fn all_sleep(&self) {
        for ((from, to), since) in &self.known {
            let is_new = self.world.net.now.since(*since) < ASLEEP;
            let node = &self.world.nodes[*from];
            let Some(engine) = node.engine.as_ref().filter(|_| !is_new) else {
                continue;
            };
            let id = Some(self.world.nodes[*to].id);
            let views = engine.peers(self.world.now_of(*from));
            let why = views.into_iter().find(|view| view.id == id);
            let sleeps = why.and_then(|view| view.why).as_deref() == Some(ASLEEP_WHY);
            assert!(
                sleeps || node.thresholds == Thresholds::default(),
                "{from} looks after {to} for nothing, after {:?}",
                self.path
            );
        }
    }

    /// Everybody has heard where everybody says that it is, and not only met it by chance. In a large mesh
    /// nobody looks after those that nobody talks to.
    fn all_know_all(&self, path: &str) {
        let small = |node: &&NodeHost| node.thresholds == Thresholds::default();
        for (index, node) in self.world.nodes.iter().enumerate() {
            let now = self.world.now_of(index);
            let Some(engine) = node.engine.as_ref().filter(|_| small(&node)) else {
                continue;
            };
            for view in engine.peers(now) {
                let detail = engine.peer(view.name.as_str(), now).unwrap();
                let heard = detail.candidates.iter().any(|trial| trial.kind == "host");
                assert!(
                    heard,
                    "{index} doesn't know where {} is, after {path}",
                    view.name
                );
            }
        }
    }

    fn explain(&self) {
        for (index, node) in self.world.nodes.iter().enumerate() {
            let now = self.world.now_of(index);
            let Some(engine) = &node.engine else { continue };
            println!("node {index} {:?} {}", node.kind, engine.node_id().short());
            let status = engine.status(now);
            println!(
                "  {:?} {:?} {:?}",
                status.state, status.planets, status.health
            );
            for view in engine.peers(now) {
                let name = view.name.to_string();
                let detail = engine.peer(&name, now).map(|detail| detail.candidates);
                println!("  to {name}: {:?} {:?} {:?}", view.path, view.why, detail);
            }
        }
    }
}
