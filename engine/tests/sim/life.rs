//! Random life: nodes, NATs, losses, restarts, moves and dead planets, by seed.
//!
//! For six minutes something goes wrong every now and then; then everything is healed, and soon
//! every pair must have the best path that its NATs allow, and keep it.

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_engine::config::Thresholds;
use podmesh_proto::local_api::{PathView, PeerState, PeerView};
use podmesh_proto::time::Moment;

use crate::faults::Fault;
use crate::nat::NatKind;
use crate::net::SiteId;
use crate::random::Random;
use crate::trial::{EVERY, Trial};
use crate::world::{Work, World};

/// The start, in which everybody joins; the end of the faults; how soon all must be well then; how
/// long it must stay so.
const JOIN: Duration = Duration::from_secs(30);
const FAULTS_END: Duration = Duration::from_secs(390);
const SETTLE: Duration = Duration::from_secs(300);
const CALM: Duration = Duration::from_secs(45);
/// Everybody reaches everybody this long after all was healed, if not on the best path.
const REACH: Duration = Duration::from_secs(60);
/// Who has left, and doesn't know it, has this long to find its planet again.
const HEARS: Duration = Duration::from_secs(30);
/// Who is admitted anew has this long for it.
const AGAIN: Duration = Duration::from_secs(20);
const STABLE: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(510);
/// Sessions that are renewed in each life, and how long a life may last until then.
const REKEYS: u64 = 4;
const LONGEST: Duration = Duration::from_secs(1_200);
const FAULT_GAP: (u64, u64) = (1_000, 25_000);
const LOOK: Duration = Duration::from_secs(2);
/// A path that was just taken has carried something both ways lately.
const RECENT: Duration = Duration::from_secs(12);
/// One that was kept beside another direct path, which it took over from, is asked less often.
const KEPT: Duration = Duration::from_secs(25 + 12);
const MAX_PENDING: usize = 50_000;
/// A small mesh that behaves as one of hundreds.
const LARGE: Thresholds = Thresholds {
    eager_peers: 1,
    idle: Duration::from_secs(20),
    in_vain: Duration::from_secs(10),
};
/// Of eight packets that a healed way of two lossy links carries.
const HEARD: u64 = 4;

/// What became of one life.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub faults: BTreeMap<Fault, u64>,
    pub digest: u64,
    pub nodes: u64,
    pub packets: (u64, u64),
    pub probes: u64,
    pub handshakes: u64,
    pub switches: u64,
    /// Sessions renewed between two nodes that both lived on.
    pub rekeys: u64,
    pub by_pair: BTreeMap<(usize, usize), u64>,
    pub settled: Duration,
    pub virtual_time: Duration,
    /// The longest time that anybody heard nothing of anybody, by fault and whether it was about others.
    pub worst: BTreeMap<(Fault, bool), Duration>,
}

pub struct Life {
    pub world: World,
    pub report: Report,
    /// In a patient life there is one fault at a time.
    is_patient: bool,
    /// Who has no traffic with another doesn't look after it.
    is_large: bool,
    /// Faults have begun, and not been healed.
    is_struck: bool,
    pub trial: Option<Trial>,
    paths: BTreeMap<(usize, usize), (u32, Option<PathView>)>,
    /// Both lives of a pair, and when its last handshake was.
    sessions: BTreeMap<(usize, usize), ((u32, u32), Moment)>,
    pub next_address: u8,
    pub verbose: bool,
    pub start: Moment,
}

/// Ways of all kinds between the sites.
fn link(world: &mut World, random: &mut Random) {
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
}

impl Life {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let planets = if random.chance(30.0) { 2 } else { 1 };
        let mut world = World::new(random.next(), planets);
        let is_patient = random.chance(20.0);
        let nodes = match random.range(0, 20) {
            0..=15 => random.range(2, 4),
            16..=18 => random.range(4, 7),
            _ if is_patient => 4,
            _ => random.range(7, 13),
        };
        let is_large = (3..7).contains(&nodes) && random.chance(30.0);
        if random.chance(60.0) {
            world.authority.life = Some(random.range(120, 600));
        }
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
            let node = world.node(site, kind);
            if random.chance(30.0) {
                world.add_v6(node);
            }
            if is_large {
                world.nodes[node].thresholds = LARGE;
            }
        }
        world.add_spare();
        world.add_thief();
        link(&mut world, &mut random);
        let start = world.net.now;
        Self {
            world,
            report: Report {
                nodes,
                ..Report::default()
            },
            paths: BTreeMap::new(),
            sessions: BTreeMap::new(),
            is_patient,
            is_large,
            is_struck: false,
            trial: None,
            next_address: 1,
            verbose: std::env::var_os("SIM_VERBOSE").is_some(),
            start,
        }
    }

    pub fn run(mut self) -> Report {
        if self.verbose {
            self.explain();
        }
        for planet in 0..self.world.planets.len() {
            self.world.start_planet(planet);
        }
        for node in 0..self.world.count() {
            let at = self.start + self.world.net.random.millis(0, 10_000);
            self.world.net.schedule(at, Work::Start { node });
        }
        self.world.net.schedule(self.start + JOIN, Work::Fault);
        self.world.net.schedule(self.start + LOOK, Work::Look);
        self.until(self.start + JOIN - Duration::from_secs(1));
        let troubles = self.troubles();
        assert!(troubles.is_empty(), "not well after the start: {troubles}");
        self.is_struck = true;
        self.until(self.faults_end());
        self.heal();
        self.is_struck = false;
        let healed = self.world.net.now;
        self.settle(healed);
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
        while self.report.rekeys < REKEYS {
            let lived = self.world.net.now.since(self.start);
            assert!(
                lived < LONGEST,
                "{} rekeys in {lived:?}",
                self.report.rekeys
            );
            self.until(self.world.net.now + LOOK);
        }
        if self.verbose && !self.is_well() {
            self.explain();
        }
        assert!(self.is_well(), "well no more: {}", self.troubles());
        self.talk_all();
        if self.world.net.random.chance(30.0) && self.world.planets[0].rules.is_some() {
            self.put_one_out();
        }
        self.finish()
    }

    /// Waits until all is as well as it can be.
    fn settle(&mut self, healed: Moment) {
        // A control connection takes half a minute to be gone and back.
        self.until(healed + CALM);
        let reach = healed + REACH;
        let mut has_talked = false;
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
            if !has_talked && self.world.net.now >= reach {
                has_talked = true;
                self.talk_all();
            }
            self.until(self.world.net.now + LOOK);
        }
    }

    /// Everybody hears from everybody.
    fn talk_all(&mut self) {
        let from = self.world.net.now;
        let before = self.world.watch.counts.clone();
        self.all_pairs(|life, a, b| {
            let until = from + Duration::from_secs(4);
            life.world.talk(a, b, Duration::from_millis(500), until);
        });
        self.until(from + Duration::from_secs(8));
        self.all_pairs(|life, a, b| {
            let count = |of: &BTreeMap<_, u64>| of.get(&(a, b)).copied().unwrap_or(0);
            let arrived = count(&life.world.watch.counts) - count(&before);
            if life.verbose && arrived < HEARD {
                life.explain();
            }
            assert!(
                arrived >= HEARD,
                "{b} hears {arrived} of 8 packets from {a}"
            );
        });
    }

    /// Nobody knows a revoked node any more, nor hears from it.
    fn put_one_out(&mut self) {
        let nodes = self.world.count();
        let out = self.world.net.random.range(0, nodes as u64) as usize;
        self.revoke(out);
        self.world.watch.revoked.insert(out);
        self.until(self.world.net.now + Duration::from_secs(20));
        let from = self.world.net.now;
        for other in (0..nodes).filter(|other| *other != out) {
            let until = from + Duration::from_secs(3);
            self.world
                .talk(out, other, Duration::from_millis(500), until);
            self.world
                .talk(other, out, Duration::from_millis(500), until);
        }
        self.until(from + Duration::from_secs(6));
        for other in (0..nodes).filter(|other| *other != out) {
            let views = self.world.nodes[other]
                .engine
                .as_ref()
                .unwrap()
                .peers(self.world.now());
            let id = Some(self.world.nodes[out].id);
            assert!(
                views.iter().all(|view| view.id != id),
                "{other} still knows {out}"
            );
            for pair in [(out, other), (other, out)] {
                let last = self.world.watch.last_packet.get(&pair);
                assert!(
                    last.is_none_or(|at| *at < from),
                    "{pair:?} talk after the revocation"
                );
            }
        }
    }

    fn all_pairs(&mut self, mut work: impl FnMut(&mut Self, usize, usize)) {
        for a in 0..self.world.count() {
            for b in (0..self.world.count()).filter(|b| *b != a) {
                work(self, a, b);
            }
        }
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
                    Work::Over => self.trial_over(),
                    Work::Fault if self.is_patient => self.try_next(),
                    Work::Fault => {
                        let random = &mut self.world.net.random;
                        let at = self.world.net.now + random.millis(FAULT_GAP.0, FAULT_GAP.1);
                        if at < self.faults_end() {
                            self.world.net.schedule(at, Work::Fault);
                        }
                        self.fault();
                    }
                    _ => self.look(),
                }
            }
            if !paused {
                return;
            }
        }
    }

    pub fn faults_end(&self) -> Moment {
        self.start + FAULTS_END
    }

    /// Looks at every node's view of every other.
    fn look(&mut self) {
        let now = self.world.net.now;
        self.world.net.schedule(now + LOOK, Work::Look);
        self.world.note_candidates();
        self.world.look_at_leavers();
        assert!(
            self.world.net.pending() < MAX_PENDING,
            "{} things are pending",
            self.world.net.pending()
        );
        for from in 0..self.world.count() {
            let Some(engine) = &self.world.nodes[from].engine else {
                continue;
            };
            let astray = engine.astray();
            assert!(astray.is_none(), "node {from}: {}", astray.unwrap());
            for view in engine.peers(self.world.now_of(from)) {
                self.look_at(from, &view);
            }
        }
        self.measure_gaps();
        if self.trial.is_some() {
            self.talk_on(EVERY, now + LOOK);
        } else if self.is_large && !self.is_struck {
            self.talk_on(LOOK, now + LOOK);
        }
        self.chat();
    }

    fn look_at(&mut self, from: usize, view: &PeerView) {
        let now = self.world.net.now;
        let life = self.world.nodes[from].life;
        let to = self
            .world
            .nodes
            .iter()
            .position(|node| Some(node.id) == view.id);
        let Some(to) = to else {
            let id = view.id.unwrap();
            assert!(
                self.world.watch.former.contains(&id) || self.world.watch.may_know(&id, view.state),
                "{from} knows {id} as {:?}: {:?}",
                view.state,
                view.why
            );
            return;
        };
        self.note_session((from, to), view.handshake_s);
        let direct = view.path.as_ref().is_some_and(PathView::is_direct);
        assert!(
            direct || view.why.is_some(),
            "{from} -> {to} is not direct without a reason"
        );
        assert!(view.state != PeerState::Up || view.path.is_some());
        let before = self.paths.insert((from, to), (life, view.path.clone()));
        if before == Some((life, view.path.clone())) {
            return;
        }
        let was_direct =
            matches!(&before, Some((of, Some(path))) if *of == life && path.is_direct());
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
            self.proven((from, to), endpoint, if was_direct { KEPT } else { RECENT });
        }
    }

    /// Counts a renewed session once, at the node with the lower number.
    fn note_session(&mut self, (from, to): (usize, usize), age: Option<u64>) {
        let Some(age) = age.filter(|_| from < to) else {
            return;
        };
        let lives = (self.world.nodes[from].life, self.world.nodes[to].life);
        let at = self.world.net.now.since_start() - Duration::from_secs(age);
        let at = Moment::from_start(at);
        let before = self.sessions.insert((from, to), (lives, at));
        // Ages are whole seconds, so the same handshake may seem to move by one.
        if before.is_some_and(|(of, last)| of == lives && at > last + LOOK) {
            self.report.rekeys += 1;
        }
    }

    /// A path that was taken must have carried something in both directions of late.
    fn proven(&self, (from, to): (usize, usize), endpoint: std::net::SocketAddr, recent: Duration) {
        let (now, watch) = (self.world.net.now, &self.world.watch);
        let arrival = watch.arrivals.get(&(from, endpoint));
        let machines = || self.world.machines_of(to);
        let came = arrival.is_some_and(|(at, sender)| {
            let is_his = |machine: usize| *sender == self.world.nodes[machine].host;
            now.since(*at) < recent && machines().any(is_his)
        });
        let here = self.world.nodes[from].host;
        let went = machines().any(|machine| {
            let last = watch.between.get(&(here, machine));
            last.is_some_and(|at| now.since(*at) < recent)
        });
        assert!(
            came && went,
            "{from} -> {to} took {endpoint}, which carried nothing (in {came}, out {went})"
        );
    }

    /// Somebody talks to somebody now and then.
    fn chat(&mut self) {
        let nodes = self.world.count() as u64;
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

    /// Puts all right, and admits anew whose membership has ended.
    fn heal(&mut self) {
        self.leave_trials();
        self.world.put_right();
        self.until(self.world.net.now + Duration::from_secs(5));
        let latest = self.world.net.now + HEARS;
        while self.world.has_to_hear() && self.world.net.now < latest {
            self.until(self.world.net.now + LOOK);
        }
        for node in 0..self.world.count() {
            if self.world.is_over(node) {
                self.world.leave(node);
                self.until(self.world.net.now + Duration::from_secs(2));
                self.world.join(node);
                self.until(self.world.net.now + AGAIN);
            }
        }
    }
}
