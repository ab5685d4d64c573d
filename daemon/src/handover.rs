//! From one meshd to the next without a gap: the interface's queues and the UDP sockets stay open, and
//! what arrives in between waits in them.
//!
//! Under systemd the service manager keeps them (`FileDescriptorStoreMax=`, sd_pid_notify_with_fds(3)),
//! so that a crash is covered, too. Without it, `meshd --replace` asks the meshd that runs. That one
//! writes its state and gives everything away, but goes on moving packets until the new one says that
//! nothing can fail any more; if it never does, the old one begins anew with what it has.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podmesh_kernel::descriptors::{self, Descriptors};
use podmesh_kernel::process;
use podmesh_kernel::tun::TunQueue;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener as AsyncListener, UnixStream as AsyncStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::kept::Kept;
use crate::sockets::Sockets;

const SOCKET: &str = "handover.sock";
/// Of what the two say to each other.
const VERSION: u16 = 1;
/// Before the number of a queue.
const QUEUE: &str = "tun-";
/// How long whoever knocks may take to say what it wants.
const HELLO: Duration = Duration::from_secs(1);
/// How long the other meshd may take to write its state, and to let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the next meshd may take to load that state.
const LOADING: Duration = Duration::from_secs(20);
/// Bytes of a line at most.
const LONGEST_LINE: usize = 4_096;
/// The next meshd can't fail any more; and the answer, when the old one has stopped, or when it has lost
/// patience before and goes on.
const READY: u8 = b'r';
const YOURS: u8 = b'y';
const MINE: u8 = b'm';

/// What the two must have in common to use the same queues and sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    version: u16,
    /// None if any number will do.
    shards: Option<usize>,
    device: String,
    /// None if any will do.
    port: Option<u16>,
}

impl Terms {
    /// For so many shards on this interface and UDP port.
    pub(crate) fn new(shards: Option<usize>, device: &str, port: Option<u16>) -> Self {
        Self {
            version: VERSION,
            shards,
            device: device.to_owned(),
            port,
        }
    }

    /// Why another meshd that wants `other` can't take over from one with these.
    fn contradiction(&self, other: &Self) -> Option<String> {
        let differs = if self.version != other.version {
            "it hands over in another way".to_owned()
        } else if let Some((has, wanted)) = self.shards.zip(other.shards)
            && has != wanted
        {
            format!("it has shards = {has}, not {wanted}")
        } else if self.device != other.device {
            format!("it has the interface {}, not {}", self.device, other.device)
        } else if let Some((has, wanted)) = self.port.zip(other.port)
            && has != wanted
        {
            format!("it has the UDP port {has}, not {wanted}")
        } else {
            return None;
        };
        Some(format!(
            "{differs}; stop it, then start meshd without --replace"
        ))
    }
}

/// The answer to [`Terms`].
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    refused: Option<String>,
}

/// Where a meshd that wants to take over knocks.
pub(crate) struct Handover {
    listener: AsyncListener,
    terms: Terms,
    is_managed: bool,
    kept: Kept,
}

/// A meshd that waits to take over.
pub(crate) struct Heir {
    stream: AsyncStream,
    has_all: bool,
}

impl Handover {
    /// Makes the socket in the runtime folder, for the user that meshd runs as and root alone.
    /// `is_managed` tells that a service manager has started this one and would start it again.
    ///
    /// # Errors
    /// The socket can't be made.
    pub(crate) fn bind(runtime: &Path, terms: Terms, is_managed: bool) -> io::Result<Self> {
        let path = path(runtime);
        // The caller holds the state folder's lock, so nobody listens there any more.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: AsyncListener::from_std(listener)?,
            terms,
            is_managed,
            kept: Kept::at(&path)?,
        })
    }

    /// The socket as it was made.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Waits for the meshd that takes over. Others who knock are turned away.
    pub(crate) async fn serve(self, heirs: mpsc::Sender<Heir>) {
        loop {
            let outcome = match self.listener.accept().await {
                Ok((stream, _)) => match timeout(HELLO, self.hear(stream)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
                Err(error) => Err(error),
            };
            match outcome {
                Ok(Some(heir)) => {
                    // Only a node that is ending doesn't listen.
                    let _ = heirs.send(heir).await;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(reason = %error, "somebody asked for the sockets in vain");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn hear(&self, mut stream: AsyncStream) -> io::Result<Option<Heir>> {
        let who = stream.peer_cred()?.uid();
        if who != 0 && who != process::effective_uid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < LONGEST_LINE {
            line.push(stream.read_u8().await?);
        }
        let wanted: Terms = serde_json::from_slice(&line)?;
        let refused = if self.is_managed {
            Some("a service manager has started it; use `systemctl restart meshd`".to_owned())
        } else {
            self.terms.contradiction(&wanted)
        };
        if let Some(reason) = &refused {
            tracing::warn!(reason, "another meshd wants to take over and can't");
        }
        let accepted = refused.is_none();
        let mut answer = serde_json::to_vec(&Answer { refused })?;
        answer.push(b'\n');
        stream.write_all(&answer).await?;
        Ok(accepted.then_some(Heir {
            stream,
            has_all: false,
        }))
    }
}

impl Heir {
    /// Gives everything away. It stays open here, too.
    ///
    /// # Errors
    /// The heir is gone.
    pub(crate) fn bequeath(&mut self, all: &[(String, BorrowedFd<'_>)]) -> io::Result<()> {
        descriptors::send(self.stream.as_fd(), all)?;
        self.has_all = true;
        Ok(())
    }

    /// Waits until the heir can't fail any more; false if it has failed.
    pub(crate) async fn is_ready(&mut self) -> bool {
        matches!(timeout(LOADING, self.stream.read_u8()).await, Ok(Ok(READY)))
    }

    /// Nobody here uses anything any more.
    pub(crate) async fn let_go(&mut self) -> io::Result<()> {
        self.stream.write_u8(YOURS).await
    }

    /// This meshd goes on. An heir that has everything and isn't told so takes silence for an end.
    pub(crate) async fn turn_away(mut self) {
        if self.has_all {
            // It may be gone, too.
            let _ = self.stream.write_u8(MINE).await;
        }
    }
}

/// What another meshd had open.
#[derive(Default)]
pub(crate) struct Inheritance {
    /// All of it.
    pub(crate) descriptors: Descriptors,
    /// That meshd still runs, and moves packets until it hears of this one.
    pub(crate) predecessor: Option<Predecessor>,
}

/// A meshd that has given everything away and waits.
pub(crate) struct Predecessor(UnixStream);

impl Predecessor {
    /// Has it stop. To be called when nothing can fail any more. One that has ended by itself has stopped,
    /// too.
    ///
    /// # Errors
    /// It goes on by itself, or hangs.
    pub(crate) fn relieve(mut self) -> io::Result<()> {
        let mut answer = [0];
        // What it has said before it closed can still be read.
        self.0.write_all(&[READY]).or_else(forgive)?;
        match self.0.read_exact(&mut answer) {
            Ok(()) if answer == [YOURS] => Ok(()),
            Ok(()) if answer == [MINE] => Err(io::Error::other(
                "the meshd that runs here has lost patience and goes on; try again",
            )),
            Ok(()) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => forgive(error).map_err(in_words).inspect(|()| {
                tracing::warn!("the meshd that was to be replaced has ended by itself");
            }),
        }
    }
}

/// An end of the other meshd is no error.
fn forgive(error: io::Error) -> io::Result<()> {
    if is_end(error.kind()) {
        Ok(())
    } else {
        Err(error)
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}

/// An error for people, where the system's words would tell them nothing.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::other(
            "it did not answer within 10 s; end it, with SIGKILL if nothing else helps, then start meshd",
        ),
        _ => error,
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

/// The same, to be kept beyond their owners.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn keep(all: &[(String, BorrowedFd<'_>)]) -> io::Result<Descriptors> {
    let kept = all
        .iter()
        .map(|(name, descriptor)| Ok((name.clone(), descriptor.try_clone_to_owned()?)))
        .collect::<io::Result<Vec<_>>>()?;
    Ok(Descriptors::new(kept))
}

/// The queues among what was handed over.
pub(crate) fn take_queues(descriptors: &mut Descriptors) -> Vec<OwnedFd> {
    descriptors.take_row(QUEUE)
}

/// Asks the meshd of this runtime folder for everything that it has. None if no meshd runs there, or if
/// the one that runs ends meanwhile.
///
/// # Errors
/// It gives nothing away; why.
pub(crate) fn ask(runtime: &Path, terms: &Terms) -> io::Result<Option<Inheritance>> {
    match UnixStream::connect(path(runtime)) {
        Err(error) if is_nobody(error.kind()) => Ok(None),
        Err(error) => Err(error),
        Ok(stream) => match converse(stream, terms) {
            Err(error) if is_end(error.kind()) => Ok(None),
            Err(error) => Err(in_words(error)),
            Ok(inheritance) => Ok(Some(inheritance)),
        },
    }
}

fn converse(mut stream: UnixStream, terms: &Terms) -> io::Result<Inheritance> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(terms)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    // Byte by byte: descriptors come with what is behind the line.
    line.clear();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && line.len() < LONGEST_LINE {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    let answer: Answer = serde_json::from_slice(&line)?;
    if let Some(reason) = answer.refused {
        return Err(io::Error::other(reason));
    }
    Ok(Inheritance {
        descriptors: Descriptors::receive(&stream)?,
        predecessor: Some(Predecessor(stream)),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predecessor_that_has_ended_is_relieved_and_one_that_goes_on_is_not() {
        let relieve = |say: &[u8]| {
            let (mut theirs, ours) = UnixStream::pair().expect("a pair");
            theirs.write_all(say).expect("room");
            drop(theirs);
            Predecessor(ours).relieve()
        };
        assert!(relieve(&[]).is_ok());
        assert!(relieve(&[YOURS]).is_ok());
        let error = relieve(&[MINE]).expect_err("it goes on").to_string();
        assert!(error.contains("goes on; try again"), "{error}");
        assert!(relieve(b"?").is_err());
    }

    #[test]
    fn who_does_not_answer_is_named_as_such() {
        let error = in_words(io::ErrorKind::WouldBlock.into()).to_string();
        assert!(error.contains("did not answer within 10 s"), "{error}");
    }

    #[test]
    fn what_cannot_be_shared_is_refused_with_a_reason() {
        let own = Terms::new(Some(2), "mesh0", Some(7_077));
        let other = |shards, device, port| Terms::new(Some(shards), device, port);
        let content_with_any = Terms::new(None, "mesh0", None);
        assert_eq!(own.contradiction(&content_with_any), None);
        assert_eq!(own.contradiction(&other(2, "mesh0", None)), None);
        assert_eq!(own.contradiction(&other(2, "mesh0", Some(7_077))), None);
        for (terms, word) in [
            (other(4, "mesh0", None), "shards = 2, not 4"),
            (other(2, "mesh1", None), "interface mesh0, not mesh1"),
            (other(2, "mesh0", Some(9)), "UDP port 7077, not 9"),
        ] {
            let reason = own.contradiction(&terms).expect("a reason");
            assert!(
                reason.contains(word) && reason.contains("stop it"),
                "{reason}"
            );
        }
        let newer = Terms {
            version: 2,
            ..own.clone()
        };
        assert!(own.contradiction(&newer).is_some());
    }
}
