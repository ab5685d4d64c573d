//! One file in two generations, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::envelope::{self, Damage};
use super::{OTHERS, StateDir, StateError};

/// Bytes. Far above what thousands of members need.
const MAX_FILE: u64 = 256 << 20;

/// A file of the state folder.
#[derive(Debug)]
pub(crate) struct Document {
    path: PathBuf,
    previous: PathBuf,
    kind: &'static str,
    version: u16,
    /// Whether the present file is whole, and so worth being kept as the previous one.
    is_whole: bool,
    /// Whether there is a generation before it.
    has_previous: bool,
}

/// What was found on disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// Nothing: no join yet.
    Nothing,
    /// The last state that was written.
    Current(Vec<u8>),
    /// The one before, because the last one is damaged in the way named.
    Previous(Vec<u8>, String),
}

/// Why a file gives no content.
enum Trouble {
    /// It is torn, zeroed, or of somebody else.
    Damage(&'static str),
    /// The disk doesn't give it.
    Unreadable(StateError, String),
    /// It must not be used, whatever the other generation is like.
    Forbidden(StateError),
}

impl Document {
    /// The file `name` of the folder, whose content has the format `version` of `kind`.
    pub(crate) fn new(dir: &StateDir, name: &str, kind: &'static str, version: u16) -> Self {
        Self {
            path: dir.path().join(name),
            previous: dir.path().join(format!("{name}.previous")),
            kind,
            version,
            is_whole: false,
            has_previous: false,
        }
    }

    /// Reads the content, of the generation before if the disk doesn't give the newest one or gives
    /// something else. Where one of the two is missing or spoilt, it is written anew, if the disk allows.
    ///
    /// # Errors
    /// Neither generation can be used, the file is of a newer format, or others may read it.
    pub(crate) fn load(&mut self) -> Result<Loaded, StateError> {
        (self.is_whole, self.has_previous) = (false, false);
        let trouble = match self.read(&self.path) {
            Ok(Some(content)) => {
                self.is_whole = true;
                self.has_previous = matches!(self.read(&self.previous), Ok(Some(_)));
                self.mend(&content);
                return Ok(Loaded::Current(content));
            }
            Ok(None) => None,
            Err(Trouble::Forbidden(error)) => return Err(error),
            Err(trouble) => Some(trouble),
        };
        let (previous, is_spoilt) = match self.read(&self.previous) {
            Ok(previous) => (previous, false),
            Err(Trouble::Forbidden(error)) => return Err(error),
            Err(Trouble::Unreadable(error, _)) if trouble.is_none() => return Err(error),
            Err(_) => (None, true),
        };
        match (trouble, previous) {
            (None, None) if !is_spoilt => Ok(Loaded::Nothing),
            (trouble, Some(content)) => {
                self.has_previous = true;
                self.mend(&content);
                Ok(Loaded::Previous(content, Trouble::words(trouble)))
            }
            (Some(Trouble::Unreadable(error, _)), None) => Err(error),
            (trouble, None) => Err(StateError::Damaged {
                path: self.path.clone(),
                damage: Trouble::words(trouble),
            }),
        }
    }

    /// Replaces the content. When this returns it is on disk, and so is the generation before, or a second
    /// copy where there was none; a crash at any instant leaves one of the two in place.
    ///
    /// # Errors
    /// The disk is full or broken; what was there before still is.
    pub(crate) fn store(&mut self, content: &[u8]) -> io::Result<()> {
        let sealed = envelope::seal(self.kind, self.version, content);
        let temporary = write_beside(&self.path, &sealed)?;
        if self.is_whole {
            let spare = self.previous.with_extension("previous-new");
            remove_if_there(&spare)?;
            fs::hard_link(&self.path, &spare)?;
            fs::rename(&spare, &self.previous)?;
            self.has_previous = true;
        }
        fs::rename(&temporary, &self.path)?;
        self.is_whole = true;
        sync_folder_of(&self.path)?;
        if !self.has_previous {
            // A link would be spoilt together with the file.
            fs::rename(write_beside(&self.previous, &sealed)?, &self.previous)?;
            self.has_previous = true;
            sync_folder_of(&self.path)?;
        }
        Ok(())
    }

    /// Removes both generations.
    ///
    /// # Errors
    /// The disk refuses; the newest generation goes last.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        for path in [&self.previous, &self.path] {
            remove_if_there(path)?;
        }
        (self.is_whole, self.has_previous) = (false, false);
        sync_folder_of(&self.path)
    }

    /// Writes the generation that is missing, of this content.
    fn mend(&mut self, content: &[u8]) {
        let path = match (self.is_whole, self.has_previous) {
            (true, true) => return,
            (true, false) => &self.previous,
            (false, _) => &self.path,
        };
        // What a newer program has written is not ours to overwrite.
        if matches!(self.read(path), Err(Trouble::Forbidden(_))) {
            return;
        }
        let sealed = envelope::seal(self.kind, self.version, content);
        match replace_file(path, &sealed) {
            Ok(()) => (self.is_whole, self.has_previous) = (true, true),
            Err(error) => {
                tracing::debug!(file = %path.display(), reason = %error, "there is one generation");
            }
        }
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Trouble> {
        let unusable = |cause: io::Error| {
            let words = format!("it can't be read: {cause}");
            let path = path.to_owned();
            Trouble::Unreadable(StateError::Unusable { path, cause }, words)
        };
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            outcome => outcome.map_err(unusable)?,
        };
        if metadata.mode() & OTHERS != 0 {
            return Err(Trouble::Forbidden(StateError::Mode {
                path: path.to_owned(),
                mode: metadata.mode() & 0o7777,
                wanted: 0o600,
            }));
        }
        if !metadata.is_file() || metadata.len() > MAX_FILE {
            return Err(Trouble::Damage("it is no file of meshd"));
        }
        let bytes = fs::read(path).map_err(unusable)?;
        match envelope::open(self.kind, self.version, &bytes) {
            Ok(content) => Ok(Some(content.to_vec())),
            Err(Damage::Broken(words)) => Err(Trouble::Damage(words)),
            Err(Damage::Newer(found)) => Err(Trouble::Forbidden(StateError::Newer {
                path: path.to_owned(),
                found,
                known: self.version,
            })),
        }
    }
}

impl Trouble {
    /// No trouble is a file that isn't there.
    fn words(trouble: Option<Self>) -> String {
        match trouble {
            None => "it is missing".to_owned(),
            Some(Self::Damage(words)) => words.to_owned(),
            Some(Self::Unreadable(_, words)) => words,
            Some(Self::Forbidden(error)) => error.to_string(),
        }
    }
}

/// Replaces a plain file as a whole: written beside it, flushed, renamed, folder flushed.
///
/// # Errors
/// Some step failed; the old file is still there.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, bytes)?;
    fs::rename(temporary, path)?;
    sync_folder_of(path)
}

fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    remove_if_there(&temporary)?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
    if written.is_err() {
        // Half a file on a full disk would only keep it full.
        let _ = remove_if_there(&temporary);
    }
    written.map(|()| temporary)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_file_torn_at_any_place_gives_the_generation_before() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let contents = [vec![1; 1000], vec![2; 1000]];
        let mut document = Document::new(&dir, "state", "test", 1);
        assert_eq!(document.load().unwrap(), Loaded::Nothing);
        contents
            .iter()
            .for_each(|content| document.store(content).unwrap());
        let path = dir.path().join("state");
        let whole = fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(64) {
            let zeroed = [&whole[..cut], &vec![0; whole.len() - cut]].concat();
            for torn in [&whole[..cut], &zeroed] {
                fs::write(&path, torn).unwrap();
                let mut document = Document::new(&dir, "state", "test", 1);
                let loaded = document.load().unwrap();
                assert!(
                    matches!(&loaded, Loaded::Previous(content, _) if *content == contents[0]),
                    "cut at {cut}: {loaded:?}"
                );
                // Writing anew must not take the damaged file for the generation to keep.
                document.store(&contents[1]).unwrap();
                fs::write(&path, torn).unwrap();
                let mut document = Document::new(&dir, "state", "test", 1);
                assert!(matches!(document.load().unwrap(), Loaded::Previous(..)));
            }
        }
    }

    #[test]
    fn the_first_content_has_a_second_copy_and_a_lost_one_is_made_anew() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let (path, previous) = (dir.path().join("state"), dir.path().join("state.previous"));
        Document::new(&dir, "state", "test", 1)
            .store(b"one")
            .unwrap();
        let load = || Document::new(&dir, "state", "test", 1).load().unwrap();
        for spoil in [
            |path: &Path| fs::remove_file(path).unwrap(),
            |path: &Path| fs::write(path, b"").unwrap(),
            |path: &Path| fs::write(path, [7; 300]).unwrap(),
        ] {
            assert_ne!(
                fs::metadata(&path).unwrap().ino(),
                fs::metadata(&previous).unwrap().ino()
            );
            spoil(&path);
            assert!(matches!(load(), Loaded::Previous(content, _) if content == b"one"));
            assert_eq!(load(), Loaded::Current(b"one".to_vec()));
            spoil(&previous);
            assert_eq!(load(), Loaded::Current(b"one".to_vec()));
            assert_eq!(fs::read(&path).unwrap(), fs::read(&previous).unwrap());
        }
        // One that is left alone and torn is not taken for a first start.
        fs::remove_file(&path).unwrap();
        fs::write(&previous, b"").unwrap();
        let error = Document::new(&dir, "state", "test", 1).load().unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_crash_between_two_steps_loses_nothing() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut document = Document::new(&dir, "state", "test", 1);
        document.store(b"one").unwrap();
        document.store(b"two").unwrap();
        // Before the last rename: a new file and a link to the old one lie beside it.
        fs::write(dir.path().join("state.new"), b"half").unwrap();
        fs::write(dir.path().join("state.previous-new"), b"link").unwrap();
        let mut again = Document::new(&dir, "state", "test", 1);
        assert_eq!(again.load().unwrap(), Loaded::Current(b"two".to_vec()));
        again.store(b"three").unwrap();
        fs::remove_file(dir.path().join("state")).unwrap();
        assert_eq!(
            again.load().unwrap(),
            Loaded::Previous(b"two".to_vec(), "it is missing".to_owned())
        );
    }

    #[test]
    fn damage_of_both_generations_is_named_and_nothing_is_touched() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut document = Document::new(&dir, "state", "test", 1);
        fs::write(dir.path().join("state"), b"").unwrap();
        fs::set_permissions(dir.path().join("state"), fs::Permissions::from_mode(0o600)).unwrap();
        let error = document.load().unwrap_err().to_string();
        assert!(
            error.contains("cut short") && error.contains("join again"),
            "{error}"
        );
        assert!(dir.path().join("state").exists());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut document = Document::new(&dir, "state", "test", 1);
        document.store(b"secret").unwrap();
        let path = dir.path().join("state");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let message = document.load().unwrap_err().to_string();
        assert!(
            message.contains("mode 0640") && message.contains("`chmod 600`"),
            "{message}"
        );
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_the_old_content() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut document = Document::new(&dir, "state", "test", 1);
        document.store(b"one").unwrap();
        fs::create_dir_all(dir.path().join("state.new/in-the-way")).unwrap();
        assert!(document.store(b"two").is_err());
        assert_eq!(document.load().unwrap(), Loaded::Current(b"one".to_vec()));
    }
}
