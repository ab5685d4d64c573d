//! The state folder: who may look in, one meshd at a time, and files that survive a crash.
//!
//! What a file says is wrapped with a version and a checksum ([`envelope`]) and kept in two
//! generations ([`document`]); a thread of its own writes it ([`writer`]), so that a slow or full
//! disk never holds up a decision or a packet.

mod document;
mod envelope;
mod writer;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{fmt, io};

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
    lock: Arc<Mutex<File>>,
}

/// The way of a file's writer to the folder that it is in.
#[derive(Debug, Clone)]
struct Folder {
    path: PathBuf,
    lock: Weak<Mutex<File>>,
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
            lock: Arc::new(Mutex::new(lock)),
        };
        dir.lock()?;
        Ok(dir)
    }

    /// Lets another meshd have it. Nothing may be written from now on.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) fn unlock(&self) -> io::Result<()> {
        process::unlock(&held(&self.lock))
    }

    /// Locks it again.
    ///
    /// # Errors
    /// Another meshd uses it.
    pub(crate) fn lock(&self) -> Result<(), StateError> {
        let path = self.path.clone();
        match process::try_lock(&held(&self.lock)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StateError::InUse { path }),
            Err(cause) => Err(StateError::Unusable { path, cause }),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn folder(&self) -> Folder {
        Folder {
            path: self.path.clone(),
            lock: Arc::downgrade(&self.lock),
        }
    }
}

impl Folder {
    /// Makes the folder and its lock anew if somebody has taken them away under this process.
    ///
    /// # Errors
    /// The disk refuses, another meshd has taken the place, or this process has given the folder up.
    fn ensure(&self) -> io::Result<()> {
        let words = |words: &str| io::Error::new(io::ErrorKind::ResourceBusy, words.to_owned());
        let lock = self.lock.upgrade();
        let lock = lock.ok_or_else(|| words("the state folder was given up"))?;
        let mut lock = held(&lock);
        if self.holds(&lock)? {
            return Ok(());
        }
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let file = open_lock(&self.path)?;
        if !process::try_lock(&file)? {
            return Err(words("another meshd uses the state folder"));
        }
        *lock = file;
        Ok(())
    }

    /// Whether what is locked is what others would find. Whoever has no lock file has locked the folder.
    fn holds(&self, lock: &File) -> io::Result<bool> {
        let place = |found: &fs::Metadata| (found.dev(), found.ino());
        let locked = place(&lock.metadata()?);
        for path in [&self.path.join(LOCK_FILE), &self.path] {
            match fs::metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(found) if place(&found) == locked => return Ok(true),
                Ok(_) => {}
            }
        }
        Ok(false)
    }
}

fn held(lock: &Mutex<File>) -> MutexGuard<'_, File> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Why a meshd that runs can't have something on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    words: String,
    /// What helps, as an imperative.
    pub(crate) remedy: &'static str,
}

impl From<&io::Error> for Trouble {
    fn from(error: &io::Error) -> Self {
        Self {
            words: error.to_string(),
            remedy: remedy(error.kind()),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// What helps against an error of this kind.
fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            "make the folder anew that the state folder was in, or mount its disk"
        }
        io::ErrorKind::PermissionDenied => "give the state folder back to the user of meshd",
        io::ErrorKind::ResourceBusy => {
            "let one meshd alone use the state folder, or give each its own --state-dir"
        }
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::ReadOnlyFilesystem => {
            "make room on the disk of the state folder, or mount it writable"
        }
        _ => "check the state folder and its disk",
    }
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
    fn a_folder_that_was_taken_away_is_made_anew_and_belongs_to_one_meshd() {
        let scratch = Scratch::new();
        let (outer, away) = (scratch.path("outer"), scratch.path("away"));
        let path = outer.join("state");
        let first = StateDir::open(&path).unwrap();
        for taken in [&path.join(LOCK_FILE), &path] {
            let removed = fs::remove_file(taken).or_else(|_| fs::remove_dir_all(taken));
            removed.unwrap();
            first.folder().ensure().unwrap();
            let second = StateDir::open(&path).unwrap_err();
            assert!(matches!(second, StateError::InUse { .. }), "{second}");
        }
        fs::remove_dir_all(&path).unwrap();
        let second = StateDir::open(&path).unwrap();
        let error = first.folder().ensure().unwrap_err();
        assert!(
            Trouble::from(&error).remedy.contains("one meshd alone"),
            "{error}"
        );
        // Nobody makes the folder around it, which may be where a disk is to be mounted.
        fs::remove_dir_all(&path).unwrap();
        let folder = second.folder();
        fs::rename(&outer, &away).unwrap();
        let error = folder.ensure().unwrap_err();
        assert!(
            Trouble::from(&error).remedy.contains("mount its disk"),
            "{error}"
        );
        fs::rename(&away, &outer).unwrap();
        drop(second);
        assert!(folder.ensure().is_err(), "it was given up");
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
