//! `KEEP=1`: a process of its own holds the world, so that the demo can end and the world stay.
//!
//! The front shows what the keeper prints and ends with its verdict. The keeper lives on, out of
//! reach of the terminal's Ctrl-C, until `lab clean --all` asks it to end. If the front is
//! interrupted during the play, the keeper takes everything down.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};

use podmesh_lab::registry;

/// Tells a keeper that its front writes to a terminal.
pub(super) const COLOUR: &str = "LAB_COLOUR";

static TOLD: AtomicBool = AtomicBool::new(false);

/// Starts the keeper and shows its play.
pub(super) fn run_behind() -> Result<ExitCode> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["demo", "--keep", "--keeper"])
        .process_group(0);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if io::stdout().is_terminal() {
        command.env(COLOUR, "1");
    }
    let mut keeper = command.spawn().context("cannot start the keeper")?;
    let errors = keeper.stderr.take().context("the keeper has no stderr")?;
    thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            eprintln!("{line}");
        }
    });
    let play = keeper.stdout.take().context("the keeper has no stdout")?;
    for line in BufReader::new(play).lines() {
        let line = line?;
        match line.strip_prefix(VERDICT) {
            Some("good") => return Ok(ExitCode::SUCCESS),
            Some(_) => return Ok(ExitCode::FAILURE),
            None => println!("{line}"),
        }
    }
    bail!("the keeper ended before the play did: {}", keeper.wait()?);
}

/// Takes everything down if the front ends before the play does.
pub(super) fn end_with_front() {
    thread::spawn(|| {
        // Nothing is ever written; the end of the stream is the end of the front.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        if !TOLD.load(Ordering::SeqCst) {
            registry::tear_down();
            std::process::exit(130);
        }
    });
}

/// Ends the front with the verdict; from then on nobody listens.
pub(super) fn tell_front(good: bool) {
    TOLD.store(true, Ordering::SeqCst);
    println!("{VERDICT}{}", if good { "good" } else { "bad" });
    // A front that is gone has been told enough.
    let _ = io::stdout().flush();
}

/// Begins the line that is not for the audience.
const VERDICT: &str = "\u{4}verdict ";
