//! meshd, the node of a podmesh network: it owns the mesh interface, the tunnels to all peers and the
//! routes to them. See `run` for the half that decides and `shard` for the half that moves packets.

mod cli;
mod clock;
mod config;
mod device_mtu;
mod doors;
mod handover;
mod host;
mod identity;
mod kept;
mod local_socket;
mod logs;
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
use std::process::ExitCode;

use clap::Parser as _;
use podmesh_kernel::memory;

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
    if cli.check {
        let said = check(cli).map_err(|message| (3, message))?;
        writeln!(std::io::stdout(), "{said}").map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    memory::keep_large_apart();
    let config = Config::load(cli).map_err(|error| (3, error.to_string()))?;
    logs::start(&config.log).map_err(|message| (3, message))?;
    if let Some(remark) = config::mark_remark(config.mark) {
        tracing::warn!(reason = remark, "the mark may be taken for somebody else's");
    }
    let outcome = run::serve(cli, config).map(|()| ExitCode::SUCCESS);
    outcome.map_err(|error| (error.exit_code(), error.to_string()))
}

/// Says whether the configuration is good. A token file that is missing stops no start, as it is gone
/// after the join, but whoever checks wants to know.
fn check(cli: &Cli) -> Result<String, String> {
    let (config, file) = Config::load_with_source(cli).map_err(|error| error.to_string())?;
    logs::check(&config.log)
        .map_err(|reason| format!("log = {} is not possible; {reason}", config.log))?;
    let remark =
        config::mark_remark(config.mark).map_or_else(String::new, |said| format!("; but {said}"));
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
