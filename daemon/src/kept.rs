//! What meshd has put at a path, and whether it is still that.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file or socket as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    path: PathBuf,
    stamp: Stamp,
}

/// What changes when somebody puts something else there, writes into it or locks others out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    mode: u32,
    size: u64,
    written: (i64, i64),
}

impl Kept {
    /// What is there by now, which the caller has just made.
    ///
    /// # Errors
    /// Nothing is there.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let stamp = Stamp::of(&fs::symlink_metadata(path)?);
        Ok(Self {
            path: path.to_owned(),
            stamp,
        })
    }

    /// Whether it is still there, as it was made.
    pub(crate) fn stands(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| Stamp::of(&found) == self.stamp)
    }

    /// Whether something else has its place.
    pub(crate) fn is_displaced(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| {
            let found = Stamp::of(&found);
            (found.device, found.inode) != (self.stamp.device, self.stamp.inode)
        })
    }

    /// Removes it, unless something else has its place.
    pub(crate) fn remove(&self) {
        if !self.is_displaced() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            mode: found.mode(),
            size: found.size(),
            written: (found.mtime(), found.mtime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn whatever_others_do_to_a_file_is_seen() {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        let make = || {
            fs::write(&path, "content").unwrap();
            Kept::at(&path).unwrap()
        };
        let damages: [&dyn Fn(); 4] = [
            &|| fs::remove_file(&path).unwrap(),
            &|| fs::write(&path, "other").unwrap(),
            &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap(),
            &|| {
                fs::write(scratch.path("new"), "content").unwrap();
                fs::rename(scratch.path("new"), &path).unwrap();
            },
        ];
        for (number, damage) in damages.iter().enumerate() {
            let kept = make();
            assert!(kept.stands() && !kept.is_displaced());
            damage();
            assert!(!kept.stands(), "{number}");
        }
        let kept = make();
        fs::write(scratch.path("new"), "content").unwrap();
        fs::rename(scratch.path("new"), &path).unwrap();
        kept.remove();
        assert!(path.exists(), "what is somebody else's stays");
        make().remove();
        assert!(!path.exists());
    }
}
