//! Statements of the root: who lacks which, and telling no more than that.
//!
//! A planet says what it holds in sums; where this node holds anything else it says what it has there,
//! is told what it lacks, and tells what the planet asks for. Members do the same with each other
//! through their tunnels, in single packets, for the time when planets can't or won't. Nothing of it
//! is said in one go: one portion to each at a time, and the next one [`limits::REPORT_GAP`] later.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{NodeMessage, OLDEST_PROTOCOL};
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{BUCKETS, Edition, Held, PORTION, Statements, Summary, portions};
use podmesh_proto::time::{Moment, Now};

use crate::control::{ControlMessage, MAX_CONTROL};
use crate::engine::Engine;
use crate::limits;
use crate::membership::Members;
use crate::membership::lies::Source;
use crate::timers::Timer;

/// Bytes of statements in one packet to a member.
const PACKET: usize = MAX_CONTROL - 64;
/// Statements to a planet that hears them one by one, at a time.
const SINGLES: usize = 8;
/// Ids of one bucket that fit a packet; what is beyond is told although it is known.
const IDS: usize = 140;

/// What is under way with planets and members.
#[derive(Debug, Default)]
pub(super) struct Comparing {
    planets: BTreeMap<PlanetId, WithPlanet>,
    /// What members said that they hold, and what of it is still to be gone through.
    summaries: BTreeMap<NodeId, (Summary, u8, Moment)>,
    /// Who is asked, and until when its statements are what was asked for.
    asked: Option<(NodeId, Moment)>,
    /// What members lack.
    due: BTreeMap<NodeId, BTreeSet<[u8; 32]>>,
    /// When a member was told what it lacks in a bucket.
    answered: BTreeMap<(NodeId, u8), Moment>,
    /// Statements that were passed on at once, in the second from this moment on.
    pushed: Option<(Moment, u32)>,
    /// Whoever else may lack what was learned compares then.
    again_at: Option<Moment>,
    /// When revocations that change nothing any more are looked for again.
    look_at: Option<Moment>,
}

#[derive(Debug, Default)]
struct WithPlanet {
    summary: Option<Summary>,
    due: BTreeSet<[u8; 32]>,
    /// The planet asked, and waits for the end.
    asked: bool,
}

impl Engine {
    /// A planet that compares says first what it holds; one that doesn't is told everything.
    pub(super) fn begin_comparing(&mut self, planet: PlanetId, now: Now) {
        self.comparing.planets.remove(&planet);
        let Some(members) = &self.members else {
            return;
        };
        let protocol = self.planets.get(&planet).map(|planet| planet.protocol);
        if protocol != Some(OLDEST_PROTOCOL) {
            return;
        }
        let all = members.statements().iter().map(|(hash, _)| *hash);
        let with = WithPlanet {
            due: all.collect(),
            ..WithPlanet::default()
        };
        self.comparing.planets.insert(planet, with);
        let network = Box::new(members.network_statement().clone());
        self.say(planet, NodeMessage::Statement(network));
        self.timers.set_earlier(Timer::Statements, now.moment);
    }

    /// The control connection is gone, and with it what was under way on it.
    pub(super) fn end_comparing(&mut self, planet: &PlanetId) {
        self.comparing.planets.remove(planet);
    }

    /// A planet says what it holds.
    pub(super) fn planet_summarized(&mut self, planet: PlanetId, summary: Summary) {
        let Some(members) = &mut self.members else {
            return;
        };
        members.planet_holds(planet, &summary);
        let newer = edition(members).is_news_to(&summary.edition);
        let network = newer.then(|| Box::new(members.network_statement().clone()));
        let with = self.comparing.planets.entry(planet).or_default();
        with.summary = Some(summary);
        if let Some(network) = network {
            self.say(planet, NodeMessage::Statement(network));
        }
        self.compare_with(planet);
    }

    fn compare_with(&mut self, planet: PlanetId) {
        let with = self.comparing.planets.get(&planet);
        let summary = with.and_then(|with| with.summary.as_ref());
        let (Some(members), Some(summary)) = (&self.members, summary) else {
            return;
        };
        let statements = members.statements();
        let differing = statements.differing(summary).into_iter();
        let held = portions(differing.map(|bucket| statements.held(bucket)));
        for portion in held {
            self.say(planet, NodeMessage::Held(portion));
        }
    }

    /// A planet asks for what it lacks.
    pub(super) fn planet_holds(&mut self, planet: PlanetId, held: &[Held], now: Now) {
        let Some(members) = &self.members else {
            return;
        };
        let with = self.comparing.planets.entry(planet).or_default();
        for held in held.iter().take(usize::from(BUCKETS)) {
            with.due.extend(members.statements().missing(held));
        }
        with.asked = true;
        self.timers.set_earlier(Timer::Statements, now.moment);
    }

    /// Statements from a planet, among them what this node lacks.
    pub(super) fn planet_tells(
        &mut self,
        planet: PlanetId,
        told: &[Signed<RootStatement>],
        now: Now,
    ) {
        for statement in told {
            self.take_statement(statement, (Source::Planet(planet), false), now);
        }
    }

    /// What is said to a member whose path has just come up: enough to compare with.
    pub(super) fn own_summary(&self) -> Option<ControlMessage> {
        let members = self.members.as_ref()?;
        let summary = members.statements().summary(edition(members));
        Some(ControlMessage::Summary(Box::new(summary)))
    }

    /// A member says what it holds. While planets are there, they have the first word.
    pub(super) fn member_summarized(&mut self, from: NodeId, summary: Summary, now: Now) {
        let Some(members) = &self.members else {
            return;
        };
        let newer = edition(members).is_news_to(&summary.edition);
        let network = newer.then(|| Box::new(members.network_statement().clone()));
        let differs = !members.statements().differing(&summary).is_empty();
        if let Some(network) = network
            && self.may_answer((from, BUCKETS), now)
        {
            self.send_control(&from, &ControlMessage::Statement(network), now);
        }
        if differs && self.comparing.summaries.len() < limits::MAX_COMPARISONS {
            let patience = match self.planets.legs().next() {
                Some(_) => limits::PLANETS_FIRST,
                None => std::time::Duration::ZERO,
            };
            let due = now.moment + patience;
            self.comparing.summaries.insert(from, (summary, 0, due));
            self.timers.set_earlier(Timer::Statements, due);
        }
    }

    /// A member says what it holds in a bucket, to be told the rest of it.
    pub(super) fn member_holds(&mut self, from: NodeId, held: &Held, now: Now) {
        if held.bucket >= BUCKETS || !self.may_answer((from, held.bucket), now) {
            return;
        }
        let missing = self.members.as_ref();
        let missing = missing.map(|members| members.statements().missing(held));
        let due = self.comparing.due.entry(from).or_default();
        due.extend(missing.into_iter().flatten());
        self.timers.set_earlier(Timer::Statements, now.moment);
    }

    /// Each member is told each part of everything once in a while, whatever it says that it lacks.
    fn may_answer(&mut self, part: (NodeId, u8), now: Now) -> bool {
        let answered = &mut self.comparing.answered;
        answered.retain(|_, at| now.moment.since(*at) < limits::TOLD_AGAIN);
        answered.insert(part, now.moment).is_none()
    }

    /// Whether news of the root, from `source`, goes to everybody at once: a few do. Whoever may lack one
    /// of many compares when all are here.
    pub(super) fn may_push(&mut self, source: Source, now: Now) -> bool {
        let asked = self.comparing.asked;
        let expected = |(node, until)| source == Source::Member(node) && now.moment < until;
        if !asked.is_some_and(expected) {
            let second = self.comparing.pushed;
            let second = second.filter(|(from, _)| now.moment.since(*from) < limits::SECOND);
            let (from, pushed) = second.unwrap_or((now.moment, 0));
            self.comparing.pushed = Some((from, pushed.saturating_add(1)));
            if pushed < limits::PUSHED_PER_SECOND {
                return true;
            }
        }
        false
    }

    /// Notes news that is not passed on at once.
    pub(super) fn pass_on_later(&mut self, hash: [u8; 32], source: Source, now: Now) {
        for (planet, with) in &mut self.comparing.planets {
            let oldest = self.planets.get(planet);
            let oldest = oldest.is_some_and(|planet| planet.protocol == OLDEST_PROTOCOL);
            if oldest && source != Source::Planet(*planet) {
                with.due.insert(hash);
            }
        }
        self.compare_again(now);
    }

    fn compare_again(&mut self, now: Now) {
        let at = now.moment + limits::SECOND;
        self.comparing.again_at.get_or_insert(at);
        self.timers.set_earlier(Timer::Statements, at);
    }

    /// The next portion to everybody who lacks something.
    pub(super) fn tell_statements(&mut self, now: Now) {
        if self.members.is_none() {
            return;
        }
        let planets: Vec<PlanetId> = self.comparing.planets.keys().copied().collect();
        let mut more = false;
        for planet in planets {
            more |= self.tell_planet(planet);
        }
        let members: Vec<NodeId> = self.comparing.due.keys().copied().collect();
        for node in members {
            more |= self.tell_member(node, now);
        }
        if self.comparing.again_at.is_some_and(|at| now.moment >= at) {
            self.comparing.again_at = None;
            self.compare_with_all(now);
        }
        self.ask_members(now);
        if more {
            let next = now.moment + limits::REPORT_GAP;
            self.timers.set_earlier(Timer::Statements, next);
        }
        let summaries = self.comparing.summaries.values();
        let waiting = summaries.map(|(.., due)| *due).min();
        for at in waiting.into_iter().chain(self.comparing.again_at) {
            let at = at.max(now.moment + limits::REPORT_GAP);
            self.timers.set_earlier(Timer::Statements, at);
        }
    }

    fn tell_planet(&mut self, planet: PlanetId) -> bool {
        let protocol = self.planets.get(&planet).map(|planet| planet.protocol);
        let singly = protocol == Some(OLDEST_PROTOCOL);
        let (Some(members), Some(with)) = (&self.members, self.comparing.planets.get_mut(&planet))
        else {
            return false;
        };
        let most = if singly { SINGLES } else { usize::MAX };
        let portion = take_portion(members, &mut with.due, (most, PORTION));
        let ends = with.due.is_empty() && std::mem::take(&mut with.asked);
        let more = !with.due.is_empty();
        if singly {
            for statement in portion {
                self.say(planet, NodeMessage::Statement(Box::new(statement)));
            }
            return more;
        }
        if !portion.is_empty() {
            self.say(planet, NodeMessage::Statements(portion));
        }
        if ends {
            self.say(planet, NodeMessage::Statements(Vec::new()));
        }
        more
    }

    fn tell_member(&mut self, node: NodeId, now: Now) -> bool {
        let (Some(members), Some(due)) = (&self.members, self.comparing.due.get_mut(&node)) else {
            return false;
        };
        let portion = take_portion(members, due, (usize::MAX, PACKET));
        let more = !due.is_empty();
        if !more {
            self.comparing.due.remove(&node);
        }
        if !portion.is_empty() {
            self.send_control(&node, &ControlMessage::Statements(portion), now);
        }
        more
    }

    pub(super) fn forget_spent_revocations(&mut self, now: Now) {
        if self.comparing.look_at.is_some_and(|at| now.moment < at) {
            return;
        }
        self.comparing.look_at = Some(now.moment + limits::SPENT_LOOK);
        if let Some(members) = &mut self.members
            && members.forget_spent_revocations(now.unix)
        {
            self.trust_changed(now);
        }
    }

    fn compare_with_all(&mut self, now: Now) {
        let planets: Vec<PlanetId> = self.planets.connected().collect();
        for planet in planets {
            self.compare_with(planet);
        }
        if let Some(message) = self.own_summary() {
            self.gossip(&message, None, now);
        }
    }

    /// Goes through what members hold, one member at a time and a few parts each.
    fn ask_members(&mut self, now: Now) {
        if self
            .comparing
            .asked
            .is_some_and(|(_, until)| now.moment < until)
        {
            return;
        }
        self.comparing.asked = None;
        let due = self.comparing.summaries.iter();
        let due = due.filter(|(_, (.., due))| *due <= now.moment);
        let Some(node) = due.min_by_key(|(_, (.., due))| *due).map(|(node, _)| *node) else {
            return;
        };
        let Some((summary, from, _)) = self.comparing.summaries.remove(&node) else {
            return;
        };
        let Some(members) = &self.members else {
            return;
        };
        let statements = members.statements();
        let differing = statements.differing(&summary).into_iter();
        let mut wanted = differing.filter(|bucket| *bucket >= from);
        let asked: Vec<Held> = wanted
            .by_ref()
            .take(limits::BUCKETS_ASKED)
            .map(|bucket| cut(statements.held(bucket)))
            .collect();
        let until = now.moment + limits::SECOND;
        if let Some(next) = wanted.next() {
            self.comparing
                .summaries
                .insert(node, (summary, next, until));
        }
        if !asked.is_empty() {
            self.comparing.asked = Some((node, until + limits::SECOND));
        }
        for held in asked {
            self.send_control(&node, &ControlMessage::Held(Box::new(held)), now);
        }
    }
}

fn cut(mut held: Held) -> Held {
    held.ids.truncate(IDS);
    held
}

fn take_portion(
    members: &Members,
    due: &mut BTreeSet<[u8; 32]>,
    (most, room): (usize, usize),
) -> Vec<Signed<RootStatement>> {
    let statements: &Statements = members.statements();
    let (mut portion, mut bytes) = (Vec::new(), 0);
    while portion.len() < most
        && let Some(hash) = due.first().copied()
    {
        let kept = statements.get(&hash);
        let size = kept.map_or(0, |kept| kept.signed.size());
        if bytes + size > room && !portion.is_empty() {
            break;
        }
        bytes += size;
        due.remove(&hash);
        portion.extend(kept.map(|kept| kept.signed.clone()));
    }
    portion
}

fn edition(members: &Members) -> Edition {
    Edition::of(members.network(), members.network_statement())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podmesh_proto::planet_api::{PROTOCOL, PlanetMessage, Refusal, RefusalCode};

    use super::*;
    use crate::output::{Output, PlanetEvent};
    use crate::testing::{START, World};

    fn revocations(world: &World, count: u32) -> Vec<Signed<RootStatement>> {
        let numbers = 0..count;
        let of = |number: u32| {
            let mut node = [7; 32];
            node[..4].copy_from_slice(&number.to_le_bytes());
            world.authority.say(&RootStatement::RevokeNode {
                network: world.authority.network.id,
                node: NodeId(node),
                issued: START.plus(u64::from(number)),
            })
        };
        numbers.map(of).collect()
    }

    fn teach(world: &mut World, node: usize, count: u32) {
        let (now, all) = (world.now, revocations(world, count));
        for statement in all {
            world.engines[node]
                .handle_statement(statement, now)
                .unwrap();
            while let Some(output) = world.engines[node].poll_output() {
                if let Output::Persist(stored) = output {
                    world.stored[node] = Some(stored);
                }
            }
        }
    }

    /// What the first node says to the planet in one turn.
    fn said(world: &mut World) -> Vec<NodeMessage> {
        let mut said = Vec::new();
        while let Some(output) = world.engines[0].poll_output() {
            if let Output::Planet { message, .. } = output {
                said.push(*message);
            }
        }
        said
    }

    fn planet_says(world: &mut World, message: PlanetMessage) -> Vec<NodeMessage> {
        let (planet, now) = (world.planet_id(), world.now);
        let event = PlanetEvent::Message(Box::new(message));
        world.engines[0].handle_planet(planet, event, now);
        said(world)
    }

    fn next_turn(world: &mut World) -> Vec<NodeMessage> {
        world.now.moment = world.now.moment + limits::REPORT_GAP;
        let now = world.now;
        world.engines[0].handle_timeout(now);
        said(world)
    }

    fn held(world: &World, node: usize) -> usize {
        let members = world.engines[node].members.as_ref();
        members.map_or(0, |members| members.statements().len())
    }

    #[test]
    fn a_planet_is_told_what_it_lacks_in_portions_and_nothing_else() {
        let mut world = World::new(1);
        world.join_all();
        teach(&mut world, 0, 3_000);
        world.run(Duration::from_secs(3));
        let mut theirs = Statements::default();
        let all = revocations(&world, 3_000);
        for statement in &all[..2_990] {
            theirs.insert(statement.clone(), statement.unverified().unwrap());
        }
        let first = planet_says(
            &mut world,
            PlanetMessage::Summary(theirs.summary(Edition::default())),
        );
        let (mut differing, mut messages) = (Vec::new(), 0);
        for message in first {
            messages += 1;
            if let NodeMessage::Held(held) = message {
                differing.extend(held.into_iter().filter(|held| theirs.lacks_of(held)));
            }
        }
        assert!(messages <= 2 && (1..=10).contains(&differing.len()));

        // A planet that has lost everything.
        let nothing = |bucket| Held {
            bucket,
            ids: Vec::new(),
        };
        let mut turn = planet_says(
            &mut world,
            PlanetMessage::Held((0..BUCKETS).map(nothing).collect()),
        );
        let (mut told, mut ended, mut most) = (0, 0, 0);
        for _ in 0..40 {
            most = most.max(turn.len());
            for message in turn {
                match message {
                    NodeMessage::Statements(portion) if portion.is_empty() => ended += 1,
                    NodeMessage::Statements(portion) => told += portion.len(),
                    _ => {}
                }
            }
            turn = next_turn(&mut world);
        }
        assert_eq!((told, ended), (3_000, 1));
        assert!(most <= 4, "{most} messages in one turn");
    }

    #[test]
    fn a_planet_of_the_oldest_version_is_told_one_by_one_and_not_flooded() {
        let mut world = World::new(1);
        world.join_all();
        teach(&mut world, 0, 1_000);
        let (planet, now) = (world.planet_id(), world.now);
        let version = |world: &World| match world.engines[0].hello(planet, b"exported") {
            Some(NodeMessage::Hello(hello)) => hello.protocol,
            _ => 0,
        };
        assert_eq!(version(&world), PROTOCOL);
        let refusal = Refusal {
            code: RefusalCode::Protocol,
            reason: "this planet speaks another version of the protocol".to_owned(),
            retry_in: None,
        };
        planet_says(&mut world, PlanetMessage::Refused(refusal));
        assert_eq!(version(&world), OLDEST_PROTOCOL);
        world.engines[0].begin_comparing(planet, now);
        let (mut told, mut most) = (0, 0);
        let mut turn = said(&mut world);
        for _ in 0..140 {
            most = most.max(turn.len());
            let single = |message: &&NodeMessage| matches!(message, NodeMessage::Statement(_));
            told += turn.iter().filter(single).count();
            turn = next_turn(&mut world);
        }
        assert_eq!(told, 1_001, "with the network");
        assert!(most <= 10, "{most} messages in one turn");
    }

    #[test]
    fn members_tell_each_other_everything_while_no_planet_is_there() {
        let mut world = World::new(3);
        world.join_all();
        world.off.insert(1);
        teach(&mut world, 0, 400);
        world.kill_planet();
        world.run(Duration::from_secs(5));
        world.off.remove(&1);
        world.restart(1);
        world.run(Duration::from_secs(60));
        for node in [0, 1, 2] {
            assert_eq!(held(&world, node), 400, "node {node}");
        }
        world.restart(1);
        assert_eq!(held(&world, 1), 400, "on disk");
    }

    #[test]
    fn a_member_that_lacks_everything_again_and_again_is_told_it_once_in_a_while() {
        let mut world = World::new(2);
        world.join_all();
        teach(&mut world, 0, 500);
        world.run(Duration::from_secs(2));
        let liar = world.engines[1].node_id();
        let mut told = 0;
        for _ in 0..20 {
            let now = world.now;
            for bucket in 0..=u8::MAX {
                let held = Held {
                    bucket,
                    ids: Vec::new(),
                };
                world.engines[0].member_holds(liar, &held, now);
            }
            let due = &world.engines[0].comparing.due;
            told += due.get(&liar).map_or(0, BTreeSet::len);
            world.run(Duration::from_secs(1));
            world.engines[0].comparing.due.clear();
        }
        assert_eq!(told, 500);
    }
}
