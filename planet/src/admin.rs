//! The planet's local socket: what its operator asks of it while it runs.
//!
//! One JSON object per line, a [`Request`] answered by one [`Response`]. Whoever the socket's mode lets
//! in may read; only root and the planet's own user may change something. The module `meshctl`
//! translates for meshctl, which speaks to every daemon in the words of the nodes' local socket.

mod meshctl;

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use podmesh_proto::id::PlanetId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::rules::view::PlanetStatus;

/// The socket's name in the runtime directory.
pub const SOCKET: &str = "planet.sock";
/// Bytes of a request: a statement in its text form, and room.
const MAX_REQUEST: u64 = 256 * 1024;
/// Bytes of an answer: a backup of a large network.
const MAX_ANSWER: u64 = 512 * 1024 * 1024;
/// Questions under way at a time.
const CONVERSATIONS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);

/// What the operator asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the planet is.
    Status,
    /// To take a statement of the root, also a first or a new edition of the network.
    Statement {
        /// The planet that is meant; absent if whoever runs there is.
        planet: Option<PlanetId>,
        /// In its text form.
        statement: String,
    },
    /// To grant although something may be missing in the books.
    TrustEmpty,
    /// For everything that it keeps.
    Backup {
        /// The planet that is meant.
        planet: PlanetId,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// Answers [`Request::Status`].
    Status(Box<PlanetStatus>),
    /// Done; one sentence.
    Done {
        /// The sentence.
        message: String,
    },
    /// Answers [`Request::Backup`].
    Backup {
        /// Base64.
        content: String,
    },
    /// Not done; one sentence.
    Failed {
        /// The sentence.
        message: String,
        /// Whether it is the caller who may not.
        permission: bool,
    },
}

impl Response {
    /// A failure that isn't about permission.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            permission: false,
        }
    }
}

/// A question with the way back.
pub type Asked = (Request, oneshot::Sender<Response>);

/// The planet's end of the socket.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    own_uid: u32,
}

impl AdminSocket {
    /// Opens the socket in a runtime directory, which is made if it is missing.
    ///
    /// # Errors
    /// Another planet answers there, or the system refuses.
    pub fn open(runtime_dir: &Path) -> io::Result<Self> {
        if !runtime_dir.exists() {
            fs::create_dir_all(runtime_dir)?;
            fs::set_permissions(runtime_dir, fs::Permissions::from_mode(0o750))?;
        }
        let path = runtime_dir.join(SOCKET);
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            let message = "another planet answers there; stop it, or use another --runtime-dir";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
        let own_uid = fs::metadata(&path)?.uid();
        Ok(Self {
            listener,
            path,
            own_uid,
        })
    }

    /// Hands every permitted question to `questions`, until the task is dropped.
    pub async fn serve(self, questions: mpsc::Sender<Asked>) {
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONVERSATIONS));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let uid = stream.peer_cred().map(|peer| peer.uid());
            let may_change = uid.is_ok_and(|uid| uid == 0 || uid == self.own_uid);
            let questions = questions.clone();
            tokio::spawn(async move {
                let _ = timeout(PATIENCE, converse(stream, may_change, &questions)).await;
                drop(place);
            });
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn converse(
    stream: UnixStream,
    may_change: bool,
    questions: &mpsc::Sender<Asked>,
) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reading.take(MAX_REQUEST));
    reader.read_line(&mut line).await?;
    let bytes = match serde_json::from_str::<Request>(&line) {
        Ok(request) => serde_json::to_vec(&answer(request, may_change, questions).await),
        Err(error) => match meshctl::request(&line) {
            Some(request) => {
                let response = match request {
                    Ok(request) => answer(request, may_change, questions).await,
                    Err(message) => Response::failed(message),
                };
                serde_json::to_vec(&meshctl::response(response))
            }
            None => serde_json::to_vec(&Response::failed(format!(
                "the request makes no sense: {error}"
            ))),
        },
    };
    let mut bytes = bytes?;
    bytes.push(b'\n');
    writing.write_all(&bytes).await
}

async fn answer(request: Request, may_change: bool, questions: &mpsc::Sender<Asked>) -> Response {
    if !may_change && !matches!(request, Request::Status) {
        return Response::Failed {
            message: "only root and the planet's own user may do this; use sudo".to_owned(),
            permission: true,
        };
    }
    let (answer, answered) = oneshot::channel();
    let asked = questions.send((request, answer)).await.is_ok();
    match answered.await {
        Ok(response) if asked => response,
        _ => Response::failed("the planet is stopping"),
    }
}

/// Asks a running planet.
///
/// # Errors
/// Nobody answers there, or not in time.
pub fn ask(runtime_dir: &Path, request: &Request) -> io::Result<Response> {
    let path = runtime_dir.join(SOCKET);
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut bytes = serde_json::to_vec(request)?;
    bytes.push(b'\n');
    stream.write_all(&bytes)?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::other)
}
