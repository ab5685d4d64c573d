//! `bench`: podmesh against other tunnels, all in one run, on one link, turn by turn.
//!
//! Each round starts every system once, measures it and takes it down, so that whatever else the
//! machine does meanwhile meets them all. Figures are medians over the rounds; what counts are the
//! ratios between systems.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks"
)]

mod bars;
mod flood;
mod gauge;
mod ground;
mod iperf;
mod plot;
mod report;
mod systems;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

use podmesh_lab::registry;

use ground::{Ground, LinkMode};
use report::Report;
use systems::System;

const LEGEND: &str = "\
columns: one TCP stream, the same in reverse, four streams, one between pods; CPU time of both programs per
10^9 bytes; segments sent again; mean round trip idle, beside one's own stream, and of another peer beside it;
thousands of datagrams per second of 1,300 and of 64 bytes that pass without loss, and what arrives when four
times as many are sent; how many pings another peer answers meanwhile, and after how long, the worse of both;
memory of one program. MISS is a promise that this run didn't see kept; it is no error.";

/// podmesh against other tunnels on one machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// How often every system is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each stream
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=60))]
    seconds: u32,
    /// Only these systems, with commas between them: raw, vxlan, pipe, podmesh, podmesh-wide, boringtun,
    /// gotatun, wireguard-go, nebula, tinc
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Only this kind of link
    #[arg(long, value_enum)]
    link: Option<LinkMode>,
    /// Where other tunnels were installed to, before PATH
    #[arg(long, default_value = "target/bench/peers/bin")]
    peers: PathBuf,
    /// Where the figures go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        registry::tear_down();
    }));
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    registry::prepare();
    fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let systems = chosen(arguments)?;
    for mode in [LinkMode::Whole, LinkMode::Wire] {
        if arguments.link.is_some_and(|only| only != mode) {
            continue;
        }
        let report = measure(arguments, mode, &systems)?;
        println!("{}", report.table());
        println!("{}", bars::verdicts(&report));
        report.write(&arguments.out)?;
    }
    println!("{LEGEND}");
    println!(
        "figures and pictures: {}/dataplane*.json, dataplane*.svg",
        arguments.out.display()
    );
    Ok(())
}

/// The systems that were asked for and that this machine has.
fn chosen(arguments: &Arguments) -> Result<Vec<Box<dyn System>>> {
    let all = systems::all(&arguments.peers);
    for name in &arguments.systems {
        if !all.iter().any(|system| system.name() == name) {
            let names: Vec<&str> = all.iter().map(|system| system.name()).collect();
            bail!("no system is called {name}; there are {}", names.join(", "));
        }
    }
    let wanted = |name: &str| {
        arguments.systems.is_empty() || arguments.systems.iter().any(|wanted| wanted == name)
    };
    let mut systems = Vec::new();
    for system in all.into_iter().filter(|system| wanted(system.name())) {
        match system.version() {
            Ok(_) => systems.push(system),
            Err(error) => eprintln!("without {}: {error:#}", system.name()),
        }
    }
    Ok(systems)
}

fn measure(arguments: &Arguments, mode: LinkMode, systems: &[Box<dyn System>]) -> Result<Report> {
    let mut report = Report::new(mode);
    for round in 1..=arguments.rounds {
        for system in systems
            .iter()
            .filter(|system| system.takes_part(mode, round))
        {
            let begin = Instant::now();
            let ground = Ground::new(mode)?;
            let overlay = system
                .start(&ground)
                .and_then(|overlay| overlay.wait(&ground).map(|()| overlay))
                .with_context(|| format!("{} did not come up", system.name()))?;
            let sample = gauge::measure(&ground, &overlay, arguments.seconds, system.extent(mode))
                .with_context(|| format!("{} could not be measured", system.name()))?;
            println!(
                "round {round}/{} {mode:<5} {:<13} {} ({:.0} s)",
                arguments.rounds,
                system.name(),
                sample.in_short(),
                begin.elapsed().as_secs_f32()
            );
            report.add(system.name(), &system.version()?, sample);
        }
    }
    Ok(report)
}
