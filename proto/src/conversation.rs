//! The caller's side of a local socket: one line each way.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read, Write};

/// Whether a request that could not be handed over may be answered all the same: a daemon that refuses the
/// caller says why without reading, and closes. What it has said is there to be read.
#[must_use]
pub fn may_be_answered(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

/// Says `request`, which ends with its line, and gives the line that answers it, of at most `longest` bytes.
///
/// # Errors
/// It can't be said or there is no answer: as the stream says, or [`ErrorKind::UnexpectedEof`].
pub fn converse(
    mut stream: impl Read + Write,
    request: &[u8],
    longest: u64,
) -> io::Result<Vec<u8>> {
    let unsaid = match stream.write_all(request) {
        Err(error) if may_be_answered(&error) => Some(error),
        said => {
            said?;
            None
        }
    };
    let mut answer = Vec::new();
    BufReader::new(stream.take(longest)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        let silent = "the connection was closed without an answer";
        let silent = || io::Error::new(ErrorKind::UnexpectedEof, silent);
        return Err(unsaid.unwrap_or_else(silent));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that takes this, or nothing for this reason, and has said that.
    struct Daemon(Result<(), ErrorKind>, &'static [u8]);

    impl Read for Daemon {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1.read(buffer)
        }
    }

    impl Write for Daemon {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0.map(|()| buffer.len()).map_err(io::Error::from)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_refusal_is_heard_although_nothing_was_read() {
        use ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof};
        let heard = |taken, said| match converse(Daemon(taken, said), b"how are you\n", 64) {
            Ok(answer) => Ok(answer.len()),
            Err(error) => Err(error.kind()),
        };
        assert_eq!(heard(Ok(()), b"well\nmore"), Ok(5));
        assert_eq!(heard(Err(BrokenPipe), b"go away\n"), Ok(8));
        assert_eq!(heard(Err(ConnectionReset), b"go away\n"), Ok(8));
        assert_eq!(heard(Err(BrokenPipe), b""), Err(BrokenPipe));
        assert_eq!(heard(Err(TimedOut), b"go away\n"), Err(TimedOut));
        assert_eq!(heard(Ok(()), b""), Err(UnexpectedEof));
    }
}
