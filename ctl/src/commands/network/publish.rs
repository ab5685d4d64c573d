//! `meshctl network publish`.

use std::path::{Path, PathBuf};

use clap::Args;
use podmesh_proto::armor;
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;

use crate::commands::Context;
use crate::commands::delivery::Delivery;
use crate::files;
use crate::operator::Place;
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl network publish`.
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Statement files, made with --out [default: the network's document]
    files: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    delivery: Delivery,
}

impl Publish {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        if self.files.is_empty() {
            let folder = self.place.folder()?;
            let (document, network) = folder.read()?;
            let what = format!("edition {} of network {}", network.version, network.name);
            self.delivery.send(context, &document, &what)?;
            if !self.delivery.is_file() {
                folder.published()?;
            }
            return Ok(Exit::Ok);
        }
        let mut problems = Vec::new();
        for file in &self.files {
            let sent = read(file).and_then(|statement| {
                self.is_ours(&statement)?;
                let what = file.display().to_string();
                self.delivery.send(context, &statement, &what)
            });
            if let Err(problem) = sent {
                problems.push((file, problem));
            }
        }
        if let [(_, problem)] = problems.as_slice()
            && self.files.len() == 1
        {
            return Err(problem.clone());
        }
        for (file, problem) in &problems {
            context
                .screen
                .remark(&format!("{}: {problem}", file.display()));
        }
        Ok(match problems.len() {
            0 => Exit::Ok,
            failed if failed < self.files.len() => Exit::Partial,
            _ => Exit::Failed,
        })
    }
}

impl Publish {
    /// Whoever gets it says only that the root's signature isn't there. Where there is no folder, or more than
    /// one, a file is sent as it is.
    fn is_ours(&self, statement: &Signed<RootStatement>) -> Result<(), Problem> {
        let Ok((_, ours)) = self.place.folder().and_then(|folder| folder.read()) else {
            return Ok(());
        };
        let said = statement.unverified()?;
        if said.network() == ours.id {
            return Ok(());
        }
        let theirs = match &said {
            RootStatement::Network(network) => format!("{} ({})", network.name, network.id),
            other => other.network().to_string(),
        };
        Err(Problem::failed(format!(
            "it is of another network, {theirs}, and the folder is of {} ({})",
            ours.name, ours.id
        ))
        .next("name the folder of that network with --dir, on a machine of that network"))
    }
}

fn read(file: &Path) -> Result<Signed<RootStatement>, Problem> {
    let text = files::read_text(file)?;
    armor::decode_statement(&text).map_err(|error| {
        Problem::failed(format!("{} can't be used: {error}", file.display()))
            .next("make it again with --out")
    })
}
