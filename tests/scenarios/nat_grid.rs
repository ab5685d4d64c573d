//! Every kind of NAT against every kind: who gets a direct path, and how fast.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use podmesh_lab::{Lab, Link, Mesh, Nat, Node, mesh};

use crate::world;

/// What lies between the two sites, and between each of them and the planet.
#[derive(Clone, Copy)]
struct Way {
    between: Link,
    to_planet: Duration,
}

const FAR: Way = Way {
    between: Link::delay(Duration::from_millis(20)),
    to_planet: Duration::from_millis(15),
};
const NEXT_DOOR: Way = Way {
    between: Link::NEXT_DOOR,
    to_planet: Duration::ZERO,
};

/// Openers are this much ahead of the first probes.
const HEAD_START: Duration = Duration::from_millis(10);

/// A direct path must be there this long after the second node has joined.
const LIMIT: Duration = Duration::from_secs(10);

/// The pairs that no rule of NAT lets through: a mapping per destination on one side and a filter
/// by port on the other. Everything else is direct.
const RELAYED: [(Nat, Nat); 3] = [
    (Nat::PortRestricted, Nat::Symmetric),
    (Nat::Poisonable, Nat::Symmetric),
    (Nat::Symmetric, Nat::Symmetric),
];

#[test]
fn each_pair_of_nat_kinds_connects_as_its_table_says() {
    let pairs: Vec<(Nat, Nat)> = Nat::ALL
        .iter()
        .enumerate()
        .flat_map(|(at, left)| Nat::ALL[at..].iter().map(|right| (*left, *right)))
        .collect();
    assert_eq!(pairs.len(), 21);
    let runs = world::times(1, 5);
    let plays: Vec<(Nat, Nat)> = pairs.iter().flat_map(|pair| vec![*pair; runs]).collect();
    let outcomes = play_all(FAR, &plays);

    println!(
        "figure bound: {:.0} ms from the introduction to the direct path",
        bound().as_secs_f64() * 1e3
    );
    let mut wrong = Vec::new();
    for (left, right) in pairs {
        let mut direct = Vec::new();
        for outcome in &outcomes[&(left, right)] {
            match outcome {
                Ok(Some(time)) => direct.push(*time),
                Ok(None) => {}
                Err(error) => wrong.push(format!("{}x{}: {error}", left.label(), right.label())),
            }
        }
        direct.sort();
        let seen = match direct.get(direct.len() / 2) {
            Some(median) => format!("direct, median {:.0} ms", median.as_secs_f64() * 1e3),
            None => "relayed".to_owned(),
        };
        println!("figure {} x {}: {seen}", left.label(), right.label());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn two_poisonable_nats_are_punched_every_time() {
    let runs = world::times(20, 20);
    let pair = (Nat::Poisonable, Nat::Poisonable);
    let outcomes = play_all(FAR, &vec![pair; runs]);
    let direct = outcomes[&pair]
        .iter()
        .filter(|outcome| matches!(outcome, Ok(Some(_))))
        .count();
    assert_eq!(direct, runs, "{:?}", outcomes[&pair]);
}

/// Two routers on one wire: what leaves the one is at the other within microseconds, so no instant
/// is exact enough, and no time to live ends between them.
#[test]
fn two_poisonable_nats_next_door_are_punched_every_time() {
    let runs = world::times(6, 20);
    let pair = (Nat::Poisonable, Nat::Poisonable);
    let outcomes = play_all(NEXT_DOOR, &vec![pair; runs]);
    let times: Vec<_> = outcomes[&pair].iter().flatten().flatten().collect();
    println!(
        "figure next door: {} of {runs} direct, the slowest after {:?}",
        times.len(),
        times.iter().max()
    );
    assert_eq!(times.len(), runs, "{:?}", outcomes[&pair]);
}

/// What a play ended with: the time to the direct path, or none if the pair is relayed for good.
type Outcome = Result<Option<Duration>, String>;

/// Plays all pairs, two at a time.
fn play_all(way: Way, plays: &[(Nat, Nat)]) -> BTreeMap<(Nat, Nat), Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(BTreeMap::<_, Vec<Outcome>>::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(pair) = plays.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let outcome = play(way, *pair).map_err(|error| format!("{error:#}"));
                    outcomes
                        .lock()
                        .unwrap()
                        .entry(*pair)
                        .or_default()
                        .push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

fn play(way: Way, (left, right): (Nat, Nat)) -> Result<Option<Duration>> {
    let mut plan = Lab::plan(&format!("{}x{}", left.label(), right.label()));
    plan.planet("planet-1");
    plan.site("left").nat(left);
    plan.site("right").nat(right);
    plan.node("left-1").at("left");
    plan.node("right-1").at("right");
    plan.link("left", "right", way.between);
    plan.link("right", "left", way.between);
    plan.delay("left", "planet-1", way.to_planet);
    plan.delay("right", "planet-1", way.to_planet);
    let lab = plan.up()?;
    let outcome = meet(&lab, RELAYED.contains(&(left, right)));
    if outcome.is_err() {
        lab.keep_logs();
    }
    outcome
}

fn meet(lab: &Lab, relayed: bool) -> Result<Option<Duration>> {
    let mesh = Mesh::found(lab, "planet-1")?;
    let nodes = world::nodes(lab);
    for node in &nodes {
        mesh.join(node)
            .with_context(|| format!("{} can't join", node.name()))?;
    }
    let joined = Instant::now();
    if relayed {
        mesh.wait_for(&nodes, "a relayed path", LIMIT, mesh::is_relayed)?;
        stays_relayed(&mesh, lab, joined)?;
        return Ok(None);
    }
    mesh.wait_for(&nodes, "a direct path", LIMIT, mesh::is_direct)?;
    for peer in nodes.iter().flat_map(|node| node.peers()).flatten() {
        ensure!(
            mesh::is_direct(&peer),
            "the direct path did not last: {peer:?}"
        );
    }
    let times = nodes.iter().map(|node| time_to_direct(node));
    Ok(times.collect::<Result<Vec<_>>>()?.into_iter().max())
}

/// From the moment at which a node knows its only peer to the moment at which the direct path
/// carries data, as its log says: asking meshctl all the time would be too coarse a clock.
fn time_to_direct(node: &Node) -> Result<Duration> {
    let log = fs::read_to_string(node.log())?;
    let first = |words: &[&str]| -> Result<f64> {
        let line = log
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        line.and_then(second_of_day)
            .with_context(|| format!("no {words:?} in the log:\n{log}"))
    };
    let known = first(&["a member is known peer="])?;
    let direct = first(&[" path peer=", " path=direct "])?;
    Ok(Duration::from_secs_f64(
        (direct - known).rem_euclid(86_400.0),
    ))
}

/// The time of day at the begin of a log line such as `2026-11-21T04:01:12.424557Z  INFO ...`.
fn second_of_day(line: &str) -> Option<f64> {
    let (_, time) = line
        .split_once(' ')?
        .0
        .trim_end_matches('Z')
        .split_once('T')?;
    let parts: Vec<f64> = time
        .split(':')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let [hours, minutes, seconds] = parts[..] else {
        return None;
    };
    Some(hours * 3_600.0 + minutes * 60.0 + seconds)
}

/// A direct path where none is possible would be a fault of the lab; and each side says why.
fn stays_relayed(mesh: &Mesh<'_>, lab: &Lab, joined: Instant) -> Result<()> {
    while joined.elapsed() < LIMIT {
        for reach in mesh.reach(&world::nodes(lab))? {
            let Some(view) = &reach.view else {
                bail!("{}", reach.words())
            };
            ensure!(mesh::is_relayed(view), "not relayed: {}", reach.words());
            ensure!(
                view.why.as_ref().is_some_and(|why| !why.is_empty()),
                "no reason is given"
            );
        }
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// The introduction reaches the farther node; then probe, handshake and in-tunnel echo each take
/// one round trip, and the hold is over before the first probe leaves.
fn bound() -> Duration {
    let introduction = FAR.to_planet;
    let hold = HEAD_START + 2 * FAR.to_planet;
    introduction + hold + 3 * (2 * FAR.between.delay)
}
