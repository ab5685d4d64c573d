//! Files that are there as a whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use podmesh_kernel::process;

const LOCK: &str = "lock";
/// In the root of a file system of its own.
const LOST_AND_FOUND: &str = "lost+found";
const UNFINISHED: &str = ".unfinished";
const MAX_FILE_BYTES: u64 = 1024 * 1024;
const LOCK_POLL: Duration = Duration::from_millis(2);

/// A folder that is locked for this process.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is absent, and waits for its lock. One that is there keeps its mode:
    /// it is used if it can be a ledger, else refused with words that say what to do.
    /// `is_content` tells the names of a ledger's files.
    pub(super) fn open(path: &Path, is_content: impl Fn(&str) -> bool) -> io::Result<Self> {
        if let Err(cause) = fs::symlink_metadata(path) {
            if cause.kind() != io::ErrorKind::NotFound {
                return Err(cause);
            }
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        judge(path, is_content)?;
        let lock = open_lock(&path.join(LOCK))?;
        // Whoever holds it is done in milliseconds, or dies at its deadline.
        while !process::try_lock(&lock)? {
            thread::sleep(LOCK_POLL);
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the files; what a crash has left unfinished is removed.
    pub(super) fn files(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            if name.ends_with(UNFINISHED) {
                // A disk that refuses is for those to tell who must write.
                let _ = fs::remove_file(self.path.join(&name));
            } else {
                names.push(name);
            }
        }
        Ok(names)
    }

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path.join(name))?;
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Puts a file with these bytes in place; returns once that would survive a power cut.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
        let written = write_and_flush(&unfinished, bytes)
            .and_then(|()| fs::rename(&unfinished, self.path.join(name)));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written.and_then(|()| self.flush())
    }

    /// Removes a file for good; it may be absent. A folder in its place goes if it is empty.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        let removed = match fs::remove_file(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(&path),
            removed => removed,
        };
        match removed {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => self.flush(),
        }
    }

    fn flush(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// On a file system that is read-only by now the lock keeps readers apart from each other.
fn open_lock(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    match opened {
        Err(cause) if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        opened => opened,
    }
}

/// The plugin writes as root into what `dataDir` names, so a slip there must not touch anything else.
fn judge(path: &Path, is_content: impl Fn(&str) -> bool) -> io::Result<()> {
    let refused = |sentence: String| Err(io::Error::other(sentence));
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return refused("it is a symbolic link; let dataDir name the folder itself".to_owned());
    }
    if !found.is_dir() {
        return refused("it is no folder; let dataDir name another place".to_owned());
    }
    let own = process::effective_uid();
    if found.uid() != own {
        let owner = found.uid();
        return refused(format!(
            "it belongs to user {owner}; let dataDir name a folder of user {own}'s, or one that \
             does not exist yet"
        ));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return refused(format!(
            "others than its owner may write there (mode {mode:o}); `chmod go-w` it if it is the \
             ledger, else let dataDir name another folder"
        ));
    }
    let mut foreign = None;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if is_content(&text) {
            return Ok(());
        }
        let is_harmless = text == LOCK || text == LOST_AND_FOUND || text.ends_with(UNFINISHED);
        if !is_harmless {
            foreign = Some(text.into_owned());
        }
    }
    match foreign {
        None => Ok(()),
        Some(name) => refused(format!(
            "it holds {name:?} and no ledger; let dataDir name a folder of the plugin's own, empty \
             or not there yet"
        )),
    }
}

fn write_and_flush(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
