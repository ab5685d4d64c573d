//! `meshctl network`: the network's document, written and signed by its root.

mod backup;
mod create;
mod planets;
mod publish;
mod pull;
mod ranges;
mod recover;
mod show;

pub(crate) use crate::commands::network::ranges::{cidr, inside};

use clap::{Args, Subcommand};

use crate::commands::Context;
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl network`.
#[derive(Debug, Args)]
pub(crate) struct Network {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a network: its root key and its document
    Create(create::Create),
    /// Show the network's document
    Show(show::Show),
    /// Name a further planet, or one in the place of another
    AddPlanet(planets::AddPlanet),
    /// Take a planet out of service
    RetirePlanet(planets::RetirePlanet),
    /// Hand the network's document, or statement files, to meshd or a planet
    Publish(publish::Publish),
    /// Take the newest edition of the network's document into its folder
    Pull(pull::Pull),
    /// Write the folder of the network into one file
    Backup(backup::Backup),
    /// Make the folder of the network from a backup
    Restore(backup::Restore),
    /// Make the folder of the network from the recovery form
    Recover(recover::Recover),
}

impl Network {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        match self.action {
            Action::Create(create) => create.run(context),
            Action::Show(show) => show.run(context),
            Action::AddPlanet(add) => add.run(context),
            Action::RetirePlanet(retire) => retire.run(context),
            Action::Publish(publish) => publish.run(context),
            Action::Pull(pull) => pull.run(context),
            Action::Backup(backup) => backup.run(context),
            Action::Restore(restore) => restore.run(context),
            Action::Recover(recover) => recover.run(context),
        }
    }
}
