//! The planet's local socket: what its operator asks of it while it runs.
//!
//! One JSON object per line, a [`Request`] answered by one [`Response`]. Members of the socket's group may
//! read, whatever its mode is; only root and the planet's own user may change something. The module `meshctl`
//! translates for meshctl, which speaks to every daemon in the words of the nodes' local socket.

mod meshctl;
mod places;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use podmesh_proto::caller::{Callers, Group, Right};
use podmesh_proto::conversation;
use podmesh_proto::id::{NetworkId, PlanetId};
use podmesh_proto::local_api::RegistryView;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::places::{Place, Places};
use crate::rules::view::PlanetStatus;

/// The socket's name in the runtime directory.
pub const SOCKET: &str = "planet.sock";
/// Bytes of a request: a statement in its text form, and room.
const MAX_REQUEST: u64 = 256 * 1024;
/// Bytes of an answer: a backup of a large network.
const MAX_ANSWER: u64 = 512 * 1024 * 1024;
/// Conversations at a time of those who may only read; who stays silent gives way to the next.
const READERS: usize = 24;
/// The same of those who may change something, apart from the readers' so that none keeps them out.
const OWNERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);
const NOT_PERMITTED: &str =
    "only root, the planet's user and members of the socket's group may ask; try it with sudo";
const NO_PLACE: &str = "too many ask this planet at once; try again in a moment";

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
    /// The newest edition of the network.
    Network,
    /// Who and what the books name.
    Registry,
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
    /// Answers [`Request::Network`].
    Network {
        /// As [`podmesh_proto::signed::Signed::to_base64`] makes it.
        statement: String,
        /// The network.
        id: NetworkId,
        /// Its edition.
        version: u64,
    },
    /// Answers [`Request::Registry`].
    Registry(Box<RegistryView>),
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
    #[serde(alias = "Failed")]
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
    callers: Callers,
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
        let callers = callers_of(&path)?;
        Ok(Self {
            listener,
            path,
            callers,
        })
    }

    /// Hands every permitted question to `questions`, until the task is dropped.
    pub async fn serve(self, questions: mpsc::Sender<Asked>) {
        let (mut owners, mut readers) = (Places::new(OWNERS), Places::new(READERS));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let right = stream.peer_cred().map_or(Right::None, |peer| {
                self.callers.right(peer.uid(), peer.gid())
            });
            if right == Right::None {
                // Whoever this is takes nobody's place, and is not waited for.
                let _ = stream.try_write(&refusal(NOT_PERMITTED, true));
                continue;
            }
            let may_change = right == Right::Change;
            let places = if may_change {
                &mut owners
            } else {
                &mut readers
            };
            let Some(mut place) = places.take() else {
                let _ = stream.try_write(&refusal(NO_PLACE, false));
                continue;
            };
            let questions = questions.clone();
            tokio::spawn(async move {
                let talk = converse(stream, may_change, &questions, &mut place);
                let _ = timeout(PATIENCE, talk).await;
            });
        }
    }
}

/// An answer to whoever is not heard, and has said in nobody's words what it wants: both `planet` and meshctl
/// understand it.
fn refusal(message: &str, permission: bool) -> Vec<u8> {
    let refusal = meshctl::response(Response::Failed {
        message: message.to_owned(),
        permission,
    });
    let mut refusal = serde_json::to_value(&refusal).unwrap_or_default();
    if let Some(fields) = refusal.as_object_mut() {
        fields.insert("permission".to_owned(), permission.into());
    }
    let mut bytes = refusal.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// Who may do what, by the socket's user and group.
fn callers_of(socket: &Path) -> io::Result<Callers> {
    let owner = fs::metadata(socket)?;
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Ok(Callers::from_files(
        owner.uid(),
        Group::Numbered(owner.gid()),
        &read("/etc/group"),
        &read("/etc/passwd"),
    ))
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
    place: &mut Place,
) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reading.take(MAX_REQUEST));
    match place.until(reader.read_line(&mut line)).await {
        Some(read) => read?,
        None => return Ok(()),
    };
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
    let reads = matches!(
        request,
        Request::Status | Request::Network | Request::Registry
    );
    if !may_change && !reads {
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
    ask_on(std::os::unix::net::UnixStream::connect(path)?, request)
}

fn ask_on(stream: std::os::unix::net::UnixStream, request: &Request) -> io::Result<Response> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut bytes = serde_json::to_vec(request)?;
    bytes.push(b'\n');
    let answer = conversation::converse(stream, &bytes, MAX_ANSWER)?;
    serde_json::from_slice(&answer).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use podmesh_proto::local_api;

    use super::*;

    async fn answered(path: &Path) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream
            .write_all(b"{\"request\":\"status\"}\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let mut reader = tokio::io::BufReader::new(stream);
        reader.read_line(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn silent_callers_keep_nobody_out() {
        let folder = std::env::temp_dir().join(format!("planet-admin-{}", std::process::id()));
        let socket = AdminSocket::open(&folder).unwrap();
        let path = socket.path.clone();
        let (sender, mut receiver) = mpsc::channel::<Asked>(8);
        tokio::spawn(socket.serve(sender));
        tokio::spawn(async move {
            while let Some((_, answer)) = receiver.recv().await {
                let _ = answer.send(Response::failed("served"));
            }
        });
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        let start = std::time::Instant::now();
        assert!(answered(&path).await.contains("served"));
        assert!(start.elapsed() < Duration::from_secs(1));
        let _ = fs::remove_dir_all(&folder);
    }

    #[tokio::test]
    async fn a_stranger_is_refused_whatever_the_mode_is() {
        let name = format!("planet-admin-stranger-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let mut socket = AdminSocket::open(&folder).unwrap();
        let path = socket.path.clone();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        socket.callers = Callers {
            owners: vec![65_533],
            group: Some(65_533),
            members: Vec::new(),
        };
        let (sender, mut receiver) = mpsc::channel::<Asked>(8);
        tokio::spawn(socket.serve(sender));
        let answer = answered(&path).await;
        assert!(answer.contains("try it with sudo"), "{answer}");
        assert!(receiver.try_recv().is_err(), "nobody was asked");
        let _ = fs::remove_dir_all(&folder);
    }

    #[test]
    fn a_caller_that_is_refused_unheard_hears_why() {
        for (reason, is_permission) in [(NOT_PERMITTED, true), (NO_PLACE, false)] {
            let (caller, mut planet) = std::os::unix::net::UnixStream::pair().unwrap();
            let said = refusal(reason, is_permission);
            planet.write_all(&said).unwrap();
            drop(planet);
            let Response::Failed {
                message,
                permission,
            } = ask_on(caller, &Request::Status).unwrap()
            else {
                panic!("another answer");
            };
            assert_eq!((message.as_str(), permission), (reason, is_permission));
            // The same in the words of meshctl, which may have asked.
            let local_api::Response::Failed(failure) = serde_json::from_slice(&said).unwrap()
            else {
                panic!("another answer");
            };
            assert_eq!(failure.message, reason);
            let refused = failure.code == local_api::FailureCode::Permission;
            assert_eq!(refused, is_permission);
        }
    }

    #[tokio::test]
    async fn a_question_keeps_its_place_and_silence_does_not() {
        let mut places = Places::new(2);
        let mut asking = places.take().unwrap();
        assert_eq!(asking.until(async { 7 }).await, Some(7));
        let mut silent = places.take().unwrap();
        let mut next = places.take().unwrap();
        assert_eq!(silent.until(std::future::pending::<()>()).await, None);
        assert_eq!(next.until(async { 8 }).await, Some(8));
        assert!(places.take().is_none());
        drop(asking);
        assert!(places.take().is_some());
    }
}
