//! How something that the root said reaches the network: by this machine's meshd, by a planet's
//! socket, or as a file that is carried to one of them.

use std::path::{Path, PathBuf};

use clap::Args;
use podmesh_proto::armor::Armor;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;

use crate::client::Client;
use crate::commands::Context;
use crate::files;
use crate::problem::{Exit, Problem};
use crate::registry::{Registries, usual_planet};

/// Where a statement goes.
#[derive(Debug, Args)]
pub(crate) struct Delivery {
    /// Hand it to the planet at this socket instead of meshd [default without meshd:
    /// /run/podmesh-planet/planet.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "out")]
    planet_socket: Option<PathBuf>,
    /// Write it into a new file ('-' for standard output), to be sent by `meshctl network publish`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Delivery {
    /// Delivers `statement`; `what` names it in the remark to the caller.
    ///
    /// # Errors
    /// Nobody took it.
    pub(crate) fn send(
        &self,
        context: &Context,
        statement: &Signed<RootStatement>,
        what: &str,
    ) -> Result<(), Problem> {
        if let Some(out) = &self.out {
            return self.write(context, statement, (out, what));
        }
        let message = self
            .hand_over(context, statement)
            .map_err(with_next(statement))?;
        context.screen.remark(&format!("{what}: {message}"));
        Ok(())
    }

    /// Whether it only writes a file.
    pub(crate) fn is_file(&self) -> bool {
        self.out.is_some()
    }

    /// Whom the daemons of this machine know of `network`.
    ///
    /// # Errors
    /// As [`Registries::ask`].
    pub(crate) fn registries(
        &self,
        context: &Context,
        network: &Network,
    ) -> Result<Registries, Problem> {
        Registries::ask(context, network, self.planet_socket.as_deref())
    }

    fn hand_over(
        &self,
        context: &Context,
        statement: &Signed<RootStatement>,
    ) -> Result<String, Problem> {
        if let Some(socket) = &self.planet_socket {
            return Client::planet(socket).statement(statement);
        }
        let planet = usual_planet().map(Client::planet);
        match (context.meshd.statement(statement), planet) {
            (Ok(message), _) => Ok(message),
            // A meshd in no network, or none at all, is no hindrance where a planet is.
            (Err(problem), Some(planet))
                if matches!(problem.exit, Exit::Unreachable | Exit::NotReady) =>
            {
                planet.statement(statement)
            }
            (Err(problem), _) => Err(both_ways(problem)),
        }
    }

    fn write(
        &self,
        context: &Context,
        statement: &Signed<RootStatement>,
        (out, what): (&Path, &str),
    ) -> Result<(), Problem> {
        let text = format!("# {what}\n{}\n", Armor::of(statement)?.encode(statement)?);
        if out == Path::new("-") {
            return context.screen.print(&text);
        }
        files::create(out, text.as_bytes())?;
        let out = out.display();
        context
            .screen
            .remark(&format!("written to {out}, and not in force yet: {what}"));
        context.screen.remark(&format!(
            "next: meshctl network publish {out}, on a node or with --planet-socket"
        ));
        Ok(())
    }
}

/// A refusal of a planet is one sentence; what to do follows from what was refused.
fn with_next(statement: &Signed<RootStatement>) -> impl Fn(Problem) -> Problem {
    let next = match statement.unverified() {
        Ok(RootStatement::Network(_)) => {
            Some("meshctl network pull, then make the change again, if it is still needed")
        }
        _ => None,
    };
    move |problem| match (&problem.next, next) {
        (None, Some(next)) if problem.exit == Exit::Failed => problem.next(next),
        _ => problem,
    }
}

/// Without meshd there is another way.
fn both_ways(problem: Problem) -> Problem {
    if problem.exit != Exit::Unreachable {
        return problem;
    }
    problem.next(
        "start meshd (systemctl start meshd), or hand it to a planet with --planet-socket PATH",
    )
}
