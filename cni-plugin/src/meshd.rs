//! What is asked of meshd, and told to it, over its local socket.

use std::{fs, os::unix::net::UnixStream, path::Path, time::Duration};

use podmesh_proto::conversation::converse;
use podmesh_proto::local_api::{ReadyView, Request, Response};

use crate::warn;

const SOCKET: &str = "meshd.sock";
/// Is there in meshd's runtime folder as long as meshd believes that the ledger can't be written.
const TOLD: &str = "ledger-trouble";
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
const OTHER_ANSWER: &str = "meshd answered another question than it was asked";

/// Asks whether the node forwards, once the ledger is known to be writable. The error is a
/// sentence.
pub(crate) fn ready(runtime_dir: &Path) -> Result<ReadyView, String> {
    let view = ask_ready(runtime_dir)?;
    if !view.waits_for_ledger {
        return Ok(view);
    }
    tell(runtime_dir, None)?;
    forget_told(runtime_dir);
    ask_ready(runtime_dir)
}

/// Tells that no pod can be attached because of a ledger that can't be written, so that meshd's
/// own readiness says so, too. Where there is no meshd, nobody asks it either.
pub(crate) fn tell_trouble(runtime_dir: &Path, trouble: &str) {
    match tell(runtime_dir, Some(trouble.to_owned())) {
        // Without it meshd believes the trouble for its time.
        Ok(()) => drop(fs::write(runtime_dir.join(TOLD), "")),
        Err(reason) => warn(&format!("meshd could not be told: {reason}")),
    }
}

/// Tells that the ledger was written, if meshd was told before that it can't be. Where it wasn't, no ADD
/// waits for meshd.
pub(crate) fn tell_recovery(runtime_dir: &Path) {
    if !runtime_dir.join(TOLD).exists() {
        return;
    }
    match tell(runtime_dir, None) {
        Ok(()) => forget_told(runtime_dir),
        Err(reason) => warn(&format!("meshd could not be told: {reason}")),
    }
}

fn forget_told(runtime_dir: &Path) {
    // It is not there where nobody was told.
    let _ = fs::remove_file(runtime_dir.join(TOLD));
}

fn ask_ready(runtime_dir: &Path) -> Result<ReadyView, String> {
    match ask(runtime_dir, &Request::Ready)? {
        Response::Ready(view) => Ok(view),
        _ => Err(OTHER_ANSWER.to_owned()),
    }
}

fn tell(runtime_dir: &Path, trouble: Option<String>) -> Result<(), String> {
    match ask(runtime_dir, &Request::Ledger { trouble })? {
        Response::Done { .. } => Ok(()),
        _ => Err(OTHER_ANSWER.to_owned()),
    }
}

fn ask(runtime_dir: &Path, request: &Request) -> Result<Response, String> {
    let path = runtime_dir.join(SOCKET);
    let silent =
        |cause: std::io::Error| format!("meshd does not answer on {}: {cause}", path.display());
    let stream = UnixStream::connect(&path).map_err(silent)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    let mut question = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    question.push(b'\n');
    let answer = converse(stream, &question, MAX_ANSWER_BYTES).map_err(silent)?;
    match serde_json::from_slice(&answer) {
        Ok(Response::Failed(failure)) => Err(failure.message),
        Ok(response) => Ok(response),
        Err(error) => Err(format!("meshd's answer is not readable: {error}")),
    }
}
