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
use crate::problem::Problem;

/// Where a statement goes.
#[derive(Debug, Args)]
pub(crate) struct Delivery {
    /// Hand it to the planet at this socket instead of meshd
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
        let client = match &self.planet_socket {
            Some(socket) => Client::planet(socket),
            None => context.meshd.clone(),
        };
        let message = client.statement(statement)?;
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
