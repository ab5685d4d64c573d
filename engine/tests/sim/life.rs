//! Random life: nodes, NATs, losses, restarts, moves and dead planets, by seed.
//!
//! For eight minutes something goes wrong every now and then; then everything is healed, and soon
//! every pair must have the best path that its NATs allow, and keep it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podmesh_proto::local_api::{PathView, PeerState};
use podmesh_proto::time::Moment;

use crate::grid::PAIRS;
use crate::nat::NatKind;
use crate::net::SiteId;
use crate::world::{Work, World};

/// The start, in which everybody joins; the end of the faults; how soon all must be well then; how
/// long it must stay so.
const JOIN: Duration = Duration::from_secs(30);
const FAULTS_END: Duration = Duration::from_secs(480);
const SETTLE: Duration = Duration::from_secs(300);
const CALM: Duration = Duration::from_secs(45);
const STABLE: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(600);
const FAULT_GAP: (u64, u64) = (2_000, 30_000);
const LOOK: Duration = Duration::from_secs(2);
/// A path that was just taken has carried something both ways lately.
const RECENT: Duration = Duration::from_secs(12);
const MAX_PENDING: usize = 50_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    NodeRestart,
    NatReboot,
    NatMoves,
    HostMoves,
    Cut,
    OneWayCut,
    Loss,
    PlanetRestart,
    DelayChange,
}

const FAULTS: [Fault; 9] = [
    Fault::NodeRestart,
    Fault::NatReboot,
    Fault::NatMoves,
    Fault::HostMoves,
    Fault::Cut,
    Fault::OneWayCut,
    Fault::Loss,
    Fault::PlanetRestart,
    Fault::DelayChange,
];

/// What became of one life.
#[derive(Debug, Default, Clone)]
struct Report {
    faults: BTreeMap<Fault, u64>,
    digest: u64,
    nodes: u64,
    packets: (u64, u64),
    probes: u64,
    handshakes: u64,
    switches: u64,
    by_pair: BTreeMap<(usize, usize), u64>,
    settled: Duration,
    virtual_time: Duration,
}

struct Life {
    world: World,
    report: Report,
    paths: BTreeMap<(usize, usize), (u32, Option<PathView>)>,
    next_address: u8,
    verbose: bool,
    start: Moment,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = crate::random::Random(seed);
        let planets = if random.chance(30.0) { 2 } else { 1 };
        let mut world = World::new(random.next(), planets);
        let nodes = match random.range(0, 20) {
            0..=15 => random.range(2, 4),
            16..=18 => random.range(4, 7),
            _ => random.range(7, 13),
        };
        let mut shared: Vec<(SiteId, NatKind)> = Vec::new();
        for _ in 0..nodes {
            let (site, kind) = if !shared.is_empty() && random.chance(25.0) {
                *random.pick(&shared)
            } else {
                let kind = *random.pick(&NatKind::ALL);
                let site = world.site(kind);
                if !matches!(kind, NatKind::N0 | NatKind::N1) {
                    shared.push((site, kind));
                }
                (site, kind)
            };
            world.node(site, kind);
        }
        let mut bases: BTreeMap<(SiteId, SiteId), Duration> = BTreeMap::new();
        world.links(|a, b, random| {
            let base = *bases
                .entry((a.min(b), a.max(b)))
                .or_insert_with(|| random.millis(1, 120));
            base + base * random.range(0, 20) as u32 / 100
        });
        for link in world.net.links.values_mut() {
            link.jitter = random.millis(0, 5);
            link.loss = random.range(0, 20) as f64 / 10.0;
        }
        let start = world.net.now;
        Self {
            world,
            report: Report {
                nodes,
                ..Report::default()
            },
            paths: BTreeMap::new(),
            next_address: 1,
            verbose: std::env::var_os("SIM_VERBOSE").is_some(),
            start,
        }
    }

    fn run(mut self) -> Report {
        if self.verbose {
            self.explain();
        }
        for planet in 0..self.world.planets.len() {
            self.world.start_planet(planet);
        }
        for node in 0..self.world.nodes.len() {
            let at = self.start + self.world.net.random.millis(0, 10_000);
            self.world.net.schedule(at, Work::Start { node });
        }
        self.world.net.schedule(self.start + JOIN, Work::Fault);
        self.world.net.schedule(self.start + LOOK, Work::Look);
        self.until(self.start + FAULTS_END);
        self.heal();
        let healed = self.world.net.now;
        // Control connections need this long to notice that they are gone.
        self.until(healed + CALM);
        while !self.is_well() {
            let waited = self.world.net.now.since(healed);
            if self.verbose && waited >= SETTLE {
                self.explain();
            }
            assert!(
                waited < SETTLE,
                "not well {waited:?} after all was healed: {}",
                self.troubles()
            );
            self.until(self.world.net.now + LOOK);
        }
        self.report.settled = self.world.net.now.since(healed);
        self.report.by_pair.clear();
        let end = (self.world.net.now + STABLE).max(self.start + WHOLE);
        let minutes = end.since(self.world.net.now).as_secs().div_ceil(60);
        self.until(end);
        for (pair, switches) in &self.report.by_pair {
            assert!(
                *switches <= minutes,
                "{pair:?} switched {switches} times in {minutes} stable minutes"
            );
        }
        assert!(self.is_well(), "well no more: {}", self.troubles());
        self.finish()
    }

    fn finish(self) -> Report {
        let watch = &self.world.watch;
        Report {
            digest: self.world.net.digest,
            packets: (watch.packets, watch.arrived_packets),
            probes: watch.probes,
            handshakes: watch.handshakes,
            virtual_time: self.world.net.now.since(self.start),
            ..self.report
        }
    }

    fn until(&mut self, end: Moment) {
        loop {
            let mut works = Vec::new();
            let paused = self.world.run(end, |_, work| {
                works.push(work);
                true
            });
            for work in works {
                match work {
                    Work::Fault => self.fault(),
                    _ => self.look(),
                }
            }
            if !paused {
                return;
            }
        }
    }

    /// Looks at every node's view of every other.
    fn look(&mut self) {
        let now = self.world.net.now;
        self.world.net.schedule(now + LOOK, Work::Look);
        self.world.note_candidates();
        assert!(
            self.world.net.pending() < MAX_PENDING,
            "{} things are pending",
            self.world.net.pending()
        );
        for from in 0..self.world.nodes.len() {
            let Some(engine) = &self.world.nodes[from].engine else {
                continue;
            };
            let life = self.world.nodes[from].life;
            for view in engine.peers(self.world.now()) {
                let to = self
                    .world
                    .nodes
                    .iter()
                    .position(|node| Some(node.id) == view.id);
                let to = to.expect("a peer that nobody is");
                let direct = view.path.as_ref().is_some_and(PathView::is_direct);
                assert!(
                    direct || view.why.is_some(),
                    "{from} -> {to} is not direct without a reason"
                );
                assert!(view.state != PeerState::Up || view.path.is_some());
                let before = self.paths.insert((from, to), (life, view.path.clone()));
                if before == Some((life, view.path.clone())) {
                    continue;
                }
                if self.verbose {
                    let at = now.since(self.start);
                    println!(
                        "{at:.1?} {from} -> {to}: {:?} {}",
                        view.path,
                        view.why.as_deref().unwrap_or_default()
                    );
                }
                if before.is_some_and(|(known, _)| known == life) {
                    self.report.switches += 1;
                    *self.report.by_pair.entry((from, to)).or_default() += 1;
                }
                if let Some(
                    PathView::Lan { endpoint }
                    | PathView::Direct4 { endpoint }
                    | PathView::Direct6 { endpoint },
                ) = view.path
                {
                    self.proven((from, to), endpoint);
                }
            }
        }
        self.chat();
    }

    /// A path that was taken must have carried something in both directions.
    fn proven(&self, (from, to): (usize, usize), endpoint: std::net::SocketAddr) {
        let (now, watch) = (self.world.net.now, &self.world.watch);
        let arrival = watch.arrivals.get(&(from, endpoint));
        let came = arrival.is_some_and(|(at, sender)| {
            now.since(*at) < RECENT && *sender == self.world.nodes[to].host
        });
        let here = self.world.nodes[from].host;
        let went = watch
            .between
            .get(&(here, to))
            .is_some_and(|at| now.since(*at) < RECENT);
        assert!(
            came && went,
            "{from} -> {to} took {endpoint}, which carried nothing (in {came}, out {went})"
        );
    }

    /// Somebody talks to somebody now and then.
    fn chat(&mut self) {
        let nodes = self.world.nodes.len() as u64;
        let random = &mut self.world.net.random;
        if !random.chance(15.0) {
            return;
        }
        let (from, to) = (
            random.range(0, nodes) as usize,
            random.range(0, nodes) as usize,
        );
        let (every, span) = (random.millis(100, 1_000), random.millis(2_000, 20_000));
        if from != to {
            let until = self.world.net.now + span;
            self.world.talk(from, to, every, until);
            self.world.talk(to, from, every, until);
        }
    }

    fn fault(&mut self) {
        let world = &mut self.world;
        let now = world.net.now;
        let gap = world.net.random.millis(FAULT_GAP.0, FAULT_GAP.1);
        if now + gap < self.start + FAULTS_END {
            world.net.schedule(now + gap, Work::Fault);
        }
        let fault = *world.net.random.pick(&FAULTS);
        let verbose = self.verbose;
        *self.report.faults.entry(fault).or_default() += 1;
        let node = world.net.random.range(0, world.nodes.len() as u64) as usize;
        let site = world.net.hosts[world.nodes[node].host].site;
        if verbose {
            println!(
                "{:.1?} {fault:?} node {node} site {site}",
                now.since(self.start)
            );
        }
        match fault {
            Fault::NodeRestart => {
                world.stop(node);
                let at = now + world.net.random.millis(300, 40_000);
                world.net.schedule(at, Work::Start { node });
            }
            Fault::NatReboot => {
                if let Some(nat) = &mut world.net.sites[site].nat {
                    nat.reboot();
                }
            }
            Fault::NatMoves => {
                let address = self.fresh_address();
                if let Some(nat) = &mut self.world.net.sites[site].nat {
                    nat.reboot();
                    nat.outside = address;
                }
            }
            // A one-to-one NAT is set up for an address that stays.
            Fault::HostMoves if world.nodes[node].kind == NatKind::N1 => {}
            Fault::HostMoves => self.move_host(node, site),
            Fault::Cut | Fault::OneWayCut | Fault::Loss => self.harm_link(fault, site),
            Fault::PlanetRestart => {
                let planet = world.net.random.range(0, world.planets.len() as u64) as usize;
                world.stop_planet(planet);
                let at = now + world.net.random.millis(1_000, 90_000);
                world.net.schedule(at, Work::StartPlanet { planet });
            }
            Fault::DelayChange => {
                let other = world.net.random.range(0, world.net.sites.len() as u64) as usize;
                let delay = world.net.random.millis(1, 120);
                for pair in [(site, other), (other, site)] {
                    if let Some(link) = world.net.links.get_mut(&pair) {
                        link.delay = delay;
                    }
                }
                world.measure();
            }
        }
    }

    fn harm_link(&mut self, fault: Fault, site: SiteId) {
        let world = &mut self.world;
        let other = world.net.random.range(0, world.net.sites.len() as u64) as usize;
        let loss = world.net.random.range(5, 50) as f64;
        let both = [(site, other), (other, site)];
        let pairs = if fault == Fault::OneWayCut {
            &both[..1]
        } else {
            &both[..]
        };
        for pair in pairs {
            if let Some(link) = world.net.links.get_mut(pair) {
                if fault == Fault::Loss {
                    link.loss = loss;
                } else {
                    link.cut = true;
                }
            }
        }
        let at = world.net.now + world.net.random.millis(2_000, 40_000);
        world.net.schedule(at, Work::Heal { site, other });
    }

    fn move_host(&mut self, node: usize, site: SiteId) {
        let address = match &self.world.net.sites[site].nat {
            None => self.fresh_address(),
            Some(_) => {
                self.next_address += 1;
                IpAddr::from([192, 168, site as u8, 100 + self.next_address % 150])
            }
        };
        self.world.set_address(node, address);
    }

    fn fresh_address(&mut self) -> IpAddr {
        self.next_address += 1;
        IpAddr::from([198, 18, 0, self.next_address])
    }

    fn heal(&mut self) {
        let world = &mut self.world;
        for link in world.net.links.values_mut() {
            (link.cut, link.loss) = (false, link.loss.min(2.0));
        }
        for planet in 0..world.planets.len() {
            if world.planets[planet].rules.is_none() {
                world.start_planet(planet);
            }
        }
        for node in 0..world.nodes.len() {
            if world.nodes[node].engine.is_none() {
                world.start(node);
            }
        }
    }

    fn is_well(&self) -> bool {
        self.troubles().is_empty()
    }

    /// Everything about everybody.
    fn explain(&self) {
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
            println!("  candidates {:?}", engine.status(now).candidates);
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

    /// Pairs that don't have the best path that is possible.
    fn troubles(&self) -> String {
        let mut troubles = String::new();
        for from in 0..self.world.nodes.len() {
            let Some(engine) = &self.world.nodes[from].engine else {
                troubles += &format!("{from} is off; ");
                continue;
            };
            let views = engine.peers(self.world.now());
            for to in (0..self.world.nodes.len()).filter(|to| *to != from) {
                let view = views
                    .iter()
                    .find(|view| view.id == Some(self.world.nodes[to].id));
                let path = view.and_then(|view| view.path.clone());
                let well = match (&path, self.best(from, to)) {
                    (Some(PathView::Lan { .. }), Best::Lan) => true,
                    (Some(path), Best::Direct) => path.is_direct(),
                    (Some(PathView::Relay { .. }), Best::Relay) => true,
                    _ => false,
                };
                if !well {
                    let kinds = (self.world.nodes[from].kind, self.world.nodes[to].kind);
                    let why = view.and_then(|view| view.why.clone()).unwrap_or_default();
                    troubles += &format!("{from} -> {to} {kinds:?} has {path:?} ({why}); ");
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

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Lives of all these seeds, on two threads; what failed, with its seed.
fn lives(seeds: std::ops::Range<u64>) -> (Vec<Report>, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let (reports, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| Life::new(seed).run())) {
                        Ok(report) => reports.lock().unwrap().push(report),
                        Err(panic) => {
                            let text = panic.downcast_ref::<String>().cloned();
                            let text = text
                                .or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                            failures
                                .lock()
                                .unwrap()
                                .push(format!("seed {seed}: {}", text.unwrap_or_default()));
                        }
                    }
                }
            });
        }
    });
    (
        reports.into_inner().unwrap(),
        failures.into_inner().unwrap(),
    )
}

#[test]
fn random_life_ends_well() {
    let (first, count) = (number("SIM_FIRST", 0), number("SIM_SEEDS", 100));
    let started = Instant::now();
    let (reports, failures) = lives(first..first + count);
    let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
    for report in &reports {
        for (fault, times) in &report.faults {
            *faults.entry(*fault).or_default() += times;
        }
    }
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let mut settled: Vec<Duration> = reports.iter().map(|report| report.settled).collect();
    settled.sort();
    println!(
        "{} lives in {:.1?}: {} virtual hours",
        reports.len(),
        started.elapsed(),
        sum(|report| report.virtual_time.as_secs()) / 3_600
    );
    println!(
        "faults {faults:?}, {} per life",
        faults.values().sum::<u64>() / count
    );
    println!(
        "{} nodes, {} probes, {} handshakes, {} switches",
        sum(|report| report.nodes),
        sum(|report| report.probes),
        sum(|report| report.handshakes),
        sum(|report| report.switches)
    );
    println!(
        "pod packets sent {}, arrived {}",
        sum(|report| report.packets.0),
        sum(|report| report.packets.1)
    );
    println!(
        "well after: median {:?}, last {:?}",
        settled.get(settled.len() / 2),
        settled.last()
    );
    assert!(
        failures.is_empty(),
        "{} of {count} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn the_same_seed_gives_the_same_life() {
    for seed in [3, 4] {
        let once = Life::new(seed).run().digest;
        assert_eq!(Life::new(seed).run().digest, once, "seed {seed}");
    }
}
