//! meshctl: what an operator and a node's administrator say to podmesh.
//!
//! Two kinds of commands live here. Those of the root side (`network`, `token`, `node`, `peer
//! add-external`) hold the network's root key and sign; they need no daemon. Those of a node (`join`,
//! `status`, `peers`, `ping` ...) ask meshd over its local socket and show the answer; meshctl itself
//! touches no network and no kernel object.

mod cli;
mod client;
mod clock;
mod commands;
mod confirm;
mod files;
mod operator;
mod problem;
mod registry;
mod root_key;
mod show;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cli::Cli;
use crate::problem::Exit;
use crate::show::Screen;

/// Commands that can't be taken back.
const GRAVE: [&str; 4] = ["leave", "revoke", "retire-planet", "remove-external"];

fn main() -> ExitCode {
    // A core file could hold a root key or a token; where it can't be forbidden, nothing is lost.
    let none = Some(0);
    let _forbidden = setrlimit(
        Resource::Core,
        Rlimit {
            current: none,
            maximum: none,
        },
    );
    let screen = Screen::new();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return complain(error).into(),
    };
    match commands::run(cli, screen) {
        Ok(exit) => exit.into(),
        Err(problem) => {
            screen.remark(&format!("meshctl: {problem}"));
            if let Some(next) = &problem.next {
                screen.remark(&format!("next: {next}"));
            }
            problem.exit.into()
        }
    }
}

/// Prints what clap says: help and version on standard output, the rest on standard error.
fn complain(mut error: clap::Error) -> Exit {
    withhold_grave_tips(&mut error);
    offer_other_words(&mut error);
    // Nobody is left to be told when the terminal has gone.
    let _printed = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
        _ => Exit::Usage,
    }
}

/// Words that are only a little alike must not lead to what can't be taken back: clap offers `leave` to
/// whoever types `rename`. One slip of the finger away, the tip is what was meant.
fn withhold_grave_tips(error: &mut clap::Error) {
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return;
    };
    let typed = typed.clone();
    let far = |tip: &String| GRAVE.contains(&tip.as_str()) && slips(&typed, tip) > 1;
    let left = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(tips)) => {
            let left: Vec<String> = tips.iter().filter(|tip| !far(tip)).cloned().collect();
            (left.len() < tips.len()).then_some(left)
        }
        _ => None,
    };
    let Some(left) = left else {
        return;
    };
    if left.is_empty() {
        error.remove(ContextKind::SuggestedSubcommand);
    } else {
        error.insert(
            ContextKind::SuggestedSubcommand,
            ContextValue::Strings(left),
        );
    }
}

/// What other programs call what `status` and `peers` do.
const OTHER_WORDS: [&str; 6] = ["doctor", "netcheck", "check", "diagnose", "health", "info"];

/// Those who look for what is wrong come with the words of other programs.
fn offer_other_words(error: &mut clap::Error) {
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return;
    };
    if OTHER_WORDS.contains(&typed.as_str()) {
        let tips = ["status", "peers"].map(str::to_owned).to_vec();
        error.insert(
            ContextKind::SuggestedSubcommand,
            ContextValue::Strings(tips),
        );
    }
}

/// Letters that are missing, too many or wrong.
fn slips(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, letter) in one.chars().enumerate() {
        let mut next = vec![number + 1];
        for ((theirs, above_left), above) in other.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            let change = above_left + usize::from(letter != *theirs);
            next.push(change.min(left + 1).min(above + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
