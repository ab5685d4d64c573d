//! What the next start of a planet needs is on disk as long as the planet runs, whoever takes it away.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use podmesh_proto::id::PlanetId;
use podmesh_proto::key::SigningKey;

use crate::identity;
use crate::rules::records::{Change, Record};
use crate::rules::view::PlanetStatus;
use crate::server::mind::BackupStore;
use crate::store::{self, DiskStore, Store, StoreError};

/// The store of a planet with the key beside it.
pub struct Kept {
    /// The store.
    pub store: DiskStore,
    /// The planet's key.
    pub key: SigningKey,
    /// The state directory of both.
    pub folder: PathBuf,
}

impl Store for Kept {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        self.store.load()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.store.commit(changes)
    }
}

impl BackupStore for Kept {
    fn backup(&mut self, planet: &PlanetId) -> Result<Vec<u8>, StoreError> {
        self.store.backup(planet)
    }

    fn stand(&mut self) -> Result<Vec<&'static str>, String> {
        // It makes the directory anew, too.
        let store = self.store.stand().map_err(|error| error.to_string())?;
        let key = identity::stand(&self.folder, &self.key).map_err(|error| error.to_string())?;
        let files = [(store, store::FILE), (key, identity::FILE)];
        let anew = files.into_iter().filter(|(anew, _)| *anew);
        Ok(anew.map(|(_, name)| name).collect())
    }
}

/// How often it is looked whether the planet's files are still there.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// What the looks have found.
#[derive(Default)]
pub(super) struct Looks {
    anew: BTreeSet<&'static str>,
    trouble: Option<String>,
}

impl Looks {
    pub(super) fn note(&mut self, found: Result<Vec<&'static str>, String>) {
        match found {
            Ok(anew) => {
                self.anew.extend(anew);
                self.trouble = None;
            }
            Err(trouble) => {
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(
                        reason = trouble,
                        "a restart would not know what this planet knows"
                    );
                }
                self.trouble = Some(trouble);
            }
        }
    }

    pub(super) fn add_to(&self, status: &mut PlanetStatus) {
        if let Some(trouble) = &self.trouble {
            let trouble = || format!("a restart would not know what this planet knows: {trouble}");
            status.write_error.get_or_insert_with(trouble);
        }
        let remark = |name| {
            format!(
                "{name} was taken away while the planet ran, and is written anew from memory; find out what \
                 did that"
            )
        };
        status.remarks.extend(self.anew.iter().map(remark));
    }
}
