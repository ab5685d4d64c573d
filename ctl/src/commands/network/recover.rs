//! `meshctl network recover`: the folder of a network from its recovery form.

use std::path::PathBuf;

use clap::Args;
use podmesh_proto::key::SigningKey;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;

use crate::commands::Context;
use crate::files;
use crate::operator::{self, Place};
use crate::problem::{Exit, Problem};
use crate::root_key::passphrase::{Protect, Terminal};
use crate::root_key::{RootKeyFile, recovery};

/// Arguments of `meshctl network recover`.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// A network document (public) [default: the one that meshd on this machine holds]
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// Read the recovery form from this file (mode 0600) [default: the terminal]
    #[arg(long, value_name = "FILE")]
    form_file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    protect: Protect,
}

impl Recover {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let (document, network) = self.document(context)?;
        let key = self.key()?;
        let public = key.public();
        if public != network.root && network.second_root != Some(public) {
            return Err(Problem::failed(format!(
                "the recovery form is of another network than {}",
                network.name
            ))
            .next("use the document of the network that the form belongs to"));
        }
        let passphrase = self.protect.passphrase()?;
        let passphrase = passphrase.as_ref().map(|passphrase| passphrase.as_str());
        let file = RootKeyFile::seal(&key, (&network.name, network.id), passphrase)?;
        let folder = self.place.new_folder(network.name.as_str())?;
        files::create_folder(folder.path())?;
        files::create(&folder.root_key(), file.to_text()?.as_bytes())?;
        let text = operator::document_text(&document, &network)?;
        files::create(&folder.document(), text.as_bytes())?;
        context.screen.print(&format!(
            "Network {} is recovered in {}\n\
             next: compare edition {} with what nodes hold: meshctl network show --node\n",
            network.name,
            folder.path().display(),
            network.version
        ))?;
        Ok(Exit::Ok)
    }

    fn document(&self, context: &Context) -> Result<(Signed<RootStatement>, Network), Problem> {
        if let Some(path) = &self.document {
            return operator::read_document(path);
        }
        let document = context.meshd.network().map_err(|problem| {
            problem.next("name the network's document with --document; every planet has it")
        })?;
        let network = Network::from_statement(&document)?;
        Ok((document, network))
    }

    fn key(&self) -> Result<SigningKey, Problem> {
        if let Some(file) = &self.form_file {
            return recovery::parse(&recovery::groups(&files::read_secret(file)?));
        }
        let mut terminal = Terminal::open("the recovery form is needed")?;
        let mut form = terminal.ask_hidden("Recovery form, first line: ")?;
        form.push_str(&terminal.ask_hidden("Recovery form, second line: ")?);
        recovery::parse(&form)
    }
}
