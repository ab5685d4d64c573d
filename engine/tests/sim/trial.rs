//! One fault at a time, and nothing else until its consequences must be over: how long is anybody out?

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_proto::local_api::{NodeState, PathView};
use podmesh_proto::time::Moment;

use crate::bounds::{ASIDE, most};
use crate::faults::{Blow, Fault};
use crate::life::Life;
use crate::watch::Gap;
use crate::whole::view;
use crate::world::Work;

/// Everybody talks to everybody, so often.
pub const EVERY: Duration = Duration::from_millis(500);
/// How long they talk before something goes wrong.
const WARM: Duration = Duration::from_secs(6);
/// All are as well as they can be before something goes wrong, at the latest after this.
const WELL: Duration = Duration::from_secs(300);
/// Whoever shares its identity with another machine for so long has noticed.
const NOTICED: Duration = Duration::from_secs(50);
/// A way that loses more than this percentage is none.
const LOSSY: f64 = 4.0;

/// What is tried.
pub struct Trial {
    begun: Moment,
    struck: Moment,
    blow: Option<Blow>,
    over: bool,
    /// Pairs that had a direct path when it struck.
    direct: Vec<(usize, usize)>,
}

impl Life {
    /// Work that is planned: the next fault, or the end of one.
    pub fn try_next(&mut self) {
        let now = self.world.net.now;
        let Some(trial) = &self.trial else {
            self.trial = Some(Trial {
                begun: now,
                struck: now,
                blow: None,
                over: false,
                direct: Vec::new(),
            });
            return self.fault_after(WARM);
        };
        let waited = now.since(trial.begun);
        if !self.is_well() {
            if self.verbose && waited >= WELL {
                self.explain();
            }
            assert!(waited < WELL, "not well {waited:?}: {}", self.troubles());
            return self.fault_after(Duration::from_secs(2));
        }
        let pairs = self.pairs();
        let direct = |pair: &(usize, usize)| self.is_direct(*pair);
        let direct = pairs.iter().copied().filter(direct).collect();
        let blow = self.fault();
        self.world.net.schedule(blow.end, Work::Over);
        self.trial = Some(Trial {
            begun: now,
            struck: now,
            blow: Some(blow),
            over: false,
            direct,
        });
        self.measure_gaps();
    }

    /// The fault is over, or its consequences must be.
    pub fn trial_over(&mut self) {
        self.measure_gaps();
        let Some(trial) = &mut self.trial else { return };
        let Some(blow) = trial.blow.clone() else {
            return;
        };
        if !trial.over {
            trial.over = true;
            let lived = blow.end.since(trial.struck);
            self.copied_say_so(&blow, lived);
            let at = self.world.net.now + most(blow.fault);
            self.world.net.schedule(at, Work::Over);
            return;
        }
        self.end_trial();
        let wait = self.world.net.random.millis(1_000, 8_000);
        self.fault_after(wait);
    }

    /// Who shares its identity with another machine for long says so.
    fn copied_say_so(&self, blow: &Blow, lived: Duration) {
        let copied = matches!(blow.fault, Fault::Copied | Fault::CopiedLive);
        let Some(node) = self.world.twin_of.filter(|_| copied && lived > NOTICED) else {
            return;
        };
        let Some(engine) = &self.world.nodes[node].engine else {
            return;
        };
        let health = engine.status(self.world.now_of(node)).health;
        assert!(
            health.iter().any(|entry| entry.code == "MESH-IDENTITY-002"),
            "{node} doesn't say that it has a twin, for {lived:.1?}: {health:?}"
        );
    }

    fn end_trial(&mut self) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        self.close_gaps(&trial);
        self.world.watch.gaps.clear();
    }

    /// Nothing is tried any more.
    pub fn leave_trials(&mut self) {
        self.trial = None;
        self.world.watch.gaps.clear();
    }

    fn fault_after(&mut self, wait: Duration) {
        let at = self.world.net.now + wait;
        if at < self.faults_end() {
            self.world.net.schedule(at, Work::Fault);
        } else {
            self.leave_trials();
        }
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let nodes = self.world.count();
        let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
        pairs.filter(|(a, b)| a != b).collect()
    }

    /// Everybody talks until the next look.
    pub fn talk_on(&mut self, every: Duration, until: Moment) {
        for (a, b) in self.pairs() {
            self.world.talk(a, b, every, until);
        }
    }

    /// Judges how long everybody has heard nothing of everybody.
    pub fn measure_gaps(&mut self) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        if trial.blow.is_some() {
            let now = self.world.net.now;
            for pair in self.pairs() {
                let may = self.may_meet(pair, &trial);
                let gaps = &mut self.world.watch.gaps;
                if may {
                    gaps.entry(pair).or_insert(Gap {
                        since: now,
                        longest: Duration::ZERO,
                    });
                } else if let Some(gap) = gaps.remove(&pair) {
                    self.judge(pair, gap.longest, &trial);
                }
            }
            self.close_gaps(&trial);
        }
        self.trial = Some(trial);
    }

    fn close_gaps(&mut self, trial: &Trial) {
        let now = self.world.net.now;
        let gaps: BTreeMap<_, _> = self.world.watch.gaps.clone();
        for (pair, gap) in gaps {
            self.judge(pair, gap.longest.max(now.since(gap.since)), trial);
        }
    }

    fn judge(&mut self, pair: (usize, usize), gap: Duration, trial: &Trial) {
        let Some(blow) = &trial.blow else { return };
        let aside = !blow.nodes.is_empty()
            && !blow.nodes.contains(&pair.0)
            && !blow.nodes.contains(&pair.1);
        let most = if aside { ASIDE } else { most(blow.fault) };
        if self.verbose && gap > most {
            self.explain();
        }
        assert!(
            gap <= most,
            "{pair:?} heard nothing for {gap:.1?} after {:?} {}",
            blow.fault,
            if aside { "of others" } else { "" }
        );
        let worst = self.report.worst.entry((blow.fault, aside)).or_default();
        *worst = gap.max(*worst);
    }

    fn is_direct(&self, (a, b): (usize, usize)) -> bool {
        let direct = |from, to| {
            let path = view(&self.world, from, to).and_then(|view| view.path);
            path.as_ref().is_some_and(PathView::is_direct)
        };
        direct(a, b) && direct(b, a)
    }

    /// Whether there is a way between two nodes that both may use.
    fn may_meet(&self, (a, b): (usize, usize), trial: &Trial) -> bool {
        let world = &self.world;
        let fit = |node: usize| {
            let host = &world.nodes[node];
            let right = host.clock == 0 || world.authority.life.is_none();
            host.engine.is_some()
                && right
                && world.twin(node).is_none()
                && matches!(
                    world.state(node),
                    Some(NodeState::Online | NodeState::PlanetsDown)
                )
        };
        let clocks = world.planets.iter().all(|planet| planet.clock == 0);
        if !fit(a) || !fit(b) || !(clocks || world.authority.life.is_none()) {
            return false;
        }
        let site = |host: usize| world.net.hosts[host].site;
        let (one, other) = (site(world.nodes[a].host), site(world.nodes[b].host));
        let direct = trial.direct.contains(&(a, b)) && self.passes(one, other);
        let relays = |planet: &crate::world::PlanetHost| {
            let place = site(planet.host);
            planet.rules.is_some() && self.passes(one, place) && self.passes(other, place)
        };
        direct || world.planets.iter().any(relays)
    }

    fn passes(&self, one: usize, other: usize) -> bool {
        let links = &self.world.net.links;
        let good = |pair| {
            links
                .get(&pair)
                .is_none_or(|link| !link.cut && link.loss <= LOSSY)
        };
        good((one, other)) && good((other, one))
    }
}
