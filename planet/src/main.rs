//! The `planet` program. Everything is in the library; here are only the two ends of the process.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use podmesh_planet::cli::Cli;

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
            let _ = writeln!(std::io::stderr(), "planet: {problem}");
            ExitCode::from(problem.code)
        }
    }
}
