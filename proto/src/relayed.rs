//! Relay frames: a node's datagrams to another node by way of a planet.
//!
//! When a node's control connection is up, the planet gives it a session number and a key
//! ([`RelayGrant`]). Every frame between the two is authenticated with that key and counted against
//! replays; the payload is a WireGuard datagram or a probe, sealed for the other node already. The
//! planet finds the receiver by [`RelayAddress`] in its own table: no frame ever names an address to
//! send to. `Observe` asks where the planet sees the node's data socket; question and answer have
//! one length.
//!
//! Layout: `kind | version | 2 zero bytes | session 4 | counter 8 | peer 8 | payload | seal 16`, where
//! the seal is ChaCha20-Poly1305 over nothing with all before it as associated data.

use std::fmt;
use std::net::SocketAddr;

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce, Tag};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::datagram::{OBSERVE, OBSERVED, RELAY_DOWN, RELAY_UP};
use crate::error::DecodeError;
use crate::id::RelayAddress;

const VERSION: u8 = 1;
const HEADER: usize = 24;
const SEAL: usize = 16;
/// Bytes that relaying adds to a datagram.
pub const OVERHEAD: usize = HEADER + SEAL;
/// Bytes of the payload of `Observe` and `Observed`.
const OBSERVE_BODY: usize = 24;

/// A relay session as the planet hands it out, over the encrypted control connection.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayGrant {
    /// Number of the session at this planet.
    pub session: u32,
    /// Key of the session.
    pub key: [u8; 32],
}

impl fmt::Debug for RelayGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayGrant({})", self.session)
    }
}

/// The kind of a relay frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayKind {
    /// A datagram on its way from a node to the planet.
    Up,
    /// A datagram on its way from the planet to a node.
    Down,
    /// "Where do you see me?"
    Observe,
    /// "There."
    Observed,
}

/// Header of a relay frame, readable before the key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayHeader {
    /// Kind.
    pub kind: RelayKind,
    /// Session of the node at the planet.
    pub session: u32,
    /// Never repeats within a session and direction.
    pub counter: u64,
    /// Up: the receiver. Down: the sender. Else zero.
    pub peer: RelayAddress,
}

impl RelayHeader {
    /// Reads the header of a frame, unauthenticated.
    ///
    /// # Errors
    /// Not a relay frame of this version.
    pub fn parse(datagram: &[u8]) -> Result<Self, DecodeError> {
        const KIND: &str = "relay frame";
        let malformed = DecodeError::Malformed { kind: KIND };
        if datagram.len() < OVERHEAD {
            return Err(malformed);
        }
        let (first, rest) = datagram.split_first_chunk::<4>().ok_or(malformed.clone())?;
        let (session, rest) = rest.split_first_chunk::<4>().ok_or(malformed.clone())?;
        let (counter, rest) = rest.split_first_chunk::<8>().ok_or(malformed.clone())?;
        let (peer, _) = rest.split_first_chunk::<8>().ok_or(malformed.clone())?;
        let kind = match *first {
            [RELAY_UP, VERSION, 0, 0] => RelayKind::Up,
            [RELAY_DOWN, VERSION, 0, 0] => RelayKind::Down,
            [OBSERVE, VERSION, 0, 0] => RelayKind::Observe,
            [OBSERVED, VERSION, 0, 0] => RelayKind::Observed,
            _ => return Err(malformed),
        };
        Ok(Self {
            kind,
            session: u32::from_le_bytes(*session),
            counter: u64::from_le_bytes(*counter),
            peer: RelayAddress(*peer),
        })
    }

    fn first_byte(&self) -> u8 {
        match self.kind {
            RelayKind::Up => RELAY_UP,
            RelayKind::Down => RELAY_DOWN,
            RelayKind::Observe => OBSERVE,
            RelayKind::Observed => OBSERVED,
        }
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = Nonce::default();
        let bytes = [self.first_byte(), 0, 0, 0]
            .into_iter()
            .chain(self.counter.to_le_bytes());
        nonce
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = from);
        nonce
    }
}

/// Seals and opens the frames of one session.
pub struct RelaySeal {
    cipher: ChaCha20Poly1305,
}

impl RelaySeal {
    /// The seal of a session's key.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let key = Zeroizing::new(*key);
        Self {
            cipher: ChaCha20Poly1305::new(key.as_slice().into()),
        }
    }

    /// Appends a sealed frame with `payload` to `out`.
    pub fn seal(&self, header: &RelayHeader, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[header.first_byte(), VERSION, 0, 0]);
        out.extend_from_slice(&header.session.to_le_bytes());
        out.extend_from_slice(&header.counter.to_le_bytes());
        out.extend_from_slice(&header.peer.0);
        out.extend_from_slice(payload);
        let frame = out.get(start..).unwrap_or_default();
        let seal = self
            .cipher
            .encrypt_in_place_detached(&header.nonce(), frame, &mut []);
        // Only a message of more than 256 GiB can fail.
        out.extend_from_slice(&seal.unwrap_or_default());
    }

    /// The payload of a frame whose header was parsed, if this session's key sealed it.
    ///
    /// # Errors
    /// The seal doesn't hold.
    pub fn open<'a>(
        &self,
        header: &RelayHeader,
        datagram: &'a [u8],
    ) -> Result<&'a [u8], DecodeError> {
        let broken = DecodeError::Seal {
            kind: "relay frame",
        };
        let split = datagram.len().checked_sub(SEAL).ok_or(broken.clone())?;
        let (frame, seal) = datagram.split_at(split);
        self.cipher
            .decrypt_in_place_detached(&header.nonce(), frame, &mut [], Tag::from_slice(seal))
            .map_err(|_| broken.clone())?;
        frame.get(HEADER..).ok_or(broken)
    }

    /// Appends an `Observe` frame.
    pub fn observe(&self, session: u32, counter: u64, out: &mut Vec<u8>) {
        let (kind, peer) = (RelayKind::Observe, RelayAddress([0; 8]));
        self.seal(
            &RelayHeader {
                kind,
                session,
                counter,
                peer,
            },
            &[0; OBSERVE_BODY],
            out,
        );
    }

    /// Appends the `Observed` frame that answers one with the same counter.
    pub fn observed(&self, session: u32, counter: u64, endpoint: SocketAddr, out: &mut Vec<u8>) {
        let (kind, peer) = (RelayKind::Observed, RelayAddress([0; 8]));
        let mut body = [0; OBSERVE_BODY];
        let encoded = postcard::to_slice(&endpoint, &mut body).map(|used| used.len());
        debug_assert!(encoded.is_ok(), "an endpoint fits the fixed body");
        self.seal(
            &RelayHeader {
                kind,
                session,
                counter,
                peer,
            },
            &body,
            out,
        );
    }

    /// Reads the payload of an `Observed` frame.
    ///
    /// # Errors
    /// Not an endpoint.
    pub fn endpoint(payload: &[u8]) -> Result<SocketAddr, DecodeError> {
        postcard::take_from_bytes(payload)
            .map(|(endpoint, _padding)| crate::candidate::canonical(endpoint))
            .map_err(|_| DecodeError::Malformed {
                kind: "observed endpoint",
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_open_with_their_key_and_nothing_else() {
        let seal = RelaySeal::new(&[4; 32]);
        let header = RelayHeader {
            kind: RelayKind::Up,
            session: 7,
            counter: 99,
            peer: RelayAddress([1, 2, 3, 4, 5, 6, 7, 8]),
        };
        let mut frame = Vec::new();
        seal.seal(&header, b"sealed for somebody else", &mut frame);
        assert_eq!(frame.len(), 24 + OVERHEAD);
        assert_eq!(RelayHeader::parse(&frame), Ok(header));
        assert_eq!(
            seal.open(&header, &frame),
            Ok(b"sealed for somebody else".as_slice())
        );
        assert!(RelaySeal::new(&[5; 32]).open(&header, &frame).is_err());
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let opened =
                RelayHeader::parse(&changed).map(|header| seal.open(&header, &changed).is_ok());
            assert_ne!(opened, Ok(true), "bit {bit}");
        }
    }

    #[test]
    fn question_and_answer_have_one_length() {
        let seal = RelaySeal::new(&[4; 32]);
        let endpoint: SocketAddr = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
            .parse()
            .unwrap();
        let (mut question, mut answer) = (Vec::new(), Vec::new());
        seal.observe(7, 1, &mut question);
        seal.observed(7, 1, endpoint, &mut answer);
        assert_eq!(question.len(), answer.len());
        let header = RelayHeader::parse(&answer).unwrap();
        let payload = seal.open(&header, &answer).unwrap();
        assert_eq!(RelaySeal::endpoint(payload), Ok(endpoint));
    }
}
