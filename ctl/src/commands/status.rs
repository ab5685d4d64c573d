//! `meshctl status`.

use clap::{Args, ValueEnum};
use podmesh_proto::local_api::schema;

use crate::commands::Context;
use crate::commands::wait::{Goal, Look};
use crate::problem::{Exit, Problem};
use crate::show::{Output, status};

/// Arguments of `meshctl status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    output: Output,
    /// Print no view, answer by exit code: 0, or 2 with the reason on standard error
    #[arg(long, value_enum, conflicts_with_all = ["json", "output"])]
    check: Option<Check>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Check {
    /// meshd answers
    Live,
    /// Pods can be attached
    Ready,
    /// The node is a member and its interface is up
    Startup,
}

impl Status {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        if let Some(check) = self.check {
            return check.run(context);
        }
        let status = context.meshd.status()?;
        let screen = context.screen;
        if self.output.is_json() {
            screen.print_dated_json(schema::STATUS, &status)?;
        } else {
            screen.print(&status::text(&status, screen))?;
        }
        Ok(Exit::Ok)
    }
}

impl Check {
    fn run(self, context: &Context) -> Result<Exit, Problem> {
        let goal = match self {
            Self::Live => {
                context.meshd.status()?;
                return Ok(Exit::Ok);
            }
            Self::Ready => Goal::Cni,
            Self::Startup => Goal::Online,
        };
        match goal.look(&context.meshd)? {
            Look::Done(()) => Ok(Exit::Ok),
            Look::NotYet(reason) => Err(Problem::new(Exit::NotReady, reason)),
            Look::Never(problem) => Err(problem),
        }
    }
}
