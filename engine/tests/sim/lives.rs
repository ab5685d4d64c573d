//! Many random lives, and the same with rules that are broken on purpose.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podmesh_engine::mutation::{self, Mutant};

use crate::asleep::falls_asleep;
use crate::bounds::{ASIDE, most};
use crate::faults::Fault;
use crate::life::{Life, Report};
use crate::moves::moves;
use crate::reborn::{renews, tells_by_others, tells_by_probes};
use crate::returns::{comes_back_often, start_at_once};
use crate::twins::{copy_goes, left_behind};
use crate::walk::Walk;

pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Lives of all these seeds, on two threads, with a rule broken or not; what failed, with its seed.
/// Ends at the first failure if a rule is broken.
fn lives(
    seeds: Range<u64>,
    mutant: Option<Mutant>,
    live: impl Fn(u64) -> Report + Sync,
) -> (Vec<Report>, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let (reports, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                mutation::set(mutant);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = mutant.is_some() && !failures.lock().unwrap().is_empty();
                    if seed >= seeds.end || enough {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| live(seed))) {
                        Ok(report) => reports.lock().unwrap().push(report),
                        Err(panic) => {
                            let text = panic.downcast_ref::<String>().cloned();
                            let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
                            let text = text.or(literal).unwrap_or_default();
                            let failure = format!("seed {seed}: {text}");
                            if mutant.is_none() {
                                println!("failed: {failure}");
                            }
                            failures.lock().unwrap().push(failure);
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

/// Panics of lives are told once, with their seed.
fn hush() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn random_life(seed: u64) -> Report {
    Life::new(seed).run()
}

fn walk(seed: u64) -> Report {
    Walk::new(seed).run()
}

fn copied(seed: u64) -> Report {
    copy_goes(seed);
    left_behind(seed);
    Report::default()
}

/// Rules whose breach shows when a copy is switched off at a bad moment, which is rare in random lives.
const COPIED: [Mutant; 4] = [
    Mutant::TwinForgotten,
    Mutant::LivesSaidOnce,
    Mutant::FormerRecordStands,
    Mutant::SameLifeUnshown,
];

/// Rules whose breach shows where one thing comes to another that is rare in random lives.
const DIRECTED: [(Mutant, fn(u64)); 7] = [
    (Mutant::EchoesAreTraffic, falls_asleep),
    (Mutant::FormerLifeRemembered, renews),
    (Mutant::LifeUnnamed, tells_by_probes),
    (Mutant::HandshakeProvesNothing, comes_back_often),
    (Mutant::LifeNotPassedOn, tells_by_others),
    (Mutant::GoesBackAgain, start_at_once),
    (Mutant::WithdrawnStays, moves),
];

/// Rules of lives, disks, clocks and large meshes.
const WALKED: [Mutant; 14] = [
    Mutant::RenewalUnsaved,
    Mutant::RequestUnsaved,
    Mutant::RotationUnsaved,
    Mutant::RotationForgotten,
    Mutant::KeysWipedEarly,
    Mutant::FloorIgnored,
    Mutant::FormerLifeProbes,
    Mutant::StandingForgotten,
    Mutant::RestForgets,
    Mutant::EndedForGood,
    Mutant::UntimelyForgotten,
    Mutant::SleepsEarly,
    Mutant::NeverWakes,
    Mutant::ReplaysRaise,
];

/// `SIM_WALKS` says how many.
#[test]
fn a_minute_after_all_was_put_right_everybody_reaches_everybody() {
    let (first, count) = (number("SIM_FIRST", 0), number("SIM_WALKS", 40));
    let started = Instant::now();
    let (reports, failures) = lives(first..first + count, None, walk);
    let hours = reports.iter().map(|report| report.virtual_time.as_secs());
    println!(
        "figure {} walks in {:.1?}: {} virtual hours",
        reports.len(),
        started.elapsed(),
        hours.sum::<u64>() / 3_600
    );
    assert!(
        failures.is_empty(),
        "{} of {count} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn random_life_ends_well() {
    let (first, count) = (number("SIM_FIRST", 0), number("SIM_SEEDS", 300));
    let started = Instant::now();
    println!("figure seeds {first} to {}", first + count - 1);
    let (reports, failures) = lives(first..first + count, None, random_life);
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
        "figure {} lives in {:.1?}: {} virtual hours",
        reports.len(),
        started.elapsed(),
        sum(|report| report.virtual_time.as_secs()) / 3_600
    );
    println!(
        "figure faults {faults:?}, {} per life",
        faults.values().sum::<u64>() / count
    );
    println!(
        "figure {} nodes, {} rekeys (at least {} per life), {} probes, {} handshakes, {} switches",
        sum(|report| report.nodes),
        sum(|report| report.rekeys),
        reports
            .iter()
            .map(|report| report.rekeys)
            .min()
            .unwrap_or_default(),
        sum(|report| report.probes),
        sum(|report| report.handshakes),
        sum(|report| report.switches)
    );
    println!(
        "figure pod packets sent {}, arrived {}",
        sum(|report| report.packets.0),
        sum(|report| report.packets.1)
    );
    println!(
        "figure well after: median {:?}, 99 % {:?}, last {:?}",
        settled.get(settled.len() / 2),
        settled.get(settled.len() * 99 / 100),
        settled.last()
    );
    print_worst(&reports);
    assert!(
        failures.is_empty(),
        "{} of {count} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// How long anybody was out, by fault, with its bound.
fn print_worst(reports: &[Report]) {
    let mut worst: BTreeMap<(Fault, bool), (Duration, u64)> = BTreeMap::new();
    for (of, gap) in reports.iter().flat_map(|report| &report.worst) {
        let (longest, times) = worst.entry(*of).or_default();
        *longest = gap.max(longest).to_owned();
        *times += 1;
    }
    for ((fault, aside), (longest, lives)) in worst {
        let most = if aside { ASIDE } else { most(fault) };
        let whom = if aside { "others" } else { "those" };
        println!("figure out after {fault:?}, {whom}: {longest:.1?} of {most:?} in {lives} lives");
    }
}

#[test]
fn the_same_seed_gives_the_same_life() {
    for seed in [3, 4] {
        let once = Life::new(seed).run().digest;
        assert_eq!(Life::new(seed).run().digest, once, "seed {seed}");
    }
}

/// `SIM_MUTANT` says which one, if not all are to be played.
#[test]
fn every_broken_rule_is_noticed() {
    let most = number("SIM_MUTANT_SEEDS", 200);
    hush();
    let mut unnoticed = Vec::new();
    let only = std::env::var("SIM_MUTANT").ok();
    for mutant in mutation::ALL {
        if only
            .as_ref()
            .is_some_and(|only| *only != format!("{mutant:?}"))
        {
            continue;
        }
        let first = number("SIM_FIRST", 0);
        let directed = DIRECTED.iter().find(|(of, _)| *of == mutant);
        let live = |seed| match directed {
            Some((_, play)) => {
                play(seed);
                Report::default()
            }
            None if COPIED.contains(&mutant) => copied(seed),
            None if WALKED.contains(&mutant) => walk(seed),
            None => random_life(seed),
        };
        let (reports, failures) = lives(first..first + most, Some(mutant), live);
        match failures.first() {
            Some(failure) => {
                let failure: String = failure.chars().take(150).collect();
                println!(
                    "figure {mutant:?} noticed after {} lives: {failure}",
                    reports.len()
                );
            }
            None => unnoticed.push(mutant),
        }
    }
    let _ = std::panic::take_hook();
    assert!(
        unnoticed.is_empty(),
        "not noticed in {most} lives: {unnoticed:?}"
    );
}
