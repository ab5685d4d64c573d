//! `lab`: the laboratory from the command line.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks"
)]

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use podmesh_lab::{Lab, Nat, registry};

/// A small internet of network namespaces for podmesh.
#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Remove what runs that were killed have left behind
    Clean {
        /// End the runs that still live, too
        #[arg(long)]
        all: bool,
    },
    /// List the runs that live and their namespaces
    List,
    /// Run a program inside a namespace, by default a shell
    Enter {
        /// The namespace's name or its end, for instance home-1
        namespace: String,
        /// The program and its arguments
        #[arg(trailing_var_arg = true)]
        program: Vec<String>,
    },
    /// Build an empty world without any mesh in it and wait for Ctrl-C
    Up,
}

fn main() -> ExitCode {
    // The release profile aborts on a panic, so nothing is dropped then.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if cfg!(panic = "abort") {
            registry::tear_down();
        }
    }));
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Clean { all } => clean(all),
        Verb::List => list(),
        Verb::Enter { namespace, program } => enter(&namespace, &program),
        Verb::Up => up(),
    }
}

fn clean(all: bool) -> Result<()> {
    if all {
        for run in registry::living_runs() {
            println!("ending run {run}");
            registry::end_run(run)?;
        }
    }
    let removed = registry::remove_leftovers();
    println!("removed {} leftovers", removed.len());
    Ok(())
}

fn list() -> Result<()> {
    for run in registry::living_runs() {
        println!("run {run}");
        for namespace in registry::namespaces_of(run) {
            println!("  {namespace}");
        }
    }
    Ok(())
}

fn enter(wanted: &str, program: &[String]) -> Result<()> {
    let end = format!("-{wanted}");
    let found: Vec<String> = registry::living_runs()
        .into_iter()
        .flat_map(registry::namespaces_of)
        .filter(|name| name == wanted || name.ends_with(&end))
        .collect();
    let [namespace] = found.as_slice() else {
        bail!(
            "{} namespaces end in {end}: {}",
            found.len(),
            found.join(", ")
        );
    };
    let shell = [std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into())];
    let program = if program.is_empty() { &shell } else { program };
    let mut command = std::process::Command::new("ip");
    Err(command
        .args(["netns", "exec", namespace])
        .args(program)
        .exec())
    .context("cannot run ip")
}

fn up() -> Result<()> {
    let mut plan = Lab::plan("empty");
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.site("cloud-a");
    plan.node("home-1").at("home");
    plan.node("cloud-a-1").at("cloud-a");
    plan.delay("home", "cloud-a", Duration::from_millis(10));
    let lab = plan.up()?;
    println!(
        "lab {} stands in {}",
        std::process::id(),
        lab.folder().display()
    );
    println!(
        "try: lab enter home-1 ping {}",
        lab.node("cloud-a-1")?.public_address()
    );
    loop {
        thread::park();
    }
}
