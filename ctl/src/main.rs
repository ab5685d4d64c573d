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
mod files;
mod operator;
mod problem;
mod root_key;
mod show;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cli::Cli;
use crate::problem::Exit;
use crate::show::Screen;

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
        Err(error) => return complain(&error).into(),
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
fn complain(error: &clap::Error) -> Exit {
    // Nobody is left to be told when the terminal has gone.
    let _printed = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
        _ => Exit::Usage,
    }
}
