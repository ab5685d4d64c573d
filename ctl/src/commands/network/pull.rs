//! `meshctl network pull`: the folder gets the edition that the network has.
//!
//! Editions have numbers, and one that is made from an older copy would have the number of another. So
//! every command that makes one asks first, as far as somebody can be asked.

use std::path::PathBuf;

use clap::Args;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;

use crate::commands::Context;
use crate::operator::{self, Desk, Place};
use crate::problem::{Exit, Problem};
use crate::registry::{PlanetSocket, Registries};

/// Arguments of `meshctl network pull`.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Take the document in this file, which `meshctl network show --node --out FILE` wrote on a node
    #[arg(long, value_name = "FILE", conflicts_with = "path")]
    document: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    planet: PlanetSocket,
}

impl Pull {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let mut desk = self.place.folder()?.open()?;
        let (who, document, network) = self.newest(context, desk.network())?;
        let (own, name) = (desk.network().version, desk.network().name.clone());
        if network == *desk.network() {
            desk.folder().published()?;
            let words = format!("edition {own} of network {name} is the newest, as {who} has it");
            context.screen.remark(&words);
            return Ok(Exit::Ok);
        }
        if network.version < own {
            let cause = format!(
                "the folder has edition {own} of network {name}, and {who} has edition {}",
                network.version
            );
            return Err(Problem::failed(cause).next("meshctl network publish"));
        }
        desk.take(&document)?;
        let edition = network.version;
        context.screen.remark(&format!(
            "edition {edition} of network {name} taken from {who}; the folder had edition {own}"
        ));
        if edition == own {
            context.screen.remark(&format!(
                "the folder's own edition {own} was another one: it is kept as {}",
                desk.folder().set_aside().display()
            ));
            context
                .screen
                .remark("next: make the change again that only that one had");
        }
        Ok(Exit::Ok)
    }

    fn newest(
        &self,
        context: &Context,
        known: &Network,
    ) -> Result<(String, Signed<RootStatement>, Network), Problem> {
        if let Some(file) = &self.document {
            let (document, network) = operator::read_document(file)?;
            known.verify(&document)?;
            return Ok((file.display().to_string(), document, network));
        }
        let registries = Registries::ask(context, known, self.planet.path())?;
        let found = registries.newest().map(|newest| {
            let (document, network) = (newest.document.clone(), newest.network.clone());
            (newest.who.to_owned(), document, network)
        });
        found.ok_or_else(|| {
            let why = registries.why_not().unwrap_or_default();
            let cause = format!("nobody here could be asked for the newest edition: {why}");
            Problem::new(Exit::Unreachable, cause).next(
                "run it beside meshd or a planet (--planet-socket), or carry the document here: on a node \
                 `meshctl network show --node --out FILE`, here `meshctl network pull --document FILE`",
            )
        })
    }
}

/// Takes the newest edition into the folder before another one is made from it.
///
/// # Errors
/// The network has another edition of the same number; or nobody can be asked, and nobody is known to have
/// the last edition that this folder made.
pub(super) fn bring_up_to_date(
    context: &Context,
    desk: &mut Desk,
    registries: &Registries,
) -> Result<(), Problem> {
    let name = desk.network().name.clone();
    for one in registries.all() {
        let own = desk.network().version;
        if one.network == *desk.network() {
            desk.folder().published()?;
        } else if one.network.version > own {
            desk.take(&one.document)?;
            context.screen.remark(&format!(
                "edition {} of network {name} taken from {}; the folder had edition {own}",
                one.network.version, one.who
            ));
        } else if one.network.version == own {
            let cause = format!(
                "{} has another edition {own} of network {name} than the folder; nothing was changed",
                one.who
            );
            return Err(Problem::failed(cause).next("meshctl network pull, then this again"));
        }
    }
    let Some(why) = registries.why_not() else {
        return Ok(());
    };
    let own = desk.network().version;
    if desk.folder().is_unpublished() {
        let cause = format!(
            "edition {own} of network {name} was made in this folder, and nobody is known to have it ({why}); a \
             further one could overtake one that was made elsewhere"
        );
        return Err(Problem::new(Exit::Unreachable, cause).next(
            "meshctl network publish; or, if it has been carried to the network: on a node `meshctl network show \
             --node --out FILE`, here `meshctl network pull --document FILE`",
        ));
    }
    context.screen.remark(&format!(
        "nobody here could be asked for the newest edition ({why}); if edition {} was made elsewhere, this one \
         will be refused",
        own.saturating_add(1)
    ));
    Ok(())
}
