//! Files that only their owner may read, written so that a crash leaves the old or the new content.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::problem::{Exit, Problem};

/// Bytes. No file that meshctl reads is larger.
const MAX_FILE: u64 = 1024 * 1024;

/// Writes a new file with mode 0600.
///
/// # Errors
/// The file exists already, or can't be written; then nothing is left of it.
pub(crate) fn create(path: &Path, content: &[u8]) -> Result<(), Problem> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = made.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Problem::failed(format!("{} exists already", path.display()))
            .next("name another file, or move this one away"),
        _ => problem("write", path, &error),
    })?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written
        .and_then(|()| sync_folder_of(path))
        .map_err(|error| {
            // Half a file would only be in the way of the next try.
            let _gone = fs::remove_file(path);
            problem("write", path, &error)
        })
}

/// Replaces a file, or makes it, with mode 0600.
///
/// # Errors
/// It can't be written; then the old content stays.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Problem> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    create(&fresh, content)?;
    fs::rename(&fresh, path)
        .and_then(|()| sync_folder_of(path))
        .map_err(|error| {
            let _gone = fs::remove_file(&fresh);
            problem("write", path, &error)
        })
}

/// Reads a file of at most 1 MiB.
///
/// # Errors
/// It can't be read, or is larger.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let file = File::open(path).map_err(|error| problem("read", path, &error))?;
    read_open(file, path)
}

/// Reads a file as [`read`] does, as text.
///
/// # Errors
/// It can't be read, is larger, or is no UTF-8 text.
pub(crate) fn read_text(path: &Path) -> Result<Zeroizing<String>, Problem> {
    text(read(path)?, path)
}

/// Reads a secret text: refused if others than its owner may read it.
///
/// # Errors
/// As [`read_text`], or its mode or owner is wrong.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, Problem> {
    let file = File::open(path).map_err(|error| problem("read", path, &error))?;
    let meta = file
        .metadata()
        .map_err(|error| problem("read", path, &error))?;
    let mode = meta.mode() & 0o777;
    if meta.is_file() && mode & 0o077 != 0 {
        let cause = format!(
            "{} may be read by others than its owner (mode {mode:04o})",
            path.display()
        );
        return Err(
            Problem::new(Exit::Permission, cause).next(format!("chmod 600 {}", path.display()))
        );
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.is_file() && meta.uid() != me && me != 0 {
        let cause = format!("{} belongs to another user", path.display());
        return Err(Problem::new(Exit::Permission, cause));
    }
    text(read_open(file, path)?, path)
}

/// Makes a folder with mode 0700 and those above it, or takes over one that exists and is empty.
///
/// # Errors
/// It exists with something in it, or can't be made.
pub(crate) fn create_folder(path: &Path) -> Result<(), Problem> {
    let failed = |error: io::Error| problem("make", path, &error);
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if fs::read_dir(path).map_err(failed)?.next().is_some() {
                let cause = format!("{} exists already and is not empty", path.display());
                return Err(Problem::failed(cause)
                    .next("name another folder with --dir, or move this one away"));
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// What a failed file operation tells its caller.
pub(crate) fn problem(verb: &str, path: &Path, error: &io::Error) -> Problem {
    let exit = match error.kind() {
        ErrorKind::PermissionDenied => Exit::Permission,
        ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Failed,
    };
    let problem = Problem::new(exit, format!("can't {verb} {}: {error}", path.display()));
    match error.kind() {
        ErrorKind::PermissionDenied => problem.next("run it as the owner of the file"),
        ErrorKind::NotFound => problem.next("check the path"),
        ErrorKind::StorageFull => problem.next("free some space; nothing was changed"),
        _ => problem,
    }
}

fn read_open(file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_FILE.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|error| problem("read", path, &error))?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > MAX_FILE {
        let cause = format!("{} is larger than {MAX_FILE} bytes", path.display());
        return Err(Problem::failed(cause).next("check that this is the right file"));
    }
    Ok(content)
}

fn text(mut content: Zeroizing<Vec<u8>>, path: &Path) -> Result<Zeroizing<String>, Problem> {
    String::from_utf8(std::mem::take(&mut *content))
        .map(Zeroizing::new)
        .map_err(|_| {
            Problem::failed(format!("{} is not a text file", path.display()))
                .next("check that this is the right file")
        })
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
