//! What goes wrong, put for people: one sentence with the cause and the next step, and an exit code.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use podmesh_proto::error::{CertificateError, DecodeError};
use podmesh_proto::network::Network;

use crate::config::ConfigError;
use crate::identity::KeyError;
use crate::store::StoreError;

/// Failed for a reason without a code of its own.
pub const FAILED: u8 = 1;
/// The command line or the configuration makes no sense.
pub const USAGE: u8 = 3;
/// No planet runs there.
pub const UNREACHABLE: u8 = 4;
/// The caller may not do this.
pub const PERMISSION: u8 = 5;
/// There is no such planet or file.
pub const NOT_FOUND: u8 = 6;
/// No answer in time.
pub const TIMEOUT: u8 = 7;

/// Why a command ends without success.
#[derive(Debug)]
pub struct Problem {
    /// Exit code.
    pub code: u8,
    message: String,
}

impl Problem {
    /// With the general exit code.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    /// With an exit code of its own.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// A file that can't be read or written.
    #[must_use]
    pub fn file(path: &Path, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            io::ErrorKind::PermissionDenied => PERMISSION,
            _ => FAILED,
        };
        Self::new(code, format!("can't use {}: {error}", path.display()))
    }

    pub(crate) fn listening(listen: SocketAddr, error: &io::Error) -> Self {
        let next = match error.kind() {
            io::ErrorKind::AddrInUse => "; another program has the port, stop it or use --listen",
            io::ErrorKind::PermissionDenied => "; use a port above 1023",
            _ => "",
        };
        Self::failed(format!("can't listen on {listen}: {error}{next}"))
    }

    pub(crate) fn runtime(runtime_dir: &Path, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied => PERMISSION,
            _ => FAILED,
        };
        let path = runtime_dir.display();
        let message = format!("can't open the local socket in {path}: {error}; see --runtime-dir");
        Self::new(code, message)
    }

    pub(crate) fn damaged(error: &CertificateError) -> Self {
        Self::failed(format!(
            "the planet's books are damaged ({error}); restore a backup with `planet restore FILE`"
        ))
    }

    pub(crate) fn document(error: &impl fmt::Display) -> Self {
        Self::failed(format!(
            "this is no sound network document ({error}); use the file network.podmesh that `meshctl network create` wrote"
        ))
    }

    pub(crate) fn if_other_network(known: &Network, network: &Network) -> Result<(), Self> {
        if known.id == network.id {
            return Ok(());
        }
        Err(Self::failed(format!(
            "this planet serves network {} ({}) already and can't change to {} ({}); make another planet with `planet init --state-dir DIR`",
            known.name, known.id, network.name, network.id
        )))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let code = match &error {
            KeyError::Missing { .. } => NOT_FOUND,
            KeyError::Open { .. }
            | KeyError::Io {
                permission: true, ..
            } => PERMISSION,
            _ => FAILED,
        };
        Self::new(code, error.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Missing { .. } => NOT_FOUND,
            StoreError::Io {
                permission: true, ..
            } => PERMISSION,
            _ => FAILED,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::Unreadable { cause, .. } => match cause.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                io::ErrorKind::PermissionDenied => PERMISSION,
                _ => FAILED,
            },
            ConfigError::Malformed { .. } => USAGE,
        };
        Self::new(code, error.to_string())
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        Self::failed(error.to_string())
    }
}
