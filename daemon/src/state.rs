//! The state folder: who may look in, one meshd at a time, and files that survive a crash.
//!
//! What a file says is wrapped with a version and a checksum ([`envelope`]) and kept in two
//! generations ([`document`]); a thread of its own writes it ([`writer`]), so that a slow or full
//! disk never holds up a decision or a packet.

mod document;
mod envelope;
mod writer;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use podmesh_kernel::process;

pub(crate) use self::document::{Document, Loaded, replace_file};
pub(crate) use self::writer::{Progress, Writer};

const LOCK_FILE: &str = "lock";
/// Permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// The state folder, held by this process alone as long as the value lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    lock: File,
}

impl StateDir {
    /// Opens the folder, creating it if there is none, and locks it.
    ///
    /// # Errors
    /// Others may look into it, it belongs to somebody else, or another meshd uses it.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let unusable = |cause| StateError::Unusable {
            path: path.to_owned(),
            cause,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unusable)?;
        let folder = fs::metadata(path).map_err(unusable)?;
        let uid = process::effective_uid();
        if folder.uid() != uid {
            return Err(StateError::Owner {
                path: path.to_owned(),
                owner: folder.uid(),
                uid,
            });
        }
        if folder.mode() & OTHERS != 0 {
            return Err(StateError::Mode {
                path: path.to_owned(),
                mode: folder.mode() & 0o7777,
                wanted: 0o700,
            });
        }
        let lock = open_lock(path).map_err(unusable)?;
        let dir = Self {
            path: path.to_owned(),
            lock,
        };
        dir.lock()?;
        Ok(dir)
    }

    /// Lets another meshd have it. Nothing may be written from now on.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) fn unlock(&self) -> io::Result<()> {
        process::unlock(&self.lock)
    }

    /// Locks it again.
    ///
    /// # Errors
    /// Another meshd uses it.
    pub(crate) fn lock(&self) -> Result<(), StateError> {
        let path = self.path.clone();
        match process::try_lock(&self.lock) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StateError::InUse { path }),
            Err(cause) => Err(StateError::Unusable { path, cause }),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The file that is locked, for writing or not: a disk that takes nothing keeps nobody off the mesh. Where
/// there is none and none can be made, the folder itself.
fn open_lock(folder: &Path) -> io::Result<File> {
    let path = folder.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    let made = options.write(true).create(true).truncate(false).mode(0o600);
    match made.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => File::open(&path).or_else(|_| File::open(folder)),
        Ok(file) => Ok(file),
    }
}

/// Why the state can't be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// The folder or something in it can't be opened.
    #[error("can't use {} as state: {cause}; {}", path.display(), next_step(cause))]
    Unusable {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Somebody else's folder.
    #[error(
        "the state folder {} belongs to user {owner}, meshd runs as user {uid}; `chown` it or start meshd as its owner",
        path.display()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// Others could read the keys.
    #[error(
        "{} has mode {mode:04o} and holds secrets; run `chmod {wanted:o}` on it",
        path.display()
    )]
    Mode {
        /// The folder or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        wanted: u32,
    },
    /// A second meshd.
    #[error(
        "another meshd uses the state folder {}; take over from it with --replace, stop it first, or start this one with another --state-dir",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Neither generation of a file can be read.
    #[error(
        "{} is damaged ({damage}) and there is no good generation before it; restore the file from a backup, or move the state folder away and join again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: String,
    },
    /// Written by a later version of the program.
    #[error(
        "{} was written by a newer meshd (format {found}, this one reads {known}); install that version again",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u16,
        /// The format this program has.
        known: u16,
    },
}

/// What helps against an error of the file system.
fn next_step(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, then start meshd again"
        }
        io::ErrorKind::PermissionDenied => "start meshd as the owner of the folder",
        io::ErrorKind::ReadOnlyFilesystem => "mount it writable, or name another --state-dir",
        _ => "check the path and the disk, or name another --state-dir",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_second_meshd_is_told_that_the_folder_is_in_use() {
        let scratch = Scratch::new();
        let first = StateDir::open(&scratch.path("state")).unwrap();
        let error = StateDir::open(&scratch.path("state")).unwrap_err();
        assert!(matches!(error, StateError::InUse { .. }), "{error}");
        drop(first);
        StateDir::open(&scratch.path("state")).unwrap();
    }

    #[test]
    fn a_folder_that_others_can_read_is_refused_and_a_new_one_is_closed() {
        let scratch = Scratch::new();
        let path = scratch.path("state");
        drop(StateDir::open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        for mode in [0o750, 0o701, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let message = StateDir::open(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("mode {mode:04o}")), "{message}");
            assert!(message.contains("`chmod 700`"), "{message}");
        }
    }

    #[test]
    fn trouble_with_the_disk_comes_with_a_next_step() {
        let message = |kind: io::ErrorKind| {
            let (path, cause) = (PathBuf::from("/state/identity"), kind.into());
            StateError::Unusable { path, cause }.to_string()
        };
        for (kind, next) in [
            (io::ErrorKind::StorageFull, "; free some space"),
            (
                io::ErrorKind::PermissionDenied,
                "; start meshd as the owner",
            ),
            (io::ErrorKind::NotADirectory, "; check the path"),
        ] {
            let message = message(kind);
            assert!(
                message.starts_with("can't use /state/identity"),
                "{message}"
            );
            assert!(message.contains(next), "{message}");
        }
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.path("state");
        drop(StateDir::open(&path).unwrap());
        if process::effective_uid() != 0 {
            return;
        }
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(
            matches!(error, StateError::Owner { owner: 65_534, .. }),
            "{error}"
        );
    }
}
