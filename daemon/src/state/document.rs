//! One file in two generations, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::envelope::{self, Damage};
use super::{Folder, OTHERS, StateDir, StateError};
use crate::kept::Kept;

/// Bytes. Far above what thousands of members need.
const MAX_FILE: u64 = 256 << 20;

/// A file of the state folder.
#[derive(Debug)]
pub(crate) struct Document {
    path: PathBuf,
    previous: PathBuf,
    kind: &'static str,
    version: u16,
    folder: Folder,
    link: fn(&Path, &Path) -> io::Result<()>,
    /// Both generations as this process has left them; nothing while there is to be none.
    left: Option<[Option<Kept>; 2]>,
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
enum Unfit {
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
            folder: dir.folder(),
            link: |file, name| fs::hard_link(file, name),
            left: None,
        }
    }

    /// Reads the content, of the generation before if the disk doesn't give the newest one or gives
    /// something else. Where one of the two is missing or spoilt, it is written anew, if the disk allows.
    /// Where both are, what was written beside them last is as good, if it is whole.
    ///
    /// # Errors
    /// No generation can be used, the file is of a newer format, or others may read it.
    pub(crate) fn load(&mut self) -> Result<Loaded, StateError> {
        let loaded = self.load_any();
        let is_there = !matches!(loaded, Ok(Loaded::Nothing) | Err(_));
        self.left = is_there.then(|| self.as_left());
        loaded
    }

    fn load_any(&self) -> Result<Loaded, StateError> {
        let trouble = match self.read(&self.path) {
            Ok(Some(content)) => {
                if !matches!(self.read(&self.previous), Ok(Some(_))) {
                    self.mend(&self.previous, &content);
                }
                return Ok(Loaded::Current(content));
            }
            Ok(None) => None,
            Err(Unfit::Forbidden(error)) => return Err(error),
            Err(trouble) => Some(trouble),
        };
        let previous = match self.read(&self.previous) {
            Ok(previous) => Ok(previous),
            Err(Unfit::Forbidden(error)) => return Err(error),
            Err(spoilt) => Err(spoilt),
        };
        if let Ok(Some(content)) = previous {
            self.mend(&self.path, &content);
            return Ok(Loaded::Previous(content, Unfit::words(trouble)));
        }
        if let Some(content) = self.take_unfinished() {
            return Ok(Loaded::Previous(content, Unfit::words(trouble)));
        }
        match (trouble, previous) {
            (None, Ok(_)) => Ok(Loaded::Nothing),
            (Some(Unfit::Unreadable(error, _)), _) | (None, Err(Unfit::Unreadable(error, _))) => {
                Err(error)
            }
            (trouble, _) => Err(StateError::Damaged {
                path: self.path.clone(),
                damage: Unfit::words(trouble),
            }),
        }
    }

    /// Replaces the content. When this returns it is on disk, and so is the generation before, or a second
    /// copy where there was none; a crash at any instant leaves one of the two in place. What was taken
    /// away or spoilt meanwhile is made anew, the folder too, and takes the place of nothing that is whole.
    ///
    /// # Errors
    /// The disk is full or broken; what was there before still is.
    pub(crate) fn store(&mut self, content: &[u8]) -> io::Result<()> {
        let sealed = envelope::seal(self.kind, self.version, content);
        let stored = self.store_sealed(&sealed);
        self.left = Some(self.as_left());
        stored
    }

    /// Replaces both generations, the older one last.
    ///
    /// # Errors
    /// The disk is full or broken; one of what was there before still is, or what is new.
    pub(crate) fn store_both(&mut self, content: &[u8]) -> io::Result<()> {
        let sealed = envelope::seal(self.kind, self.version, content);
        let stored = self
            .store_sealed(&sealed)
            .and_then(|()| replace_file(&self.previous, &sealed));
        self.left = Some(self.as_left());
        stored
    }

    fn store_sealed(&self, sealed: &[u8]) -> io::Result<()> {
        self.folder.ensure()?;
        let temporary = write_beside(&self.path, sealed)?;
        let is_whole = matches!(self.read(&self.path), Ok(Some(_)));
        if is_whole {
            self.keep_as_previous()?;
        }
        fs::rename(&temporary, &self.path)?;
        sync_folder_of(&self.path)?;
        if !is_whole && !matches!(self.read(&self.previous), Ok(Some(_))) {
            // A link would be spoilt together with the file.
            replace_file(&self.previous, sealed)?;
        }
        Ok(())
    }

    /// The present file becomes the generation before: by a link, or, where the file system has none, by
    /// a copy.
    fn keep_as_previous(&self) -> io::Result<()> {
        let spare = self.spare();
        remove_if_there(&spare)?;
        match (self.link)(&self.path, &spare) {
            Ok(()) => fs::rename(&spare, &self.previous),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
            Err(_) => replace_file(&self.previous, &fs::read(&self.path)?),
        }
    }

    fn spare(&self) -> PathBuf {
        self.previous.with_extension("previous-new")
    }

    /// Removes both generations, and what was to become one.
    ///
    /// # Errors
    /// The disk refuses; the newest generation goes last.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        let unfinished = [&self.previous, &self.path].map(|path| beside(path));
        let [first, second] = &unfinished;
        for path in [&self.spare(), first, second, &self.previous, &self.path] {
            remove_if_there(path)?;
        }
        self.left = None;
        match sync_folder_of(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }

    /// The generations that should be on disk, as this process has left them. One that it could not leave
    /// there is not among them: whoever wanted that tries again.
    pub(crate) fn left(&self) -> Vec<Kept> {
        let left = self.left.iter().flatten().flatten();
        left.cloned().collect()
    }

    fn as_left(&self) -> [Option<Kept>; 2] {
        [&self.path, &self.previous].map(|path| Kept::at(path).ok())
    }

    /// Writes the generation that is missing or spoilt, of this content.
    fn mend(&self, path: &Path, content: &[u8]) {
        // What a newer program has written is not ours to overwrite.
        if matches!(self.read(path), Err(Unfit::Forbidden(_))) {
            return;
        }
        let sealed = envelope::seal(self.kind, self.version, content);
        if let Err(error) = replace_file(path, &sealed) {
            tracing::debug!(file = %path.display(), reason = %error, "there is one generation");
        }
    }

    /// A content that was whole on its way to become the newest generation.
    fn take_unfinished(&self) -> Option<Vec<u8>> {
        let path = beside(&self.path);
        let content = self.read(&path).ok().flatten()?;
        // Not to be removed to make room for a copy of itself.
        let placed = File::open(&path)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&path, &self.path))
            .and_then(|()| sync_folder_of(&self.path));
        if let Err(error) = placed {
            tracing::debug!(file = %path.display(), reason = %error, "it stays where it is");
            return Some(content);
        }
        self.mend(&self.previous, &content);
        Some(content)
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Unfit> {
        let unusable = |cause: io::Error| {
            let words = format!("it can't be read: {cause}");
            let path = path.to_owned();
            Unfit::Unreadable(StateError::Unusable { path, cause }, words)
        };
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            outcome => outcome.map_err(unusable)?,
        };
        if metadata.mode() & OTHERS != 0 {
            return Err(Unfit::Forbidden(StateError::Mode {
                path: path.to_owned(),
                mode: metadata.mode() & 0o7777,
                wanted: 0o600,
            }));
        }
        if !metadata.is_file() || metadata.len() > MAX_FILE {
            return Err(Unfit::Damage("it is no file of meshd"));
        }
        let bytes = fs::read(path).map_err(unusable)?;
        match envelope::open(self.kind, self.version, &bytes) {
            Ok(content) => Ok(Some(content.to_vec())),
            Err(Damage::Broken(words)) => Err(Unfit::Damage(words)),
            Err(Damage::Newer(found)) => Err(Unfit::Forbidden(StateError::Newer {
                path: path.to_owned(),
                found,
                known: self.version,
            })),
        }
    }
}

impl Unfit {
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

/// Where what is to take the place of a file is written.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let temporary = beside(path);
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
    fn what_was_taken_away_or_spoilt_is_written_again_and_spoils_nothing() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let (path, previous) = (dir.path().join("state"), dir.path().join("state.previous"));
        let load = || Document::new(&dir, "state", "test", 1).load().unwrap();
        let mut document = Document::new(&dir, "state", "test", 1);
        let remove = |path: &Path| fs::remove_file(path).unwrap();
        let spoil = |path: &Path| fs::write(path, [7; 300]).unwrap();
        let both = |_: &Path| [&path, &previous].into_iter().for_each(|path| remove(path));
        let folder = |_: &Path| fs::remove_dir_all(dir.path()).unwrap();
        let damages: [&dyn Fn(&Path); 4] = [&remove, &spoil, &both, &folder];
        for (number, damage) in damages.iter().enumerate() {
            document.store(b"one").unwrap();
            document.store(b"two").unwrap();
            assert!(document.left().iter().all(Kept::stands));
            damage(&path);
            assert!(!document.left().iter().all(Kept::stands), "{number}");
            document.store(b"three").unwrap();
            assert_eq!(load(), Loaded::Current(b"three".to_vec()), "{number}");
            assert_eq!((document.left().len(), mode(dir.path())), (2, 0o700));
            remove(&path);
            let before = if number < 2 {
                b"one".to_vec()
            } else {
                b"three".to_vec()
            };
            let loaded = load();
            assert!(
                matches!(&loaded, Loaded::Previous(content, _) if *content == before),
                "{number}: {loaded:?}"
            );
        }
    }

    #[test]
    fn a_file_system_without_links_keeps_two_generations() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut document = Document::new(&dir, "state", "test", 1);
        document.link = |_, _| Err(ErrorKind::PermissionDenied.into());
        for content in [b"one", b"two"] {
            document.store(content).unwrap();
        }
        let load = || Document::new(&dir, "state", "test", 1).load().unwrap();
        assert_eq!(load(), Loaded::Current(b"two".to_vec()));
        assert_eq!(mode(&dir.path().join("state.previous")), 0o600);
        fs::remove_file(dir.path().join("state")).unwrap();
        assert!(matches!(load(), Loaded::Previous(content, _) if content == b"one"));
    }

    #[test]
    fn what_was_whole_on_its_way_is_found_when_nothing_else_is_left() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let [path, previous, new] =
            ["state", "state.previous", "state.new"].map(|name| dir.path().join(name));
        let mut document = Document::new(&dir, "state", "test", 1);
        for spoil in [
            |path: &Path| fs::remove_file(path).unwrap(),
            |path: &Path| fs::write(path, b"").unwrap(),
        ] {
            document.store(b"one").unwrap();
            fs::copy(&path, &new).unwrap();
            [&path, &previous].into_iter().for_each(|path| spoil(path));
            let loaded = document.load().unwrap();
            assert!(matches!(loaded, Loaded::Previous(content, _) if content == b"one"));
            assert_eq!(document.load().unwrap(), Loaded::Current(b"one".to_vec()));
            assert!(previous.exists() && !new.exists());
        }
        // Half of it is nothing, and what was removed does not come back.
        fs::copy(&path, &new).unwrap();
        document.remove().unwrap();
        fs::write(&new, b"half").unwrap();
        assert_eq!(document.load().unwrap(), Loaded::Nothing);
        assert!(document.left().is_empty());
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
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
