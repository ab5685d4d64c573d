//! `meshctl network create`.

use std::path::PathBuf;

use clap::Args;
use podmesh_proto::id::{Name, NetworkId};
use podmesh_proto::key::SigningKey;
use podmesh_proto::network::{Network, Ranges, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use zeroize::Zeroizing;

use crate::commands::Context;
use crate::commands::network::planets::{PlanetArg, entries};
use crate::commands::network::ranges::RangeArgs;
use crate::operator::{self, Folder, Place};
use crate::problem::{Exit, Problem};
use crate::root_key::passphrase::Protect;
use crate::root_key::{self, RootKeyFile, recovery};
use crate::{clock, files};

/// Arguments of `meshctl network create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the network: a-z, 0-9, '-' and '.'
    name: Name,
    /// A planet: its key, as `planet init` prints it, and its address; the first one arbitrates
    /// leases
    #[arg(long = "planet", required = true, value_name = "[NAME=]KEY@HOST:PORT")]
    planets: Vec<PlanetArg>,
    #[command(flatten)]
    ranges: RangeArgs,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    protect: Protect,
    /// Make a second root key with the same rights, to be kept in another place
    #[arg(long)]
    second_root: bool,
    /// Write the recovery form into this new file instead of printing it
    #[arg(long, value_name = "FILE")]
    recovery_file: Option<PathBuf>,
}

impl Create {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let folder = self.place.new_folder(self.name.as_str())?;
        let key = root_key::new_key()?;
        let second = self.second_root.then(root_key::new_key).transpose()?;
        let network = self.network(&key, second.as_ref())?;
        let passphrase = self.protect.passphrase()?;
        let passphrase = passphrase.as_ref().map(|passphrase| passphrase.as_str());
        files::create_folder(folder.path())?;
        let keys = [
            (folder.root_key(), Some(&key)),
            (folder.second_root_key(), second.as_ref()),
        ];
        for (path, key) in keys {
            if let Some(key) = key {
                let file = RootKeyFile::seal(key, (&self.name, network.id), passphrase)?;
                files::create(&path, file.to_text()?.as_bytes())?;
            }
        }
        self.tell_recovery(context, &key, second.as_ref())?;
        // Last, because only a folder with a document counts as a network.
        let document = Signed::seal(&RootStatement::Network(network.clone()), &key)?;
        let text = operator::document_text(&document, &network)?;
        files::create(&folder.document(), text.as_bytes())?;
        self.tell_next(context, &folder, &network)?;
        Ok(Exit::Ok)
    }

    fn network(&self, key: &SigningKey, second: Option<&SigningKey>) -> Result<Network, Problem> {
        let root = key.public();
        let id: NetworkId = Network::id_of(&root);
        Ok(Network {
            id,
            name: self.name.clone(),
            root,
            second_root: second.map(SigningKey::public),
            version: 1,
            issued: clock::now_for_signing(UnixSeconds(0))?,
            ranges: self.ranges.apply(Ranges::default_of(&id))?,
            planets: entries(&[], &self.planets)?,
            retired: Vec::new(),
        })
    }

    fn tell_recovery(
        &self,
        context: &Context,
        key: &SigningKey,
        second: Option<&SigningKey>,
    ) -> Result<(), Problem> {
        let mut text = Zeroizing::new(String::with_capacity(1024));
        for (which, key) in [("root key", Some(key)), ("second root key", second)] {
            let Some(key) = key else { continue };
            text.push_str("Recovery form of the ");
            text.push_str(which);
            text.push_str(". Whoever has it owns the network; it is not shown again:\n\n");
            for line in recovery::form(key).lines() {
                text.push_str("    ");
                text.push_str(line);
                text.push('\n');
            }
            text.push('\n');
        }
        match &self.recovery_file {
            Some(file) => files::create(file, text.as_bytes()),
            None => context.screen.print(&text),
        }
    }

    fn tell_next(
        &self,
        context: &Context,
        folder: &Folder,
        network: &Network,
    ) -> Result<(), Problem> {
        let mut text = format!(
            "Network {} ({}) is in {}\n",
            network.name,
            network.id,
            folder.path().display()
        );
        if self.second_root {
            let second = folder.second_root_key();
            text.push_str(&format!("Move {} to another place.\n", second.display()));
        }
        text.push_str(&format!(
            "next: on each planet: planet adopt network.podmesh (a copy of {})\n\
             next: for each node: meshctl token create, then on the node: meshctl join TOKEN-FILE\n",
            folder.document().display()
        ));
        context.screen.print(&text)
    }
}
