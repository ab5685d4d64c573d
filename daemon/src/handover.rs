//! From one meshd to the next without a gap: the interface's queues and the UDP sockets stay open, and
//! what arrives in between waits in them.
//!
//! Under systemd the service manager keeps them (`FileDescriptorStoreMax=`, sd_pid_notify_with_fds(3)),
//! so that a crash is covered, too. Without it, `meshd --replace` asks the meshd that runs: it stops
//! moving packets, writes its state, gives everything away and ends.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podmesh_kernel::descriptors::{self, Descriptors};
use podmesh_kernel::process;
use podmesh_kernel::tun::TunQueue;
use tokio::net::UnixListener as AsyncListener;

use crate::sockets::Sockets;

const SOCKET: &str = "handover.sock";
/// Before the number of a queue.
const QUEUE: &str = "tun-";
/// How long the other meshd may take to give everything away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a meshd that wants to take over knocks.
pub(crate) struct Handover {
    listener: AsyncListener,
}

/// A meshd that waits to take over.
pub(crate) struct Heir(UnixStream);

impl Handover {
    /// Makes the socket in the runtime folder, for the user that meshd runs as and root alone.
    ///
    /// # Errors
    /// The socket can't be made.
    pub(crate) fn bind(runtime: &Path) -> io::Result<Self> {
        let path = path(runtime);
        // The caller holds the state folder's lock, so nobody listens there any more.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: AsyncListener::from_std(listener)?,
        })
    }

    /// The next meshd that wants to take over. Others who knock are turned away.
    pub(crate) async fn heir(&self) -> Heir {
        loop {
            match self.accept().await {
                Ok(heir) => return heir,
                Err(error) => {
                    tracing::warn!(reason = %error, "somebody else asked for the sockets");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Heir> {
        let (stream, _) = self.listener.accept().await?;
        let who = stream.peer_cred()?.uid();
        if who != 0 && who != process::effective_uid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Heir(stream))
    }
}

impl Heir {
    /// Gives everything away.
    ///
    /// # Errors
    /// The heir is gone.
    pub(crate) fn bequeath(&self, all: &[(String, BorrowedFd<'_>)]) -> io::Result<()> {
        descriptors::send(&self.0, all)
    }
}

/// All that is handed over, by name.
pub(crate) fn inventory<'a>(
    queues: &'a [Arc<TunQueue>],
    sockets: &'a Sockets,
) -> Vec<(String, BorrowedFd<'a>)> {
    let queues = (0_usize..)
        .zip(queues)
        .map(|(number, queue)| (format!("{QUEUE}{number}"), queue.as_fd()));
    queues.chain(sockets.descriptors()).collect()
}

/// The queues among what was handed over.
pub(crate) fn take_queues(descriptors: &mut Descriptors) -> Vec<OwnedFd> {
    descriptors.take_row(QUEUE)
}

/// Asks the meshd of this runtime folder for everything that it has; it ends then. None if no meshd
/// runs there.
///
/// # Errors
/// It doesn't give anything away in time.
pub(crate) fn ask(runtime: &Path) -> io::Result<Option<Descriptors>> {
    let stream = match UnixStream::connect(path(runtime)) {
        Err(error) if is_nobody(error.kind()) => return Ok(None),
        stream => stream?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    Descriptors::receive(&stream).map(Some)
}

fn is_nobody(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn path(runtime: &Path) -> PathBuf {
    runtime.join(SOCKET)
}
