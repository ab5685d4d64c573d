//! The `planet` program. Everything is in the library; here are only the two ends of the process.

use std::process::ExitCode;

use clap::Parser as _;
use podmesh_planet::cli::Cli;
use podmesh_service::log;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 3 } else { 0 });
        }
    };
    match cli.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log::complain("planet", &problem.to_string());
            ExitCode::from(problem.code)
        }
    }
}
