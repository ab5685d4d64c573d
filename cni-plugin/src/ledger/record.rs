//! What is remembered of one attachment, and whose it is.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use podmesh_kernel::veth::{self, MAX_OWNER_BYTES};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::{attachment::Attachment, request::Config};

pub(super) const RECORD_SCHEMA: &str = "podmesh.attachment/v1";

/// What is remembered of one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(super) schema: String,
    /// The network in the runtime's configuration.
    pub(crate) network: String,
    /// Whose it is.
    #[serde(flatten)]
    pub(crate) attachment: Attachment,
    /// The pod's addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Where to the pod goes by this interface: [`veth::PodLink::destinations`].
    #[serde(default = "everywhere")]
    pub(crate) destinations: Vec<IpNet>,
    /// Hardware address of the pod's end, if not the one that follows from the attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<[u8; 6]>,
    /// The pod's network namespace; absent in records of versions that didn't note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sandbox: Option<Sandbox>,
    pub(super) boot: String,
    pub(super) since: u64,
}

/// A network namespace that can be found again, and told from a later one at the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Sandbox {
    /// The one at that path.
    ///
    /// # Errors
    ///
    /// When there is none, or it can't be looked at.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Whether it is certain that it has gone.
    pub(super) fn is_gone(&self) -> bool {
        match Self::at(&self.path) {
            Ok(present) => present != *self,
            Err(cause) => cause.kind() == io::ErrorKind::NotFound,
        }
    }
}

fn everywhere() -> Vec<IpNet> {
    [true, false].map(veth::everything).into()
}

/// What the node's end of a pair says about whose it is: the network and the folder of its ledger,
/// by the folder's real path, so that every way to write it says the same.
pub(crate) fn owner(config: &Config) -> String {
    let words = owner_in_words(config);
    if words.len() <= MAX_OWNER_BYTES {
        return words;
    }
    let mut short = String::from("podmesh sha256:");
    for byte in digest(&SHA256, words.as_bytes()).as_ref() {
        // Writing to a string does not fail.
        let _ = write!(short, "{byte:02x}");
    }
    short
}

/// Whether that is what the node's end says, in the words of whatever version. Those that had the
/// whole alias for it wrote more than there is room for.
pub(crate) fn is_owner(config: &Config, made_by: &str) -> bool {
    let words = owner_in_words(config);
    let is_cut = made_by.len() >= MAX_OWNER_BYTES && words.starts_with(made_by);
    made_by == owner(config) || is_cut
}

fn owner_in_words(config: &Config) -> String {
    let folder = fs::canonicalize(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    format!("podmesh {} {}", config.name, folder.display())
}
