//! The operator's folder of a network: its document, its root key, and a record of its join tokens.

mod externals;
mod record;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use clap::Args;
use podmesh_proto::armor::{self, Armor};
use podmesh_proto::key::SigningKey;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;

use crate::files;
pub(crate) use crate::operator::externals::ExternalRecord;
pub(crate) use crate::operator::record::{TokenRecord, TokenState};
use crate::problem::{Exit, Problem};
use crate::root_key::RootKeyFile;
use crate::root_key::passphrase::Unlock;

/// Name of the network document's file.
pub(crate) const DOCUMENT: &str = "network.podmesh";
/// Name of the root key's file.
pub(crate) const ROOT_KEY: &str = "root.key";
/// What a backup holds: everything but join tokens, which are secrets for other machines.
pub(crate) const BACKED_UP: &[&str] = &[
    DOCUMENT,
    ROOT_KEY,
    SECOND_ROOT_KEY,
    record::FILE,
    externals::FILE,
];
const SECOND_ROOT_KEY: &str = "root-2.key";
const TOKENS: &str = "tokens";
/// An edition that `network pull` put another one in the place of.
const SET_ASIDE: &str = "network.podmesh.set-aside";
/// Says that the document was signed here and nobody is known to have it.
const UNPUBLISHED: &str = "unpublished";

/// Where the network's folder is.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Folder of the network [default: the only one in ~/.config/podmesh]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What a command needs that signs something.
#[derive(Debug, Args)]
pub(crate) struct Signer {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Sign with the root key in this file [default: root.key in the network's folder]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    #[command(flatten)]
    unlock: Unlock,
}

/// The folder of one network.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

/// A folder that this process alone may change, until it is dropped.
#[derive(Debug)]
pub(crate) struct Desk {
    folder: Folder,
    network: Network,
    document: Signed<RootStatement>,
    _lock: File,
}

impl Place {
    /// The folder of a network to be made.
    ///
    /// # Errors
    /// There is no home folder.
    pub(crate) fn new_folder(&self, name: &str) -> Result<Folder, Problem> {
        let path = match &self.dir {
            Some(dir) => dir.clone(),
            None => networks()?.join(name),
        };
        Ok(Folder { path })
    }

    /// The folder of an existing network.
    ///
    /// # Errors
    /// There is none, or several.
    pub(crate) fn folder(&self) -> Result<Folder, Problem> {
        if let Some(path) = &self.dir {
            let path = path.clone();
            return Ok(Folder { path });
        }
        let home = networks()?;
        let found = fs::read_dir(&home).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = found
            .map(|entry| entry.path())
            .filter(|path| path.join(DOCUMENT).is_file())
            .collect();
        found.sort();
        match found.as_slice() {
            [path] => Ok(Folder { path: path.clone() }),
            [] => Err(Problem::new(
                Exit::NotFound,
                format!("there is no network in {}", home.display()),
            )
            .next("name its folder with --dir, or make one: meshctl network create NAME ...")),
            many => {
                let names: Vec<String> =
                    many.iter().map(|path| path.display().to_string()).collect();
                Err(
                    Problem::usage(format!("there are several networks: {}", names.join(", ")))
                        .next("name the folder of one of them with --dir"),
                )
            }
        }
    }
}

impl Signer {
    /// The folder, locked.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub(crate) fn desk(&self) -> Result<Desk, Problem> {
        self.place.folder()?.open()
    }

    /// The root key of the desk's network.
    ///
    /// # Errors
    /// It can't be read or opened, or belongs to another network.
    pub(crate) fn key(&self, desk: &Desk) -> Result<SigningKey, Problem> {
        let path = match &self.root_key {
            Some(path) => path.clone(),
            None => desk.folder.root_key(),
        };
        let file = RootKeyFile::parse(&files::read_secret(&path)?)?;
        if !file.belongs_to(&desk.network) {
            return Err(Problem::failed(format!(
                "{} is no root key of the network {}",
                path.display(),
                desk.network.name
            ))
            .next("name the right one with --root-key"));
        }
        file.open(|| self.unlock.passphrase())
    }

    /// `statement`, signed by the root key.
    ///
    /// # Errors
    /// As [`Self::key`].
    pub(crate) fn sign(
        &self,
        desk: &Desk,
        statement: &RootStatement,
    ) -> Result<Signed<RootStatement>, Problem> {
        Ok(Signed::seal(statement, &self.key(desk)?)?)
    }
}

impl Folder {
    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the network document.
    pub(crate) fn document(&self) -> PathBuf {
        self.path.join(DOCUMENT)
    }

    /// The file with the root key.
    pub(crate) fn root_key(&self) -> PathBuf {
        self.path.join(ROOT_KEY)
    }

    /// The file with the second root key, until it is taken to another place.
    pub(crate) fn second_root_key(&self) -> PathBuf {
        self.path.join(SECOND_ROOT_KEY)
    }

    /// The file for a new join token; its folder is made.
    ///
    /// # Errors
    /// The folder can't be made.
    pub(crate) fn token_file(&self, name: &str) -> Result<PathBuf, Problem> {
        let folder = self.path.join(TOKENS);
        if !folder.is_dir() {
            files::create_folder(&folder)?;
        }
        Ok(folder.join(format!("{name}.token")))
    }

    /// Whether nobody is known to have the edition in this folder.
    pub(crate) fn is_unpublished(&self) -> bool {
        self.path.join(UNPUBLISHED).exists()
    }

    /// Somebody has the edition in this folder.
    ///
    /// # Errors
    /// The folder can't be written.
    pub(crate) fn published(&self) -> Result<(), Problem> {
        let path = self.path.join(UNPUBLISHED);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(files::problem("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Where an edition is kept that another one was put in the place of.
    pub(crate) fn set_aside(&self) -> PathBuf {
        self.path.join(SET_ASIDE)
    }

    /// Reads and verifies the network document.
    ///
    /// # Errors
    /// It is missing, damaged, or not signed by its own root key.
    pub(crate) fn read(&self) -> Result<(Signed<RootStatement>, Network), Problem> {
        read_document(&self.document())
    }

    /// Takes the folder for this process and reads the document.
    ///
    /// # Errors
    /// As [`Self::read`], or the folder can't be locked.
    pub(crate) fn open(self) -> Result<Desk, Problem> {
        let failed = |error| files::problem("open", &self.path, &error);
        let lock = File::open(&self.path).map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| failed(error.into()))?;
        let (document, network) = self.read()?;
        Ok(Desk {
            folder: self,
            network,
            document,
            _lock: lock,
        })
    }
}

impl Desk {
    /// The folder.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The network as its newest edition says.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The newest edition with its signature.
    pub(crate) fn document(&self) -> &Signed<RootStatement> {
        &self.document
    }

    /// Writes an edition of the network document that this folder has signed and nobody has yet.
    ///
    /// # Errors
    /// It can't be written; then the old edition stays.
    pub(crate) fn replace(&self, document: &Signed<RootStatement>) -> Result<(), Problem> {
        let network = Network::from_statement(document)?;
        let text = document_text(document, &network)?;
        let number = format!("{}\n", network.version);
        files::replace(&self.folder.path.join(UNPUBLISHED), number.as_bytes())?;
        files::replace(&self.folder.document(), text.as_bytes())
    }

    /// Takes the edition that the network has. One of the same number that nobody has is kept beside it.
    ///
    /// # Errors
    /// It can't be written; then the old edition stays.
    pub(crate) fn take(&mut self, document: &Signed<RootStatement>) -> Result<(), Problem> {
        let network = Network::from_statement(document)?;
        if network != self.network && network.version <= self.network.version {
            let own = document_text(&self.document, &self.network)?;
            files::replace(&self.folder.path.join(SET_ASIDE), own.as_bytes())?;
        }
        let text = document_text(document, &network)?;
        files::replace(&self.folder.document(), text.as_bytes())?;
        self.document = document.clone();
        self.network = network;
        self.folder.published()
    }

    /// The tokens made so far.
    ///
    /// # Errors
    /// The record can't be read.
    pub(crate) fn tokens(&self) -> Result<Vec<TokenRecord>, Problem> {
        record::read(&self.folder.path)
    }

    /// The external peers named so far and not removed.
    ///
    /// # Errors
    /// The record can't be read.
    pub(crate) fn externals(&self) -> Result<Vec<ExternalRecord>, Problem> {
        let mut all = externals::read(&self.folder.path)?;
        all.retain(|peer| peer.revoked.is_none());
        Ok(all)
    }

    /// Records an external peer, or what has become of it, in the place of what was known of its key.
    ///
    /// # Errors
    /// The record can't be read or written; then the old record stays.
    pub(crate) fn record_external(&self, peer: ExternalRecord) -> Result<(), Problem> {
        let mut all = externals::read(&self.folder.path)?;
        all.retain(|known| known.wireguard != peer.wireguard);
        all.push(peer);
        externals::write(&self.folder.path, all)
    }

    /// Writes the record of tokens.
    ///
    /// # Errors
    /// It can't be written; then the old record stays.
    pub(crate) fn record_tokens(&self, tokens: &[TokenRecord]) -> Result<(), Problem> {
        record::write(&self.folder.path, tokens)
    }
}

/// Reads and verifies a network document in any file.
///
/// # Errors
/// It is missing, damaged, or not signed by its own root key.
pub(crate) fn read_document(path: &Path) -> Result<(Signed<RootStatement>, Network), Problem> {
    let text = files::read_text(path)?;
    let wrong = |error: String| {
        Problem::failed(format!("{} can't be used: {error}", path.display()))
            .next("use a backup, or take the document from a node: meshctl network show --out FILE")
    };
    let document = armor::decode_statement(&text).map_err(|error| wrong(error.to_string()))?;
    let network = Network::from_statement(&document).map_err(|error| wrong(error.to_string()))?;
    Ok((document, network))
}

/// The text of a network document's file, with a remark for people.
///
/// # Errors
/// Never in practice.
pub(crate) fn document_text(
    document: &Signed<RootStatement>,
    network: &Network,
) -> Result<String, Problem> {
    Ok(format!(
        "# podmesh network {} ({}), edition {} of {}: public, signed by the root key\n{}\n",
        network.name,
        network.id,
        network.version,
        network.issued,
        Armor::Network.encode(document)?
    ))
}

fn networks() -> Result<PathBuf, Problem> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| {
        Problem::usage("there is no home folder: HOME is not set")
            .next("name the network's folder with --dir")
    })?;
    Ok(PathBuf::from(home).join(".config").join("podmesh"))
}
