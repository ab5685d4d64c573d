//! The service manager's side: readiness, watchdog, credentials. The only place that reads the
//! environment.

use std::cell::Cell;
use std::env;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

use podmesh_kernel::descriptors::{self, Descriptors};

/// How long the service manager may take to make room for a message.
const PATIENCE: Duration = Duration::from_millis(100);

/// The notification socket of systemd (sd_notify(3)), if it started us.
pub(crate) struct Service {
    socket: Option<UnixDatagram>,
    has_watchdog: bool,
    has_begun: Cell<bool>,
}

impl Service {
    /// As the environment says.
    pub(crate) fn from_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| connect(&name));
        let has_watchdog = env::var_os("WATCHDOG_USEC").is_some() && is_for_us("WATCHDOG_PID");
        Self {
            socket,
            has_watchdog,
            has_begun: Cell::new(false),
        }
    }

    /// Whether there is one.
    pub(crate) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The node lives: whatever fails from now on is no failed start.
    pub(crate) fn begun(&self) {
        self.has_begun.set(true);
    }

    /// Whether it does, or did.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.get()
    }

    /// Why meshd hasn't started yet, for `systemctl status`.
    pub(crate) fn waiting(&self, reason: &str) {
        self.say(&format!(
            "STATUS=can't start yet: {}",
            reason.replace('\n', " ")
        ));
    }

    /// meshd has started.
    pub(crate) fn ready(&self) {
        self.say("READY=1\nSTATUS=");
    }

    /// meshd still works; said far more often than any sensible watchdog wants to hear it.
    pub(crate) fn alive(&self) {
        if self.has_watchdog {
            self.say("WATCHDOG=1");
        }
    }

    /// meshd is ending.
    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// The service manager keeps these open for the next start, whatever becomes of this process. It
    /// looks after them without polling: an error that waits on a socket is none of its.
    pub(crate) fn keep(&self, all: &[(String, BorrowedFd<'_>)]) {
        let Some(socket) = &self.socket else {
            return;
        };
        for one in all {
            let words = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={}", one.0);
            // One that has no room for them makes the next start a little slower.
            let _ = descriptors::send_with(socket, words.as_bytes(), std::slice::from_ref(one));
        }
    }

    /// The service manager lets these go.
    pub(crate) fn let_go(&self, names: impl Iterator<Item = String>) {
        for name in names {
            self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        }
    }

    fn say(&self, words: &str) {
        if let Some(socket) = &self.socket {
            // A service manager that doesn't listen is its own problem.
            let _ = socket.send(words.as_bytes());
        }
    }
}

/// What the service manager has kept open since the last meshd (sd_listen_fds(3)). To be called once,
/// before anything else is opened.
pub(crate) fn kept() -> Descriptors {
    let of_this_process =
        env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    if !of_this_process || names.is_empty() {
        return Descriptors::default();
    }
    let names: Vec<&str> = names.split(':').collect();
    Descriptors::passed_at_start(&names)
}

/// Where the service manager has put a credential of this name.
pub(crate) fn credential(name: &str) -> Option<PathBuf> {
    env::var_os("CREDENTIALS_DIRECTORY").map(|folder| PathBuf::from(folder).join(name))
}

fn connect(name: &OsStr) -> Option<UnixDatagram> {
    let address = match name.as_bytes().split_first()? {
        (b'@', rest) => SocketAddr::from_abstract_name(rest).ok()?,
        _ => SocketAddr::from_pathname(name).ok()?,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect_addr(&address).ok()?;
    // Some queue no more than ten messages, and each counts; one that hangs must not hang us.
    socket.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(socket)
}

fn is_for_us(variable: &str) -> bool {
    env::var(variable).map_or(true, |pid| pid == std::process::id().to_string())
}
