//! `meshctl network backup` and `restore`: the operator's folder as one file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use podmesh_proto::armor;
use podmesh_proto::id::Name;
use podmesh_proto::network::Network;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::commands::Context;
use crate::files;
use crate::operator::{BACKED_UP, DOCUMENT, Folder, Place, ROOT_KEY};
use crate::problem::{Exit, Problem};
use crate::root_key::RootKeyFile;

const SCHEMA: &str = "podmesh.backup/v1";

/// Arguments of `meshctl network backup`.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// The file to write (mode 0600); root keys in it are as well protected as in the folder
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Arguments of `meshctl network restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The file that `meshctl network backup` wrote
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

#[derive(Serialize, Deserialize)]
struct Bundle {
    schema: String,
    name: Name,
    files: BTreeMap<String, String>,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.files.values_mut().for_each(Zeroize::zeroize);
    }
}

impl Backup {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let desk = self.place.folder()?.open()?;
        let mut files = BTreeMap::new();
        for name in BACKED_UP {
            match files::read_text(&desk.folder().path().join(name)) {
                Ok(text) => drop(files.insert((*name).to_owned(), text.to_string())),
                Err(problem) if problem.exit == Exit::NotFound => {}
                Err(problem) => return Err(problem),
            }
        }
        let sealed = files.get(ROOT_KEY).map(|text| RootKeyFile::parse(text));
        let sealed = sealed.transpose()?.is_none_or(|file| file.is_sealed());
        let keyless = !files.contains_key(ROOT_KEY);
        let bundle = Bundle {
            schema: SCHEMA.to_owned(),
            name: desk.network().name.clone(),
            files,
        };
        let text = serde_json::to_string_pretty(&bundle).map(Zeroizing::new);
        let text = text.map_err(|error| Problem::failed(error.to_string()))?;
        files::create(&self.file, text.as_bytes())?;
        context.screen.remark(&format!(
            "network {} is backed up in {}",
            bundle.name,
            self.file.display()
        ));
        if keyless {
            context.screen.remark(&format!(
                "the root key is not in it, as there is no {} in the folder: keep a copy of the key where it is, \
                 or its recovery form",
                ROOT_KEY
            ));
        }
        if !sealed {
            context
                .screen
                .remark("the root key in it is plain: whoever reads the file owns the network");
        }
        Ok(Exit::Ok)
    }
}

impl Restore {
    pub(super) fn run(self, context: &Context) -> Result<Exit, Problem> {
        let bundle = self.read()?;
        self.check(&bundle)?;
        let folder: Folder = self.place.new_folder(bundle.name.as_str())?;
        files::create_folder(folder.path())?;
        let document_last = |name: &str| (name == DOCUMENT, name.to_owned());
        let mut names: Vec<&String> = bundle.files.keys().collect();
        names.sort_by_key(|name| document_last(name));
        for name in names {
            if let Some(text) = bundle.files.get(name) {
                files::create(&folder.path().join(name), text.as_bytes())?;
            }
        }
        context.screen.remark(&format!(
            "network {} is restored in {}",
            bundle.name,
            folder.path().display()
        ));
        Ok(Exit::Ok)
    }

    fn read(&self) -> Result<Bundle, Problem> {
        let text = files::read_secret(&self.file)?;
        // Where it stops making sense helps nobody: these are no files that people write.
        serde_json::from_str(&text)
            .map_err(|_| self.damaged("it is no backup of a network, or it is damaged"))
    }

    fn check(&self, bundle: &Bundle) -> Result<(), Problem> {
        if bundle.schema != SCHEMA {
            return Err(self.damaged("it is no backup of this version"));
        }
        if let Some(name) = bundle
            .files
            .keys()
            .find(|name| !BACKED_UP.contains(&name.as_str()))
        {
            return Err(self.damaged(&format!("a backup holds no file '{name}'")));
        }
        let document = bundle
            .files
            .get(DOCUMENT)
            .ok_or_else(|| self.damaged("no document"))?;
        let document = armor::decode_statement(document)?;
        let network = Network::from_statement(&document)?;
        if network.name != bundle.name {
            return Err(self.damaged("its document is of another network"));
        }
        if let Some(key) = bundle.files.get(ROOT_KEY)
            && !RootKeyFile::parse(key)?.belongs_to(&network)
        {
            return Err(self.damaged("its root key is of another network"));
        }
        Ok(())
    }

    fn damaged(&self, cause: &str) -> Problem {
        let path: &Path = &self.file;
        Problem::failed(format!("{} can't be restored: {cause}", path.display()))
            .next("use another backup, or `meshctl network recover`")
    }
}
