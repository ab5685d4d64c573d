//! The socket in the runtime folder by which meshctl and the CNI plugin talk to meshd.
//!
//! Requests are judged here by who asks ([`caller`]) and answered by the slow half, one at a time.
//! Nobody who stays silent, before a request or after an answer, keeps others out: when all places are
//! taken, the one who has been silent for longest loses its own. Some places are root's alone.

mod caller;
mod places;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::time::Duration;

use podmesh_proto::limits::MAX_MESSAGE;
use podmesh_proto::local_api::{Failure, FailureCode, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::caller::{Callers, Right};
use self::places::{Holder, Limits, Place, Places};
use crate::kept::Kept;

const SOCKET: &str = "meshd.sock";
/// Until the first whole request is there.
const FIRST_REQUEST: Duration = Duration::from_secs(5);
/// Between two requests of one connection.
const NEXT_REQUEST: Duration = Duration::from_secs(60);
/// Until the caller has taken an answer.
const ANSWER_TAKEN: Duration = Duration::from_secs(5);
/// Until the slow half has an answer; a join may wait for a planet.
const ANSWER: Duration = Duration::from_secs(90);
/// Eight are left for root whatever readers do.
const LIMITS: Limits = Limits {
    all: 64,
    readers: 56,
    per_reader: 32,
};

/// A request with the way back to whoever asked. Dropping it answers that meshd is stopping.
pub(crate) struct Asked {
    /// What is asked; permitted already.
    pub(crate) request: Request,
    /// For the one answer.
    pub(crate) answer: oneshot::Sender<Response>,
}

/// The listening socket.
pub(crate) struct LocalSocket {
    listener: UnixListener,
    callers: Callers,
    kept: Kept,
}

impl LocalSocket {
    /// Makes the runtime folder and the socket in it, in place of one that a former meshd left: the
    /// caller holds the state folder's lock, so nobody else listens.
    ///
    /// # Errors
    /// The folder or socket can't be made; the message names it.
    pub(crate) fn bind(runtime: &Path) -> io::Result<Self> {
        let path = runtime.join(SOCKET);
        let named = |cause: io::Error| {
            io::Error::new(
                cause.kind(),
                format!("can't listen at {}: {cause}", path.display()),
            )
        };
        Self::bind_at(runtime, &path).map_err(named)
    }

    fn bind_at(runtime: &Path, path: &Path) -> io::Result<Self> {
        if !runtime.exists() {
            fs::DirBuilder::new().recursive(true).create(runtime)?;
            // Whatever the process's mask, which the shipped unit has at 0077.
            fs::set_permissions(runtime, fs::Permissions::from_mode(0o750))?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("something that is no socket has its name")),
            Err(_) => {}
        }
        let callers = caller::of_this_machine();
        // Bound under another name and renamed, so that nobody finds it with the wrong mode.
        let hidden = path.with_extension("new");
        let _ = fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o660))?;
        if let Some(group) = callers.group {
            // Without the right to do so (an unprivileged meshd whose group it is not) root is left.
            let _ = give_to_group(&hidden, group);
            let _ = give_to_group(runtime, group);
        }
        fs::rename(&hidden, path)?;
        Ok(Self {
            listener,
            callers,
            kept: Kept::at(path)?,
        })
    }

    /// The socket as it was made.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Accepts connections for ever and hands permitted requests to `asked`.
    pub(crate) async fn serve(self, asked: mpsc::Sender<Asked>) {
        let places = Places::new(LIMITS);
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(reason = %error, "can't accept a local connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let who = stream.peer_cred();
            let (right, uid) = who.map_or((Right::None, 0), |who| {
                (self.callers.right(who.uid(), who.gid()), who.uid())
            });
            let holder = match right {
                Right::None => {
                    tokio::spawn(refuse(stream));
                    continue;
                }
                Right::Read => Holder::Reader(uid),
                Right::Change => Holder::Owner,
            };
            if let Some(place) = places.take(holder) {
                let connection = Connection {
                    stream,
                    right,
                    buffer: Vec::new(),
                };
                tokio::spawn(connection.serve(place, asked.clone()));
            }
        }
    }
}

/// Leaves alone what has the group already, as under the shipped unit, which forbids chown(2).
fn give_to_group(path: &Path, group: u32) -> io::Result<()> {
    if fs::metadata(path)?.gid() == group {
        return Ok(());
    }
    chown(path, None, Some(group))
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        self.kept.remove();
    }
}

struct Connection {
    stream: UnixStream,
    right: Right,
    buffer: Vec<u8>,
}

impl Connection {
    async fn serve(mut self, mut place: Place, asked: mpsc::Sender<Asked>) {
        let mut patience = FIRST_REQUEST;
        loop {
            let line = tokio::select! {
                line = timeout(patience, self.line()) => line,
                () = place.lost() => return,
            };
            let Ok(Ok(Some(line))) = line else { return };
            if !place.keep() {
                return;
            }
            let response = self.answer(&line, &asked).await;
            if !send(&mut self.stream, &response).await {
                return;
            }
            place.rest();
            patience = NEXT_REQUEST;
        }
    }

    /// The next line; `None` at the end of the stream or when it gets too long.
    async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            if self.buffer.len() > MAX_MESSAGE {
                let failure = failed(FailureCode::Usage, "the request is over 64 KiB");
                send(&mut self.stream, &failure).await;
                return Ok(None);
            }
            let mut piece = [0; 4096];
            let read = self.stream.read(&mut piece).await?;
            if read == 0 {
                return Ok(None);
            }
            self.buffer
                .extend_from_slice(piece.get(..read).unwrap_or_default());
        }
    }

    async fn answer(&self, line: &[u8], asked: &mpsc::Sender<Asked>) -> Response {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            // The parser's words could repeat a piece of a token; where it stumbled is enough.
            Err(error) => {
                let place = format!("the request can't be read (column {})", error.column());
                return failed(FailureCode::Usage, place);
            }
        };
        if changes_state(&request) && self.right != Right::Change {
            return refusal();
        }
        let (answer, answered) = oneshot::channel();
        if asked.send(Asked { request, answer }).await.is_err() {
            return failed(FailureCode::Failed, "meshd is stopping");
        }
        match timeout(ANSWER, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => failed(FailureCode::Failed, "meshd is stopping"),
            Err(_) => failed(
                FailureCode::Timeout,
                "meshd has no answer yet; it goes on trying",
            ),
        }
    }
}

/// A failure without a next step.
pub(crate) fn failed(code: FailureCode, message: impl Into<String>) -> Response {
    Response::Failed(Failure {
        code,
        message: message.into(),
        next: None,
    })
}

fn refusal() -> Response {
    Response::Failed(Failure {
        code: FailureCode::Permission,
        message: "this user may not do this".to_owned(),
        next: Some("run it as root; members of the group podmesh may read".to_owned()),
    })
}

fn changes_state(request: &Request) -> bool {
    match request {
        Request::Join { .. }
        | Request::Leave { .. }
        | Request::Statement { .. }
        | Request::Ledger { .. }
        | Request::RotateKeys { .. } => true,
        Request::Status
        | Request::Peers
        | Request::Peer { .. }
        | Request::Routes
        | Request::Ready
        | Request::Ping { .. }
        | Request::Network
        | Request::Registry => false,
    }
}

async fn refuse(mut stream: UnixStream) {
    send(&mut stream, &refusal()).await;
}

/// Whether the caller took it in time.
async fn send(stream: &mut UnixStream, response: &Response) -> bool {
    let Ok(mut line) = serde_json::to_vec(response) else {
        return false;
    };
    line.push(b'\n');
    matches!(
        timeout(ANSWER_TAKEN, stream.write_all(&line)).await,
        Ok(Ok(()))
    )
}

#[cfg(test)]
mod tests;
