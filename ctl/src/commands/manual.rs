//! `meshctl completions` and the hidden `meshctl man`: made from the command line's definition.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::cli::Cli;
use crate::commands::Context;
use crate::files;
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Arguments of `meshctl man`.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The folder
    folder: PathBuf,
}

impl Completions {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "meshctl", &mut script);
        context.screen.print(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Ok)
    }
}

impl Man {
    pub(super) fn run(self) -> Result<Exit, Problem> {
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &self.folder))
            .map_err(|error| files::problem("write the man pages into", &self.folder, &error))?;
        Ok(Exit::Ok)
    }
}
