//! Files that are there as a whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use podmesh_kernel::process;

const LOCK: &str = "lock";
const UNFINISHED: &str = ".unfinished";
const MAX_FILE_BYTES: u64 = 1024 * 1024;
const LOCK_POLL: Duration = Duration::from_millis(2);

/// A folder that is locked for this process.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is absent, and waits for its lock.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if fs::metadata(path)?.permissions().mode() & 0o777 != 0o700 {
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))?;
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
                fs::remove_file(self.path.join(&name))?;
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
