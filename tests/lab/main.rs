//! `lab`: the laboratory from the command line.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks"
)]

mod demo;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use podmesh_lab::{Lab, Nat, node, registry};

/// A small internet of network namespaces for podmesh.
#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Play the story: a mesh over three sites, a dead planet, a power cut
    Demo {
        /// Leave the world standing afterwards
        #[arg(long)]
        keep: bool,
        /// Hold the world for a front process
        #[arg(long, hide = true)]
        keeper: bool,
    },
    /// Remove what runs that were killed have left behind
    Clean {
        /// End the runs that still live, too
        #[arg(long)]
        all: bool,
        /// End this living run, too
        #[arg(long, value_name = "PID", conflicts_with = "all")]
        run: Option<u32>,
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
    /// Run meshctl against a node
    Meshctl {
        /// The node's name
        node: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
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
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Demo { keep, keeper } => return demo::run(keep, keeper),
        Verb::Clean { all, run } => clean(all, run)?,
        Verb::List => list(),
        Verb::Enter { namespace, program } => enter(&namespace, &program)?,
        Verb::Meshctl { node, words } => meshctl(&node, &words)?,
        Verb::Up => up()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn clean(all: bool, only: Option<u32>) -> Result<()> {
    let living = registry::living_runs();
    if let Some(run) = only.filter(|run| !living.contains(run)) {
        bail!("no living run is called {run}; see: lab list");
    }
    for run in living.into_iter().filter(|run| all || only == Some(*run)) {
        println!("ending run {run}");
        registry::end_run(run)?;
    }
    let removed = registry::remove_leftovers();
    println!("removed {} leftovers", removed.len());
    for run in registry::living_runs() {
        println!("run {run} lives; to end it, too: lab clean --run {run}");
    }
    Ok(())
}

fn list() {
    for run in registry::living_runs() {
        println!("run {run}");
        for namespace in registry::namespaces_of(run) {
            println!("  {namespace}");
        }
    }
}

fn enter(wanted: &str, program: &[String]) -> Result<()> {
    let namespace = the_one(wanted)?;
    let shell = [std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into())];
    let program = if program.is_empty() { &shell } else { program };
    let mut command = std::process::Command::new("ip");
    Err(command
        .args(["netns", "exec", &namespace])
        .args(program)
        .exec())
    .context("cannot run ip")
}

fn meshctl(node: &str, words: &[String]) -> Result<()> {
    let namespace = the_one(node)?;
    let lab = namespace
        .strip_prefix(registry::NAMESPACE_PREFIX)
        .unwrap_or_default();
    // Run, number of the lab, and what the node is called there.
    let node = lab.splitn(3, '-').nth(2).unwrap_or(node);
    let lab = lab.strip_suffix(&format!("-{node}")).unwrap_or_default();
    let folder = std::env::temp_dir().join(format!("{}{lab}", registry::FOLDER_PREFIX));
    let socket = folder.join(node).join("run/meshd.sock");
    let mut command = std::process::Command::new("ip");
    command
        .args(["netns", "exec", &namespace])
        .arg(node::program("meshctl")?);
    Err(command.arg("--socket").arg(socket).args(words).exec()).context("cannot run ip")
}

/// The full name of the only namespace that is called so.
fn the_one(wanted: &str) -> Result<String> {
    let found: Vec<String> = registry::living_runs()
        .into_iter()
        .flat_map(registry::namespaces_of)
        .filter(|name| name == wanted || name.splitn(4, '-').nth(3) == Some(wanted))
        .collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("no namespace of a living run is called {wanted}; see: lab list"),
        more => bail!(
            "{} namespaces are called {wanted}; say which: {}",
            more.len(),
            more.join(", ")
        ),
    }
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
