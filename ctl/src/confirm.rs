//! Asks before something that can't be taken back.

use std::io::{IsTerminal as _, stdin};

use clap::Args;

use crate::problem::Problem;
use crate::root_key::passphrase::Terminal;

/// Whether to ask.
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// Do it without asking; needed where there is no terminal
    #[arg(long, short = 'y')]
    yes: bool,
}

impl Confirm {
    /// Goes on only if the caller wants what `happens` says.
    ///
    /// # Errors
    /// The caller doesn't, or can't be asked (3).
    pub(crate) fn ask(
        &self,
        happens: impl FnOnce() -> Result<String, Problem>,
    ) -> Result<(), Problem> {
        if self.yes {
            return Ok(());
        }
        // A script has the terminal of whoever started it, but nobody who reads the question.
        if !stdin().is_terminal() {
            let cause = "this asks for a confirmation, and standard input is no terminal";
            return Err(Problem::usage(cause).next("run it at a terminal, or with --yes"));
        }
        let happens = happens()?;
        let mut terminal = Terminal::open("this asks for a confirmation")?;
        let answer = terminal.ask(&format!("{happens}\nGo on? [y/N] "))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        Err(Problem::failed("nothing was changed"))
    }
}
