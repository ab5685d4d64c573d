//! What is put right after it went wrong.

use std::time::Duration;

use podmesh_engine::error::JoinError;
use podmesh_proto::local_api::{HealthView, NodeState};

use super::{PlanetHost, Work, World};

/// Who is connected to its planet has heard after this that it has left.
const HEARD: Duration = Duration::from_secs(5);
/// What a node says that has heard that it has left.
const LEFT: &str = "MESH-NODE-005";
/// What a node says whose membership isn't renewed, and how it goes on if it never will be.
const UNRENEWED: (&str, &str) = ("MESH-NODE-004", "leave and join");
/// After this an operator tries again to join.
const AGAIN: Duration = Duration::from_secs(5);

/// One thing that is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    Clock {
        node: usize,
    },
    PlanetClock {
        planet: usize,
    },
    Disk {
        node: usize,
    },
    /// A node that has left joins.
    Join {
        node: usize,
    },
    /// A node whose membership has ended for good is admitted anew.
    Readmit {
        node: usize,
    },
    /// A machine is put back to an earlier copy of its disk.
    GoBack {
        node: usize,
    },
    /// The copy of a machine is switched off.
    Twin,
}

impl World {
    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Clock { node } => self.nodes[node].clock = 0,
            Mend::PlanetClock { planet } => self.mend_planet_clock(planet),
            Mend::Disk { node } => self.nodes[node].disk.refuses = false,
            Mend::Join { node } => self.join(node),
            Mend::Readmit { node } if self.is_over(node) => self.leave(node),
            Mend::Readmit { .. } => {}
            Mend::GoBack { node } => self.go_back(node),
            Mend::Twin => self.end_twin(),
        }
    }

    fn mend_planet_clock(&mut self, planet: usize) {
        let planet = &mut self.planets[planet];
        if planet.clock != 0 {
            (planet.clock, planet.mended) = (0, self.net.now);
        }
    }

    fn end_twin(&mut self) {
        if self.has_twin() {
            self.stop(self.count());
        }
    }

    /// Cuts all ways to and from a node's site, or mends them.
    pub fn isolate(&mut self, node: usize, cut: bool) {
        let site = self.net.hosts[self.nodes[node].host].site;
        for ((from, to), link) in &mut self.net.links {
            if *from == site || *to == site {
                link.cut = cut;
            }
        }
    }

    /// So many of a hundred datagrams get lost on every way.
    pub fn lose(&mut self, percent: f64) {
        for link in self.net.links.values_mut() {
            link.loss = percent;
        }
    }

    /// Puts everything right but memberships that have ended.
    pub fn put_right(&mut self) {
        self.end_twin();
        for link in self.net.links.values_mut() {
            (link.cut, link.loss) = (false, link.loss.min(2.0));
        }
        for planet in 0..self.planets.len() {
            self.mend_planet_clock(planet);
            if self.planets[planet].rules.is_none() {
                self.start_planet(planet);
            }
        }
        for node in 0..self.count() {
            self.nodes[node].clock = 0;
            self.nodes[node].disk.refuses = false;
            if self.nodes[node].engine.is_none() {
                self.start(node);
            }
            self.join(node);
        }
    }

    /// Whether a node has ended by its own and the right clock, or has left or can't be renewed and says so; an
    /// operator has to help.
    pub fn is_over(&self, node: usize) -> bool {
        let now = self.now();
        let Some(engine) = &self.nodes[node].engine else {
            return false;
        };
        let status = engine.status(now);
        let in_vain = |entry: &HealthView| {
            let next = entry.next.as_deref().unwrap_or_default();
            entry.code == UNRENEWED.0 && next.starts_with(UNRENEWED.1)
        };
        let says_so = |entry: &HealthView| entry.code == LEFT || in_vain(entry);
        if status.health.iter().any(says_so) {
            return true;
        }
        let expires = status.node.and_then(|own| own.expires);
        // Both are RFC 3339 in UTC, so that they sort as text.
        let over = expires.is_some_and(|at| at < now.unix.minus(299).to_string());
        status.state == NodeState::Ended && over
    }

    /// What became of a join. Nobody is admitted by a planet whose clock is wrong; the operator tries again.
    pub(super) fn joined(&mut self, index: usize, result: Result<(), JoinError>) {
        let Err(error) = result else {
            self.nodes[index].forgot = false;
            return;
        };
        if error == JoinError::Cancelled {
            return;
        }
        // It may be right again by the time that the answer is here, or the machine awake to hear it.
        let asked = self.nodes[index].applied;
        let was_wrong = |planet: &PlanetHost| planet.clock != 0 || planet.mended >= asked;
        let wrong = self.planets.iter().any(was_wrong)
            || error.to_string().contains("this planet's clock says");
        // It was asked for before the machine or the planet was off, for longer than memberships last here.
        let age = self.net.now.since(self.nodes[index].applied).as_secs();
        let is_over = self.authority.life.is_some_and(|life| age >= life)
            && error.to_string().contains("the membership would be over");
        assert!(
            wrong || is_over,
            "node {index} does not join, {age} s after it asked for it: {error}"
        );
        self.join_later(index);
    }

    pub(super) fn join_later(&mut self, index: usize) {
        let join = Work::Mend(Mend::Join { node: index });
        self.net.schedule(self.net.now + AGAIN, join);
    }

    /// The machine is put back to the copy of its disk, if there is one and no other has its identity.
    pub fn go_back(&mut self, node: usize) {
        let Some(image) = self.nodes[node].image.take() else {
            return;
        };
        if self.twin(node).is_none() {
            self.nodes[node].forgot = true;
            let was_on = self.nodes[node].engine.is_some();
            self.stop(node);
            self.write_image(node, image);
            if was_on {
                self.start(node);
            }
        }
    }

    /// Whether a node takes itself for a member, and the planet that gives the leases, to which it is connected,
    /// knows that it has left.
    fn is_unaware(&self, node: usize) -> bool {
        let states = [NodeState::Online, NodeState::PlanetsDown];
        let rules = self.planets[0].rules.as_ref();
        let left = rules.is_some_and(|rules| {
            let books = rules.books();
            let id = &self.nodes[node].id;
            let is_member = books.entry(id).is_some_and(|entry| entry.member.is_some());
            books.departure(id).is_some() && !is_member
        });
        left && self
            .state(node)
            .is_some_and(|state| states.contains(&state))
    }

    /// Whether a node may still have to hear that it has left: others may have to tell its planet.
    pub fn has_to_hear(&self) -> bool {
        (0..self.count())
            .any(|node| self.is_unaware(node) || (self.nodes[node].forgot && !self.is_over(node)))
    }

    /// Nobody takes itself for a member for long whose planet knows better.
    pub fn look_at_leavers(&mut self) {
        for node in 0..self.count() {
            if !self.is_unaware(node) || !self.has_planet(node, 0) {
                self.watch.unaware.remove(&node);
                continue;
            }
            let now = self.net.now;
            let since = *self.watch.unaware.entry(node).or_insert(now);
            assert!(
                now.since(since) < HEARD,
                "node {node} has left and calls itself {:?}, {:?} after it has found its planet",
                self.state(node),
                now.since(since)
            );
        }
    }
}
