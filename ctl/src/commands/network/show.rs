//! `meshctl network show`.

use std::path::PathBuf;

use clap::Args;
use podmesh_proto::network::Network;

use crate::commands::Context;
use crate::files;
use crate::operator::{self, Place};
use crate::problem::{Exit, Problem};
use crate::show::Output;
use crate::show::network::{NetworkDocument, SCHEMA, text};

/// Arguments of `meshctl network show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    place: Place,
    /// Show the document that meshd holds, not the one in the network's folder
    #[arg(long, conflicts_with = "dir")]
    node: bool,
    /// Write the document into this new file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Show {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let folder = if self.node { None } else { self.folder()? };
        let (document, network) = match folder {
            Some(found) => found,
            None => {
                let document = context.meshd.network()?;
                let network = Network::from_statement(&document)?;
                (document, network)
            }
        };
        if let Some(out) = &self.out {
            let text = operator::document_text(&document, &network)?;
            files::create(out, text.as_bytes())?;
        }
        let screen = context.screen;
        if self.output.is_json() {
            screen.print_json(SCHEMA, &NetworkDocument::from(&network))?;
        } else {
            screen.print(&text(&network, screen))?;
        }
        Ok(Exit::Ok)
    }

    /// The folder's document; `None` on a machine without any network folder.
    fn folder(&self) -> Result<Option<Found>, Problem> {
        let read = self.place.folder().map(|folder| folder.read());
        match read {
            Ok(found) => found.map(Some),
            Err(problem) if problem.exit == Exit::NotFound => Ok(None),
            Err(problem) => Err(problem),
        }
    }
}

type Found = (
    podmesh_proto::signed::Signed<podmesh_proto::network::RootStatement>,
    Network,
);
