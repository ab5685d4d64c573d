//! How the demo is told: acts, steps with their times, tables, and the verdict.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use podmesh_lab::Lab;

use super::keeper;

/// Where the play is shown.
#[derive(Debug)]
pub(super) struct Stage {
    start: Instant,
    act: u32,
    colour: bool,
    checks: Vec<Check>,
}

/// One line of the verdict.
#[derive(Debug)]
struct Check {
    promise: String,
    seen: String,
    good: bool,
}

impl Stage {
    pub(super) fn new() -> Self {
        let terminal = io::stdout().is_terminal() || std::env::var_os(keeper::COLOUR).is_some();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self {
            start: Instant::now(),
            act: 0,
            colour,
            checks: Vec::new(),
        }
    }

    pub(super) fn opening(&self) {
        println!();
        println!(
            "{}",
            self.bold("podmesh — one cluster over a home and two clouds")
        );
        println!();
        println!(
            "You have two machines at home behind a router that nobody can reach from outside,"
        );
        println!(
            "one in cloud A with a public address, and one in cloud B behind a NAT of its own."
        );
        println!(
            "You want one Kubernetes cluster on all four. Here is what podmesh does with them."
        );
        println!(
            "Everything is real: kernel NAT, the release binaries, pods made by the CNI plugin."
        );
        println!("Only the distance between the sites is made up, by a wire with delay.");
    }

    /// Begins the next act.
    pub(super) fn act(&mut self, title: &str, story: &[&str]) {
        self.act += 1;
        let heading = format!("Act {} · {title}", self.act);
        println!();
        println!("{}  {}", self.bold(&heading), self.dim(&self.clock()));
        for line in story {
            println!("  {}", self.dim(line));
        }
    }

    /// One thing that has happened.
    pub(super) fn step(&self, what: &str) {
        println!("  · {what}");
    }

    /// A command as the user would type it.
    pub(super) fn command(&self, host: &str, command: &str) {
        println!();
        println!(
            "  {} {}",
            self.dim(&format!("{host} $")),
            self.bold(command)
        );
    }

    /// What a command printed.
    pub(super) fn printed(&self, text: &str) {
        for line in text.trim_matches('\n').lines() {
            println!("    {line}");
        }
        println!();
    }

    /// A promise that has been held against what was seen.
    pub(super) fn check(&mut self, promise: &str, seen: &str, good: bool) {
        println!("  {} {promise}: {seen}", self.mark(good));
        self.checks.push(Check {
            promise: promise.into(),
            seen: seen.into(),
            good,
        });
    }

    /// The play can't go on.
    pub(super) fn broke_off(&mut self, error: &anyhow::Error) {
        let promise = "the play goes on to its end";
        self.check(promise, &format!("{error:#}"), false);
    }

    /// Shows the verdict; true if every promise was kept.
    pub(super) fn summary(&self) -> bool {
        let good = self.checks.iter().all(|check| check.good) && !self.checks.is_empty();
        println!();
        println!("{}", self.bold("What was promised, and what was seen"));
        let width = self
            .checks
            .iter()
            .map(|check| check.promise.chars().count())
            .max();
        let width = width.unwrap_or(0);
        for Check {
            promise,
            seen,
            good,
        } in &self.checks
        {
            let padding = " ".repeat(width - promise.chars().count());
            // An error in the table is told in full above.
            let seen: String = seen.chars().take(60).collect();
            println!("  {} {promise}{padding}  {seen}", self.mark(*good));
        }
        println!();
        let verdict = if good { "PASS" } else { "FAIL" };
        let count = self.checks.iter().filter(|check| check.good).count();
        println!(
            "  {} — {count} of {} kept, {}",
            self.bold(verdict),
            self.checks.len(),
            self.clock()
        );
        good
    }

    pub(super) fn closing(&self) {
        println!();
        println!("The world is being taken down. To keep it and look around: KEEP=1 make demo");
        // The teardown takes a moment; the last words shall be seen before it.
        let _ = io::stdout().flush();
    }

    /// How to look around in a world that is left standing.
    pub(super) fn standing(&self, lab: &Lab) {
        let lab_program = "target/release/lab";
        println!();
        println!("{}", self.bold("The world is standing. Look around:"));
        println!("  {lab_program} list                              all namespaces");
        println!("  {lab_program} meshctl home-1 peers              ask a node");
        println!("  {lab_program} enter home-1                      a shell on a node");
        println!("  {lab_program} enter home-router nft list ruleset");
        if let Some(pod) = lab.nodes().flat_map(|node| node.pods()).next() {
            let target = pod
                .addresses()
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            println!("  {lab_program} enter pod-cloud-b-1-a ping {target}");
        }
        println!("  logs and states: {}", lab.folder().display());
        let run = std::process::id();
        println!("  take it down:    {lab_program} clean --run {run}");
    }

    fn clock(&self) -> String {
        format!("{:.1} s", self.start.elapsed().as_secs_f32())
    }

    fn mark(&self, good: bool) -> String {
        let (mark, code) = if good { ("✓", "32") } else { ("✗", "31") };
        self.painted(mark, code)
    }

    fn bold(&self, text: &str) -> String {
        self.painted(text, "1")
    }

    fn dim(&self, text: &str) -> String {
        self.painted(text, "2")
    }

    fn painted(&self, text: &str, code: &str) -> String {
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A duration as people say it.
pub(super) fn in_words(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f32())
    }
}
