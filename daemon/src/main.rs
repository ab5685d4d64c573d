//! meshd, the node of a podmesh network: it owns the mesh interface, the tunnels to all peers and the
//! routes to them. See `run` for the half that decides and `shard` for the half that moves packets.

mod cli;
mod clock;
mod config;
mod device_mtu;
mod doors;
#[cfg(test)]
#[path = "../../tests/fuzz/edits.rs"]
mod edits;
#[cfg(test)]
mod fuzz;
mod handover;
mod host;
mod identity;
mod kept;
mod local_socket;
mod node_file;
mod offloads;
mod overlap;
mod planet_link;
mod random;
mod regency;
mod run;
#[cfg(test)]
mod scratch;
mod service;
mod shard;
mod sockets;
mod state;

use std::io::Write as _;
use std::mem;
use std::process::ExitCode;

use clap::Parser as _;
use podmesh_kernel::memory;
use podmesh_service::log;
use podmesh_service::start::{Brake, patiently};

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::service::Service;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => start(&cli).unwrap_or_else(|failure| {
            log::complain("meshd", &failure.message);
            ExitCode::from(failure.code)
        }),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 3 } else { 0 })
        }
    }
}

/// An exit code and one sentence.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    fn new(code: u8, message: impl ToString) -> Self {
        let message = message.to_string();
        Self { code, message }
    }
}

fn start(cli: &Cli) -> Result<ExitCode, Failure> {
    let failed = |error: std::io::Error| Failure::new(1, error);
    if let Some(Command::Man) = cli.command {
        let page = cli::manual_page().map_err(failed)?;
        std::io::stdout().write_all(&page).map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    if cli.check {
        let said = check(cli).map_err(|message| Failure::new(3, message))?;
        writeln!(std::io::stdout(), "{said}").map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    memory::keep_large_apart();
    run(cli).map(|()| ExitCode::SUCCESS)
}

/// Runs a node to its end. One that a service manager starts has patience with what keeps it from
/// starting; a person who starts one wants to know.
fn run(cli: &Cli) -> Result<(), Failure> {
    let service = Service::from_environment();
    let mut kept = service::kept();
    let mut is_told = false;
    let mut attempt = || {
        let config = Config::load(cli).map_err(|error| Failure::new(3, error))?;
        // The tunnel library logs what any peer can provoke, at levels of its own choice.
        log::start(&config.log, "boringtun=error").map_err(|message| Failure::new(3, message))?;
        if let Some((remark, _)) =
            config::mark_remark(config.mark).filter(|_| !mem::replace(&mut is_told, true))
        {
            tracing::warn!(reason = remark, "the mark may be taken for somebody else's");
        }
        let outcome = run::serve(cli, &config, (&service, &mut kept));
        outcome.map_err(|error| Failure::new(error.exit_code(), error))
    };
    if !service.is_there() || cli.replace {
        return attempt();
    }
    let brake = Brake::pull();
    let may_try = || !service.has_begun();
    let outcome = patiently(attempt, may_try, |failure| {
        service.waiting(&failure.message);
        let message = format!("can't start yet, and tries again: {}", failure.message);
        log::complain("meshd", &message);
    });
    if outcome.is_ok() {
        brake.forgive();
    }
    outcome
}

/// Says whether the configuration is good. A token file that is missing stops no start, as it is gone
/// after the join, but whoever checks wants to know.
fn check(cli: &Cli) -> Result<String, String> {
    let (config, file) = Config::load_with_source(cli).map_err(|error| error.to_string())?;
    log::check(&config.log)
        .map_err(|reason| format!("log = {} is not possible; {reason}", config.log))?;
    let remark = config::mark_remark(config.mark)
        .map_or_else(String::new, |(said, next)| format!("; but {said}; {next}"));
    let missing = config.join_token_file.filter(|token| !token.exists());
    if let Some(token) = missing {
        return Err(format!(
            "join-token-file = {}: there is no such file; put the token there, or remove the key \
             if the node is a member already",
            token.display()
        ));
    }
    Ok(match file {
        Some(file) => format!("{} is good{remark}", file.display()),
        None => "no configuration file; the defaults are good".to_owned(),
    })
}
