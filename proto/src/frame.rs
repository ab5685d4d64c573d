//! Length-prefixed messages on the control stream between node and planet.
//!
//! Four bytes of length (big endian), then the message in postcard. A frame longer than
//! [`limits::MAX_MESSAGE`] ends the connection before it is buffered.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::DecodeError;
use crate::limits;

/// Encodes one message with its length.
///
/// # Errors
/// [`DecodeError::TooLong`] if it is over [`limits::MAX_MESSAGE`].
pub fn encode<T: Serialize>(message: &T, kind: &'static str) -> Result<Vec<u8>, DecodeError> {
    let body = postcard::to_allocvec(message).map_err(|_| DecodeError::Malformed { kind })?;
    let (length, limit) = (body.len(), limits::MAX_MESSAGE);
    let prefix = u32::try_from(length).ok().filter(|_| length <= limit);
    let prefix = prefix.ok_or(DecodeError::TooLong {
        kind,
        length,
        limit,
    })?;
    Ok([prefix.to_be_bytes().as_slice(), &body].concat())
}

/// Collects bytes of a stream and gives whole messages.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
}

impl FrameDecoder {
    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes are there.
    ///
    /// # Errors
    /// The frame is too long or can't be read; the stream has to be given up then.
    pub fn next<T: DeserializeOwned>(
        &mut self,
        kind: &'static str,
    ) -> Result<Option<T>, DecodeError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > limits::MAX_MESSAGE {
            return Err(DecodeError::TooLong {
                kind,
                length,
                limit: limits::MAX_MESSAGE,
            });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = postcard::from_bytes(body).map_err(|_| DecodeError::Malformed { kind })?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_cut() {
        let stream = [
            encode(&"one", "text").unwrap(),
            encode(&"two", "text").unwrap(),
        ]
        .concat();
        for size in 1..stream.len() {
            let mut decoder = FrameDecoder::default();
            let mut got = Vec::new();
            for piece in stream.chunks(size) {
                decoder.push(piece);
                while let Some(text) = decoder.next::<String>("text").unwrap() {
                    got.push(text);
                }
            }
            assert_eq!(got, ["one", "two"]);
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_by_its_prefix() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&[0, 2, 0, 0]);
        assert!(matches!(
            decoder.next::<String>("text"),
            Err(DecodeError::TooLong { .. })
        ));
    }
}
