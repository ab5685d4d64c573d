//! One question to meshd over its local socket.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use podmesh_proto::local_api::{ReadyView, Request, Response};

const SOCKET: &str = "meshd.sock";
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Asks whether the node forwards. The error is a sentence.
pub(crate) fn ready(runtime_dir: &Path) -> Result<ReadyView, String> {
    let path = runtime_dir.join(SOCKET);
    let silent =
        |cause: std::io::Error| format!("meshd does not answer on {}: {cause}", path.display());
    let mut stream = UnixStream::connect(&path).map_err(silent)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    let mut question = serde_json::to_vec(&Request::Ready).map_err(|error| error.to_string())?;
    question.push(b'\n');
    stream.write_all(&question).map_err(silent)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(MAX_ANSWER_BYTES))
        .read_until(b'\n', &mut answer)
        .map_err(silent)?;
    match serde_json::from_slice(&answer) {
        Ok(Response::Ready(view)) => Ok(view),
        Ok(Response::Failed(failure)) => Err(failure.message),
        Ok(_) => Err("meshd answered another question than it was asked".to_owned()),
        Err(error) => Err(format!("meshd's answer is not readable: {error}")),
    }
}
