//! meshd, the node of a podmesh network: it owns the mesh interface, the tunnels to all peers and the
//! routes to them. See `run` for the half that decides and `shard` for the half that moves packets.

mod cli;
mod clock;
mod config;
mod host;
mod identity;
mod local_socket;
mod logs;
mod node_file;
mod overlap;
mod planet_link;
mod random;
mod run;
#[cfg(test)]
mod scratch;
mod service;
mod shard;
mod sockets;
mod state;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::config::Config;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => start(&cli).unwrap_or_else(|(code, message)| {
            let _ = writeln!(std::io::stderr(), "meshd: {message}");
            ExitCode::from(code)
        }),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 3 } else { 0 })
        }
    }
}

/// Gives the exit code and one sentence when it fails.
fn start(cli: &Cli) -> Result<ExitCode, (u8, String)> {
    let failed = |error: std::io::Error| (1, error.to_string());
    if let Some(Command::Man) = cli.command {
        let page = cli::manual_page().map_err(failed)?;
        std::io::stdout().write_all(&page).map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(cli).map_err(|error| (3, error.to_string()))?;
    logs::start(&config.log).map_err(|message| (3, message))?;
    if cli.check {
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = run::serve(cli, config).map(|()| ExitCode::SUCCESS);
    outcome.map_err(|error| (error.exit_code(), error.to_string()))
}
