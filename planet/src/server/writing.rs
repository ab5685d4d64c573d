//! The store on a thread of its own: the mind hears on while the disk takes its time.

use podmesh_proto::id::PlanetId;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::rules::records::Change;
use crate::server::mind::BackupStore;

type Done = (Box<dyn BackupStore>, Result<(), String>);

/// A store, at rest or at one commit.
pub(super) enum Writing {
    /// Nothing is under way.
    Rest(Box<dyn BackupStore>),
    /// A commit is.
    Busy(JoinHandle<Done>),
    /// The thread that had the store is gone, and the store with it.
    Lost,
}

impl Writing {
    /// Begins a commit. The rules ask for one at a time.
    pub(super) fn begin(&mut self, changes: Vec<Change>) {
        let Self::Rest(mut store) = std::mem::replace(self, Self::Lost) else {
            return;
        };
        *self = Self::Busy(spawn_blocking(move || {
            let result = store.commit(&changes);
            (store, result.map_err(|error| error.to_string()))
        }));
    }

    /// The end of the commit that is under way; never, if none is.
    ///
    /// # Errors
    /// The thread that wrote has panicked.
    pub(super) async fn end(&mut self) -> Result<Result<(), String>, JoinError> {
        let Self::Busy(task) = self else {
            return std::future::pending().await;
        };
        let done = task.await;
        *self = Self::Lost;
        let (store, result) = done?;
        *self = Self::Rest(store);
        Ok(result)
    }

    /// Whether a commit is under way.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_))
    }

    /// What the store finds to have been taken away; nothing while a commit is under way, which looks
    /// itself.
    pub(super) fn stand(&mut self) -> Option<Result<Vec<&'static str>, String>> {
        let Self::Rest(store) = self else {
            return None;
        };
        Some(tokio::task::block_in_place(|| store.stand()))
    }

    /// Everything in the store of `planet` as one file's content.
    ///
    /// # Errors
    /// The store can't be read, or is being written.
    pub(super) fn backup(&mut self, planet: &PlanetId) -> Result<Vec<u8>, String> {
        let Self::Rest(store) = self else {
            return Err("the store is being written".to_owned());
        };
        let backup = tokio::task::block_in_place(|| store.backup(planet));
        backup.map_err(|error| error.to_string())
    }
}
