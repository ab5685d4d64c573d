//! The planet's key on disk.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use podmesh_proto::key::SigningKey;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::store::{self, DiskStore, StoreError, write_private};

/// The key's file in the state directory.
pub const FILE: &str = "planet.key";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is none yet.
    #[error("there is no planet in {path}; make one with `planet init --state-dir {path}`")]
    Missing {
        /// The state directory.
        path: String,
    },
    /// There was one, with which the books were written.
    #[error(
        "{path} holds the books of a planet whose key is gone; put the copy of {key} back, or name another \
         --state-dir"
    )]
    Gone {
        /// The books.
        path: String,
        /// Where the key was.
        key: String,
    },
    /// There is one already.
    #[error("there is a planet in {path} already; `planet key --state-dir {path}` prints its key")]
    Exists {
        /// The state directory.
        path: String,
    },
    /// Others could read it.
    #[error("{path} can be read by others; make it private with `chmod 600 {path}`")]
    Open {
        /// The file.
        path: String,
    },
    /// The file holds something else.
    #[error("{path} holds no planet's key; restore it from where it was copied to")]
    Malformed {
        /// The file.
        path: String,
    },
    /// The system refuses.
    #[error("can't use {path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// Its reason.
        reason: String,
        /// Whether the caller may not.
        permission: bool,
    },
}

/// Random bytes of the system.
///
/// # Errors
/// It gives none.
pub fn random() -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyError::Io {
            path: "the system's random source".to_owned(),
            reason: "it gives no bytes".to_owned(),
            permission: false,
        })?;
    Ok(bytes)
}

/// Makes the state directory of a planet to be.
///
/// # Errors
/// There is a planet already, or the disk refuses.
pub fn prepare(state_dir: &Path) -> Result<(), KeyError> {
    if state_dir.join(FILE).exists() {
        let path = state_dir.display().to_string();
        return Err(KeyError::Exists { path });
    }
    // With its mode from the first instant on: a later try finds the directory as this one left it.
    let mut folders = DirBuilder::new();
    folders
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|error| io_error(state_dir, &error))
}

/// Makes a new key in a state directory.
///
/// # Errors
/// There is a key already, or the disk refuses.
pub fn create(state_dir: &Path) -> Result<SigningKey, KeyError> {
    prepare(state_dir)?;
    let key = SigningKey::from_seed(random()?);
    write(state_dir, &key)?;
    Ok(key)
}

/// Writes the key anew if its file was taken away under a running planet; gives whether it was.
///
/// # Errors
/// The disk refuses.
pub fn stand(state_dir: &Path, key: &SigningKey) -> Result<bool, KeyError> {
    let path = state_dir.join(FILE);
    if path.try_exists().map_err(|error| io_error(&path, &error))? {
        return Ok(false);
    }
    write(state_dir, key)?;
    tracing::warn!(path = %path.display(), "the key was taken away and is written anew");
    Ok(true)
}

fn write(state_dir: &Path, key: &SigningKey) -> Result<(), KeyError> {
    let path = state_dir.join(FILE);
    let failed = |error: io::Error| io_error(&path, &error);
    let digits = key.seed().iter().map(|byte| format!("{byte:02x}"));
    let text = Zeroizing::new(digits.collect::<String>() + "\n");
    write_private(&path, text.as_bytes()).map_err(failed)?;
    give_to_owner(state_dir, &path).map_err(failed)
}

/// Reads the key of a state directory.
///
/// # Errors
/// There is none, or it isn't one, or others can read it.
pub fn read(state_dir: &Path) -> Result<SigningKey, KeyError> {
    let path = state_dir.join(FILE);
    let shown = || path.display().to_string();
    let text = match fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(missing(state_dir));
        }
        Err(error) => return Err(io_error(&path, &error)),
    };
    let mode = fs::metadata(&path).map_err(|error| io_error(&path, &error))?;
    if mode.permissions().mode() & 0o077 != 0 {
        return Err(KeyError::Open { path: shown() });
    }
    let seed = parse(text.trim()).ok_or_else(|| KeyError::Malformed { path: shown() })?;
    Ok(SigningKey::from_seed(*seed))
}

/// A state directory of the planet's own user stays its own when root works in it.
///
/// # Errors
/// The system refuses.
pub fn give_to_owner(state_dir: &Path, file: &Path) -> io::Result<()> {
    let (owner, present) = (fs::metadata(state_dir)?, fs::metadata(file)?);
    if owner.uid() == present.uid() {
        return Ok(());
    }
    std::os::unix::fs::chown(file, Some(owner.uid()), Some(owner.gid()))
}

/// A planet whose books were written needs the key of then; where nothing was, one can be made.
fn missing(state_dir: &Path) -> KeyError {
    let untouched = match DiskStore::open(state_dir) {
        Ok(mut store) => store.is_untouched().unwrap_or(false),
        Err(error) => matches!(error, StoreError::Missing { .. }),
    };
    if untouched {
        let path = state_dir.display().to_string();
        return KeyError::Missing { path };
    }
    KeyError::Gone {
        path: state_dir.join(store::FILE).display().to_string(),
        key: state_dir.join(FILE).display().to_string(),
    }
}

fn parse(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in seed.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(seed)
}

fn io_error(path: &Path, error: &io::Error) -> KeyError {
    KeyError::Io {
        path: path.display().to_string(),
        reason: error.to_string(),
        permission: error.kind() == io::ErrorKind::PermissionDenied,
    }
}
