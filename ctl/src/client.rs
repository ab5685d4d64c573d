//! A daemon's local socket: one connection per request, one JSON line each way, always bounded in
//! time and size.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podmesh_proto::conversation::may_be_answered;
use podmesh_proto::local_api::{
    PeerDetail, PeerView, ReadyView, RegistryView, Request, Response, RouteView, StatusView,
};
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;
use zeroize::{Zeroize, Zeroizing};

use crate::problem::{Exit, Problem};

/// How long a view may take.
const VIEW: Duration = Duration::from_secs(5);
/// How long something that the daemon writes to disk or tells a planet may take.
const CHANGE: Duration = Duration::from_secs(30);
/// Bytes. A list of 10,000 peers is about half of it.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// One daemon's socket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    daemon: &'static str,
}

impl Client {
    /// meshd's.
    pub(crate) fn meshd(socket: &Path) -> Self {
        let (socket, daemon) = (socket.to_owned(), "meshd");
        Self { socket, daemon }
    }

    /// A planet's.
    pub(crate) fn planet(socket: &Path) -> Self {
        let (socket, daemon) = (socket.to_owned(), "planet");
        Self { socket, daemon }
    }

    /// The node as a whole.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn status(&self) -> Result<StatusView, Problem> {
        match self.ask(Request::Status, VIEW)? {
            Response::Status(status) => Ok(*status),
            _ => Err(self.misunderstood()),
        }
    }

    /// All peers, sorted by site and name.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn peers(&self) -> Result<Vec<PeerView>, Problem> {
        match self.ask(Request::Peers, VIEW)? {
            Response::Peers { mut items } => {
                items.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
                Ok(items)
            }
            _ => Err(self.misunderstood()),
        }
    }

    /// One peer by name, address or id.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn peer(&self, target: &str) -> Result<PeerDetail, Problem> {
        let target = target.to_owned();
        match self.ask(Request::Peer { target }, VIEW)? {
            Response::Peer(peer) => Ok(*peer),
            _ => Err(self.misunderstood()),
        }
    }

    /// What the host should hold.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn routes(&self) -> Result<Vec<RouteView>, Problem> {
        match self.ask(Request::Routes, VIEW)? {
            Response::Routes { items } => Ok(items),
            _ => Err(self.misunderstood()),
        }
    }

    /// Whether pods can be attached.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn ready(&self) -> Result<ReadyView, Problem> {
        match self.ask(Request::Ready, VIEW)? {
            Response::Ready(ready) => Ok(ready),
            _ => Err(self.misunderstood()),
        }
    }

    /// The network document that the daemon holds, its signature not yet verified.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn network(&self) -> Result<Signed<RootStatement>, Problem> {
        match self.ask(Request::Network, VIEW)? {
            Response::Network { statement, .. } => Ok(Signed::from_base64(&statement)?),
            _ => Err(self.misunderstood()),
        }
    }

    /// Whom and what the daemon knows; its statement not yet verified.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn registry(&self) -> Result<RegistryView, Problem> {
        match self.ask(Request::Registry, VIEW)? {
            Response::Registry(registry) => Ok(*registry),
            _ => Err(self.misunderstood()),
        }
    }

    /// Hands over something the root said; what the daemon answers.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn statement(&self, statement: &Signed<RootStatement>) -> Result<String, Problem> {
        let statement = statement.to_base64()?;
        self.change(Request::Statement { statement })
    }

    /// Asks for a change; what the daemon answers.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn change(&self, request: Request) -> Result<String, Problem> {
        self.begin_change(request)?.done()
    }

    /// Asks for a change. When this returns, the request is on its way whatever becomes of this
    /// process; only a daemon that refuses the caller doesn't read it.
    ///
    /// # Errors
    /// The daemon can't be reached (4).
    pub(crate) fn begin_change(&self, request: Request) -> Result<Pending, Problem> {
        self.begin(request, CHANGE)
    }

    /// Sends a request and waits for its answer, at most `patience`.
    ///
    /// # Errors
    /// The daemon can't be reached (4), refuses the caller (5), is silent (7), or answers that it
    /// failed (as it says).
    pub(crate) fn ask(&self, request: Request, patience: Duration) -> Result<Response, Problem> {
        self.begin(request, patience)?.answer()
    }

    fn begin(&self, mut request: Request, patience: Duration) -> Result<Pending, Problem> {
        let mut line = Zeroizing::new(Vec::with_capacity(64 * 1024));
        let encoded = serde_json::to_writer(&mut *line, &request);
        if let Request::Join { token, .. } = &mut request {
            token.zeroize();
        }
        encoded.map_err(|error| Problem::failed(format!("can't encode the request: {error}")))?;
        line.push(b'\n');

        let deadline = Instant::now() + patience;
        let stream = UnixStream::connect(&self.socket).map_err(|error| self.unreachable(&error))?;
        self.send(&stream, &line, patience)?;
        Ok(Pending {
            client: self.clone(),
            stream,
            deadline,
            patience,
        })
    }

    fn send(
        &self,
        mut stream: &UnixStream,
        line: &[u8],
        patience: Duration,
    ) -> Result<(), Problem> {
        let sent = stream
            .set_write_timeout(Some(patience))
            .and_then(|()| stream.write_all(line));
        match sent {
            Err(error) if may_be_answered(&error) => Ok(()),
            Err(error) if is_timeout(error.kind()) => Err(self.silent(patience)),
            Err(error) => Err(self.unreachable(&error)),
            Ok(()) => Ok(()),
        }
    }

    fn receive(
        &self,
        mut stream: &UnixStream,
        deadline: Instant,
        patience: Duration,
    ) -> Result<Vec<u8>, Problem> {
        let mut answer = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.silent(patience));
            }
            let read = stream
                .set_read_timeout(Some(left))
                .and_then(|()| stream.read(&mut buffer));
            let count = match read {
                Ok(0) if answer.is_empty() => return Err(self.hung_up()),
                Ok(0) => return Ok(answer),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if is_timeout(error.kind()) => return Err(self.silent(patience)),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(self.hung_up());
                }
                Err(error) => return Err(self.unreachable(&error)),
            };
            let fresh = buffer.get(..count).unwrap_or_default();
            let end = fresh.iter().position(|byte| *byte == b'\n');
            answer.extend(fresh.iter().take(end.unwrap_or(count)));
            if end.is_some() {
                return Ok(answer);
            }
            if answer.len() > MAX_ANSWER {
                return Err(Problem::failed(format!(
                    "the answer of {} is larger than {MAX_ANSWER} bytes",
                    self.daemon
                )));
            }
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> Problem {
        let (daemon, socket) = (self.daemon, self.socket.display());
        let next = match error.kind() {
            ErrorKind::PermissionDenied => {
                let cause = format!("you may not use the socket of {daemon} at {socket}");
                return Problem::new(Exit::Permission, cause)
                    .next("run it as root, or as a member of the group podmesh for views");
            }
            ErrorKind::NotFound => {
                let option = if daemon == "planet" {
                    "--planet-socket"
                } else {
                    "--socket"
                };
                format!(
                    "start it: systemctl start {daemon}; if it has a folder of its own, say {option}"
                )
            }
            _ => format!("look at its log: journalctl -u {daemon} -n 20"),
        };
        let cause = match error.kind() {
            ErrorKind::NotFound => format!("{daemon} is not running: there is no socket {socket}"),
            ErrorKind::ConnectionRefused => {
                format!("{daemon} is not running: nobody listens at {socket}")
            }
            _ => format!("{daemon} can't be reached at {socket}: {error}"),
        };
        Problem::new(Exit::Unreachable, cause).next(next)
    }

    fn hung_up(&self) -> Problem {
        let cause = format!("{} closed the connection without an answer", self.daemon);
        Problem::new(Exit::Unreachable, cause).next(format!(
            "look at its log: journalctl -u {} -n 20",
            self.daemon
        ))
    }

    fn silent(&self, patience: Duration) -> Problem {
        let seconds = patience.as_secs_f64();
        let cause = format!("{} did not answer within {seconds} s", self.daemon);
        Problem::new(Exit::Timeout, cause).next(format!(
            "look at its log: journalctl -u {} -n 20",
            self.daemon
        ))
    }

    fn misunderstood(&self) -> Problem {
        Problem::failed(format!("{} answered another question", self.daemon))
            .next("check that both have the same version: meshctl version")
    }
}

/// A request that was sent, before its answer.
#[derive(Debug)]
pub(crate) struct Pending {
    client: Client,
    stream: UnixStream,
    deadline: Instant,
    patience: Duration,
}

impl Pending {
    /// What the daemon says about a change.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(crate) fn done(self) -> Result<String, Problem> {
        let client = self.client.clone();
        match self.answer()? {
            Response::Done { message } => Ok(message),
            _ => Err(client.misunderstood()),
        }
    }

    fn answer(self) -> Result<Response, Problem> {
        let client = self.client;
        let answer = client.receive(&self.stream, self.deadline, self.patience)?;
        match serde_json::from_slice(&answer) {
            Ok(Response::Failed(failure)) => Err(failure.into()),
            Ok(response) => Ok(response),
            Err(error) => Err(Problem::failed(format!(
                "meshctl doesn't understand the answer of {}: {error}",
                client.daemon
            ))
            .next("check that both have the same version: meshctl version")),
        }
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
