//! How something that the root said reaches the network: by this machine's meshd, by a planet's
//! socket, or as a file that is carried to one of them.

use std::path::{Path, PathBuf};

use clap::Args;
use podmesh_proto::armor::Armor;
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;

use crate::client::Client;
use crate::commands::Context;
use crate::files;
use crate::problem::{Exit, Problem};

/// Where a planet on this machine has its socket.
const PLANET_SOCKET: &str = "/run/podmesh-planet/planet.sock";

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
        let planet = Path::new(PLANET_SOCKET);
        let message = match &self.planet_socket {
            Some(socket) => Client::planet(socket).statement(statement)?,
            None if context.meshd.is_absent() && planet.exists() => {
                Client::planet(planet).statement(statement)?
            }
            None => context.meshd.statement(statement).map_err(both_ways)?,
        };
        context.screen.remark(&format!("{what}: {message}"));
        Ok(())
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
        context.screen.remark(&format!("{what}: written to {out}"));
        context.screen.remark(&format!(
            "next: meshctl network publish {out}, on a node or with --planet-socket"
        ));
        Ok(())
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
