//! `meshctl token`: what buys a certificate.

mod create;
mod list;
mod revoke;

use clap::{Args, Subcommand};

use crate::commands::Context;
use crate::problem::{Exit, Problem};

/// Arguments of `meshctl token`.
#[derive(Debug, Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a join token
    Create(create::Create),
    /// List the tokens made in this folder
    List(list::List),
    /// Make a token worthless; its members stay
    Revoke(revoke::Revoke),
}

impl Token {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        match self.action {
            Action::Create(create) => create.run(context),
            Action::List(list) => list.run(context),
            Action::Revoke(revoke) => revoke.run(context),
        }
    }
}
