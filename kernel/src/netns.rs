//! Network namespaces of pods: opening them safely and working inside them.
#![allow(
    unsafe_code,
    reason = "entering a namespace and asking for its kind are bare system calls"
)]

use std::{
    fs::{File, OpenOptions},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
};

/// `_IO(0xb7, 3)`: which kind of namespace a descriptor stands for.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// The file system in which namespaces live.
const NSFS_MAGIC: u32 = 0x6e73_6673;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// An open network namespace that is not the caller's own.
#[derive(Debug)]
pub struct NetNamespace {
    file: File,
    path: PathBuf,
}

impl NetNamespace {
    /// Opens the network namespace at that path.
    ///
    /// The path comes from somebody else: it is first looked at without opening it for real, so
    /// that a device, a pipe or a file in its place is never touched.
    ///
    /// # Errors
    ///
    /// When there is nothing at the path, or something else than a network namespace, or the
    /// namespace that the caller itself is in.
    pub fn open(path: &Path) -> Result<Self, NetNamespaceError> {
        let failed = |cause| NetNamespaceError::Open {
            path: path.to_owned(),
            cause,
        };
        let look = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path)
            .map_err(failed)?;
        let not_one = || NetNamespaceError::NotOne {
            path: path.to_owned(),
        };
        if !is_on_nsfs(&look).map_err(failed)? {
            return Err(not_one());
        }
        // The same object again, whatever stands at the path by now.
        let file = File::open(format!("/proc/self/fd/{}", look.as_raw_fd())).map_err(failed)?;
        if !is_network(&file) {
            return Err(not_one());
        }
        let own = std::fs::metadata(OWN_NAMESPACE).map_err(failed)?;
        let this = file.metadata().map_err(failed)?;
        if (own.dev(), own.ino()) == (this.dev(), this.ino()) {
            return Err(NetNamespaceError::Own {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` inside the namespace and returns what it returns.
    ///
    /// The work gets a thread of its own, which ends with it: no other code of this process ever
    /// runs in the foreign namespace.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, or the work panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNamespaceError> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name("pod-namespace".to_owned())
                .spawn_scoped(scope, || enter(&self.file).map(|()| work()))?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the work inside it panicked")))
        })
        .map_err(|cause| NetNamespaceError::Enter {
            path: self.path.clone(),
            cause,
        })
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetNamespaceError {
    /// Nothing there, or no right to open it.
    #[error("the network namespace {} cannot be opened: {cause}", path.display())]
    Open {
        /// The path that was asked for.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// Something else than a network namespace.
    #[error("{} is not a network namespace", path.display())]
    NotOne {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The namespace of the node itself.
    #[error("{} is the node's own network namespace, not a pod's", path.display())]
    Own {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The kernel refused to enter it.
    #[error("the network namespace {} cannot be entered: {cause}", path.display())]
    Enter {
        /// The path by which it was opened.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor that stays open during the call and touches no memory.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_network(file: &File) -> bool {
    // SAFETY: this request has no argument and writes nothing; the descriptor is open.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

fn is_on_nsfs(file: &File) -> io::Result<bool> {
    let mut status = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the pointer is to room for one statfs, and the descriptor is open.
    let code = unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid statfs, and the kernel has filled it.
    let status = unsafe { status.assume_init() };
    Ok(u32::try_from(status.f_type).is_ok_and(|magic| magic == NSFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_named_as_such() {
        for path in ["/dev/null", "/", "/proc/self/ns/mnt", "/proc/self/status"] {
            let error = NetNamespace::open(Path::new(path)).unwrap_err();
            assert!(
                matches!(error, NetNamespaceError::NotOne { .. }),
                "{path}: {error}"
            );
        }
        let error = NetNamespace::open(Path::new("/run/netns/no-such-thing")).unwrap_err();
        assert!(matches!(error, NetNamespaceError::Open { .. }), "{error}");
    }

    #[test]
    fn the_nodes_own_namespace_is_refused() {
        let error = NetNamespace::open(Path::new(OWN_NAMESPACE)).unwrap_err();
        assert!(matches!(error, NetNamespaceError::Own { .. }), "{error}");
    }
}
