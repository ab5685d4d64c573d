//! How a command ends: the table of exit codes, and what a person is told when it fails.

use std::fmt;
use std::process::ExitCode;

use podmesh_proto::error::{CertificateError, DecodeError};
use podmesh_proto::local_api::Failure;

/// Exit codes, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Failed for a reason without a code of its own.
    Failed = 1,
    /// A check says: not ready.
    NotReady = 2,
    /// The command line makes no sense.
    Usage = 3,
    /// The daemon can't be reached.
    Unreachable = 4,
    /// The caller may not do this.
    Permission = 5,
    /// No such node, token, file or network.
    NotFound = 6,
    /// No answer in time.
    Timeout = 7,
    /// Reachable, but only by a relay.
    Relayed = 8,
    /// Some targets failed, others did not.
    Partial = 9,
}

impl Exit {
    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Ok,
            2 => Self::NotReady,
            3 => Self::Usage,
            4 => Self::Unreachable,
            5 => Self::Permission,
            6 => Self::NotFound,
            7 => Self::Timeout,
            8 => Self::Relayed,
            9 => Self::Partial,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        #[allow(clippy::as_conversions, reason = "the enum is a u8")]
        Self::from(exit as u8)
    }
}

/// Why a command failed: one sentence with the cause, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The program's exit code.
    pub(crate) exit: Exit,
    /// The sentence.
    pub(crate) cause: String,
    /// The next step, if there is one.
    pub(crate) next: Option<String>,
}

impl Problem {
    /// A problem with this exit code.
    pub(crate) fn new(exit: Exit, cause: impl Into<String>) -> Self {
        let (cause, next) = (cause.into(), None);
        Self { exit, cause, next }
    }

    /// Exit code 1.
    pub(crate) fn failed(cause: impl Into<String>) -> Self {
        Self::new(Exit::Failed, cause)
    }

    /// Exit code 3.
    pub(crate) fn usage(cause: impl Into<String>) -> Self {
        Self::new(Exit::Usage, cause)
    }

    /// The same with a next step.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Problem {}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            exit: Exit::from_code(failure.code.exit_code()),
            cause: failure.message,
            next: failure.next,
        }
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<CertificateError> for Problem {
    fn from(error: CertificateError) -> Self {
        Self::failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use podmesh_proto::local_api::FailureCode;

    use super::*;

    #[test]
    fn every_failure_of_the_daemon_keeps_its_exit_code() {
        use FailureCode::{Failed, NotFound, NotReady, Permission, Timeout, Usage};
        for (code, exit) in [
            (Failed, Exit::Failed),
            (NotReady, Exit::NotReady),
            (Usage, Exit::Usage),
            (Permission, Exit::Permission),
            (NotFound, Exit::NotFound),
            (Timeout, Exit::Timeout),
        ] {
            assert_eq!(Exit::from_code(code.exit_code()), exit);
        }
    }
}
