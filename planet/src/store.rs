//! The planet's books on disk: one file, one transaction per commit, synced before it returns.
//!
//! Behind a small trait, so that another store can take its place where one machine is not enough.

mod backup;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use self::backup::Backup;

use podmesh_proto::id::PlanetId;
use podmesh_proto::key::digest;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::identity::give_to_owner;
use crate::rules::records::{Change, Origin, Record, RecordKey};

/// The store's file in the state directory.
pub const FILE: &str = "planet.redb";
const FORMAT: &[u8] = &[1];
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const CHECKSUM: usize = 8;

/// A key, and the value that it gets; none takes the key away.
type Write = (Vec<u8>, Option<Vec<u8>>);

/// Where the books are kept.
pub trait Store: Send {
    /// Everything, in no particular order.
    ///
    /// # Errors
    /// The store can't be read, or what it holds is damaged.
    fn load(&mut self) -> Result<Vec<Record>, StoreError>;

    /// Makes `changes` durable, all or nothing, before it returns.
    ///
    /// # Errors
    /// They are not durable, and won't be after a restart either.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError>;
}

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no store.
    #[error("there is no planet in {path}; make one with `planet init --state-dir {path}`")]
    Missing {
        /// The state directory.
        path: String,
    },
    /// There is one already.
    #[error("{path} exists already; a planet's store is never overwritten")]
    Exists {
        /// The file.
        path: String,
    },
    /// Another process has it open.
    #[error("{path} is in use by a running planet; stop it first")]
    InUse {
        /// The file.
        path: String,
    },
    /// The content can't be believed.
    #[error(
        "{path} is damaged ({reason}); restore a backup with `planet restore FILE`, or move the file away: the planet then asks its members for what it has forgotten"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Somebody has put another file in the place of the one that is open.
    #[error(
        "another file has taken the place of {path}, which is open; restart the planet to serve from that one, or put the former one back"
    )]
    Displaced {
        /// The file.
        path: String,
    },
    /// A write has failed, and the next one opens the file anew.
    #[error(
        "{path} was closed after a write that failed; it is tried again every ten seconds, and `planet status` says why it fails"
    )]
    Closed {
        /// The file.
        path: String,
    },
    /// Written by a program of another version.
    #[error("{path} has a format that this version of planet doesn't know; use a newer one")]
    Format {
        /// The file.
        path: String,
    },
    /// The operating system refuses.
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

/// A [`Store`] in one file.
pub struct DiskStore {
    path: PathBuf,
    database: Option<Database>,
    /// The file once more, so that it can be read after it was closed and taken away.
    file: Option<File>,
    /// Device and inode of the file that is open.
    place: Option<(u64, u64)>,
    /// What has to be put back before the next commit, because the last one failed half way.
    undo: Vec<Write>,
}

impl DiskStore {
    /// Makes an empty store in a state directory.
    ///
    /// # Errors
    /// There is one already, or the disk refuses.
    pub fn create(state_dir: &Path, origin: Origin) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE);
        if path.exists() {
            let path = path.display().to_string();
            return Err(StoreError::Exists { path });
        }
        let (store, unfinished) = Self::build(state_dir, &[Change::Put(Record::Origin(origin))])?;
        let placed = fs::rename(unfinished, &path).and_then(|()| File::open(state_dir)?.sync_all());
        placed.map_err(|error| refused(&path, &error))?;
        Ok(store)
    }

    /// A store that holds what `changes` put, durable, under another name than its own: a crash leaves no
    /// half store. It belongs to whom the state directory belongs to.
    fn build(state_dir: &Path, changes: &[Change]) -> Result<(Self, PathBuf), StoreError> {
        let path = state_dir.join(FILE);
        let unfinished = state_dir.join(format!("{FILE}.new"));
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(refused(&path, &error));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(|error| refused(&path, &error))?;
        let again = reopened(&unfinished).map_err(|error| refused(&path, &error))?;
        let mut store = Self {
            path: path.clone(),
            database: None,
            file: Some(again),
            place: None,
            undo: Vec::new(),
        };
        let database = Database::builder().create_file(file);
        store.database = Some(database.map_err(|error| store.judge(error))?);
        store.commit(changes)?;
        give_to_owner(state_dir, &unfinished).map_err(|error| refused(&path, &error))?;
        store.place = place_of(&unfinished).map_err(|error| refused(&path, &error))?;
        Ok((store, unfinished))
    }

    /// Whether nothing was ever kept in this store: whoever made it was stopped before its key.
    ///
    /// # Errors
    /// It can't be read.
    pub fn is_untouched(&mut self) -> Result<bool, StoreError> {
        let records = self.load()?;
        Ok(matches!(
            records.as_slice(),
            [Record::Origin(Origin::Fresh)]
        ))
    }

    /// Opens the store of a state directory, and looks at every page of it.
    ///
    /// # Errors
    /// Missing, in use, damaged, or not readable.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE);
        if !path.exists() {
            let path = state_dir.display().to_string();
            return Err(StoreError::Missing { path });
        }
        let mut store = Self {
            path,
            database: None,
            file: None,
            place: None,
            undo: Vec::new(),
        };
        let mut database = store.open_file()?;
        let sound = database
            .check_integrity()
            .map_err(|error| store.judge(error))?;
        if !sound {
            tracing::warn!(path = %store.path.display(), "the store was not closed properly and was repaired");
        }
        store.check_format(&database)?;
        store.place = place_of(&store.path).map_err(|error| refused(&store.path, &error))?;
        store.file = Some(reopened(&store.path).map_err(|error| refused(&store.path, &error))?);
        store.database = Some(database);
        Ok(store)
    }

    /// Everything in the store as one file's content, with the planet whose it is and a checksum.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn backup(&mut self, planet: &PlanetId) -> Result<Vec<u8>, StoreError> {
        let records = self.load()?;
        backup::encode(planet, &records).map_err(|reason| self.damaged(&reason))
    }

    /// What a state directory's store holds; none if there is no store, or none that can be read.
    ///
    /// # Errors
    /// A planet is running, or the caller may not read it.
    pub fn present(state_dir: &Path) -> Result<Option<Vec<Record>>, StoreError> {
        match Self::open(state_dir).and_then(|mut store| store.load()) {
            Ok(records) => Ok(Some(records)),
            Err(
                error @ (StoreError::InUse { .. }
                | StoreError::Io {
                    permission: true, ..
                }),
            ) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Replaces the store of a state directory by a backup, and marks it as such. Whatever was there is
    /// kept beside it under a name of its own, which this returns; a crash at any instant leaves the old
    /// store in place or the new one.
    ///
    /// # Errors
    /// The backup is damaged, a planet is running, or the disk refuses; nothing has changed then.
    pub fn restore(state_dir: &Path, backup: &[u8]) -> Result<Option<PathBuf>, StoreError> {
        let path = state_dir.join(FILE);
        let records = Backup::read(backup)?.records;
        if let Err(error @ StoreError::InUse { .. }) = Self::open(state_dir) {
            return Err(error);
        }
        let kept = records
            .into_iter()
            .filter(|record| !matches!(record, Record::Origin(_) | Record::UnknownUses(_)));
        let changes: Vec<Change> = [Record::Origin(Origin::Restored)]
            .into_iter()
            .chain(kept)
            .map(Change::Put)
            .collect();
        let (store, unfinished) = Self::build(state_dir, &changes)?;
        drop(store);
        let place = || -> io::Result<Option<PathBuf>> {
            let aside = keep_aside(&path)?;
            fs::rename(&unfinished, &path)?;
            File::open(state_dir)?.sync_all()?;
            Ok(aside)
        };
        place().map_err(|error| refused(&path, &error))
    }

    /// Makes sure that what is open is what the next start would find. If the file, or its directory, was
    /// taken away, it is written anew from what is open; gives whether it was.
    ///
    /// # Errors
    /// Another file has its place, or it can't be written; the next start would know nothing of what is
    /// committed.
    pub fn stand(&mut self) -> Result<bool, StoreError> {
        let found = place_of(&self.path).map_err(|error| refused(&self.path, &error))?;
        if self.place.is_none() || found == self.place {
            return Ok(false);
        }
        if found.is_some() {
            let path = self.path.display().to_string();
            return Err(StoreError::Displaced { path });
        }
        self.write_anew().map(|()| true)
    }

    fn write_anew(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let failed = |error: io::Error| refused(&path, &error);
        if self.database.is_none() {
            self.database = Some(self.open_what_was_taken()?);
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let records = self.load()?;
        let changes: Vec<Change> = records.into_iter().map(Change::Put).collect();
        let (store, unfinished) = Self::build(folder, &changes)?;
        fs::rename(&unfinished, &path)
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(failed)?;
        // What has to be undone was written anew with the rest.
        let undo = std::mem::take(&mut self.undo);
        *self = Self { undo, ..store };
        tracing::warn!(path = %path.display(), "the store was taken away and is written anew");
        Ok(())
    }

    fn open_file(&self) -> Result<Database, StoreError> {
        Database::open(&self.path).map_err(|error| self.judge(error))
    }

    /// The store that an error has closed, out of a file that has no name any more.
    fn open_what_was_taken(&self) -> Result<Database, StoreError> {
        let failed = |error: io::Error| refused(&self.path, &error);
        let file = self.file.as_ref();
        let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        // An empty file would be taken for a new store, and everything in it for forgotten.
        if file.metadata().map_err(failed)?.len() == 0 {
            return Err(self.damaged("it was taken away, and is empty"));
        }
        let again = file.try_clone().map_err(failed)?;
        let opened = Database::builder().create_file(again);
        opened.map_err(|error| self.judge(error))
    }

    fn check_format(&self, database: &Database) -> Result<(), StoreError> {
        let read = database.begin_read().map_err(|error| self.judge(error))?;
        let meta = read.open_table(META).map_err(|error| self.judge(error))?;
        let format = meta.get("format").map_err(|error| self.judge(error))?;
        match format {
            Some(format) if format.value() == FORMAT => Ok(()),
            Some(_) => Err(StoreError::Format {
                path: self.path.display().to_string(),
            }),
            None => Err(self.damaged("it has no format")),
        }
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), redb::Error> {
        let Some(database) = &self.database else {
            return Err(redb::Error::DatabaseClosed);
        };
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            let mut table = transaction.open_table(RECORDS)?;
            for (key, value) in self.undo.iter().chain(writes) {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                    None => table.remove(key.as_slice())?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// The present values under the keys of `writes`.
    fn before(&self, writes: &[Write]) -> Result<Vec<Write>, redb::Error> {
        let Some(database) = &self.database else {
            return Err(redb::Error::DatabaseClosed);
        };
        let read = database.begin_read()?;
        let table = match read.open_table(RECORDS) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => {
                return Ok(writes.iter().map(|(key, _)| (key.clone(), None)).collect());
            }
            Err(error) => return Err(error.into()),
        };
        let mut before = Vec::with_capacity(writes.len());
        for (key, _) in writes {
            let value = table.get(key.as_slice())?;
            before.push((key.clone(), value.map(|value| value.value().to_vec())));
        }
        Ok(before)
    }

    fn damaged(&self, reason: &str) -> StoreError {
        StoreError::Damaged {
            path: self.path.display().to_string(),
            reason: reason.to_owned(),
        }
    }

    fn judge(&self, error: impl Into<redb::Error>) -> StoreError {
        let path = self.path.display().to_string();
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path },
            redb::Error::UpgradeRequired(_) => StoreError::Format { path },
            redb::Error::Io(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                StoreError::Io {
                    path,
                    permission: error.kind() == io::ErrorKind::PermissionDenied,
                    reason: error.to_string(),
                }
            }
            other => self.damaged(&other.to_string()),
        }
    }
}

/// Gives a file a second name that none has, so that the first one can be taken over. None if there is no
/// file.
fn keep_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    for number in 1_u32.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".before-restore-{number}"));
        let aside = PathBuf::from(name);
        match fs::hard_link(path, &aside) {
            Ok(()) => return Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn reopened(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Device and inode of a file, if there is one.
fn place_of(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(|found| Some((found.dev(), found.ino()))),
    }
}

fn refused(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io {
        path: path.display().to_string(),
        reason: error.to_string(),
        permission: error.kind() == io::ErrorKind::PermissionDenied,
    }
}

impl Store for DiskStore {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        let Some(database) = &self.database else {
            let path = self.path.display().to_string();
            return Err(StoreError::Closed { path });
        };
        let read = database.begin_read().map_err(|error| self.judge(error))?;
        let table = read
            .open_table(RECORDS)
            .map_err(|error| self.judge(error))?;
        let mut records = Vec::new();
        for row in table.iter().map_err(|error| self.judge(error))? {
            let (key, value) = row.map_err(|error| self.judge(error))?;
            let record = decode(key.value(), value.value());
            records.push(record.ok_or_else(|| self.damaged("a record can't be read"))?);
        }
        Ok(records)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut writes = Vec::with_capacity(changes.len());
        for change in changes {
            writes.push(encode(change).map_err(|reason| self.damaged(&reason))?);
        }
        self.stand()?;
        if self.database.is_none() {
            // After an error the file is closed, and opened anew as soon as it is wanted.
            self.database = Some(self.open_file()?);
        }
        let before = self.before(&writes).map_err(|error| self.judge(error))?;
        match self.write(&writes) {
            Ok(()) => {
                self.undo.clear();
                Ok(())
            }
            Err(error) => {
                // Nobody knows what of it reached the disk: it is undone before anything else. What
                // has to be undone already wins, as it is older.
                let undone = |key: &[u8]| self.undo.iter().any(|(other, _)| other == key);
                let new: Vec<_> = before.into_iter().filter(|(key, _)| !undone(key)).collect();
                self.undo.extend(new);
                self.database = None;
                Err(self.judge(error))
            }
        }
    }
}

/// The key and value that a change writes.
fn encode(change: &Change) -> Result<Write, String> {
    let bytes = |key: &RecordKey| postcard::to_allocvec(key).map_err(|error| error.to_string());
    match change {
        Change::Remove(key) => Ok((bytes(key)?, None)),
        Change::Put(record) => {
            let key = bytes(&record.key().map_err(|error| error.to_string())?)?;
            let mut value = postcard::to_allocvec(record).map_err(|error| error.to_string())?;
            value.extend(checksum(&key, &value));
            Ok((key, Some(value)))
        }
    }
}

fn decode(key: &[u8], value: &[u8]) -> Option<Record> {
    let (record, sum) = value.split_at_checked(value.len().checked_sub(CHECKSUM)?)?;
    if checksum(key, record) != sum {
        return None;
    }
    let record: Record = postcard::from_bytes(record).ok()?;
    let own = postcard::to_allocvec(&record.key().ok()?).ok()?;
    (own == key).then_some(record)
}

fn checksum(key: &[u8], value: &[u8]) -> Vec<u8> {
    let length = u64::try_from(key.len()).unwrap_or(u64::MAX).to_le_bytes();
    let bytes = [length.as_slice(), key, value].concat();
    let hash = digest("podmesh planet record v1", &bytes);
    hash.iter().take(CHECKSUM).copied().collect()
}

/// Writes a file that only its owner may read, so that a crash leaves the old one or the new one.
///
/// # Errors
/// The disk refuses.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let _ = fs::remove_file(&unfinished);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(folder)?.sync_all()
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskStore({})", self.path.display())
    }
}

#[cfg(test)]
mod tests;
