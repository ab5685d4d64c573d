//! Relay frames: a node's datagrams to another node by way of a planet.
//!
//! When a node's control connection is up, the planet gives it a session number and a key
//! ([`RelayGrant`]). Every frame between the two is authenticated with that key and counted against
//! replays; the payload is a WireGuard datagram or a probe, sealed for the other node already. The
//! planet finds the receiver by [`RelayAddress`] in its own table: no frame ever names an address to
//! send to. `Observe` asks where the planet sees the node's data socket; question and answer have
//! one length. A place where the node wasn't before gets a [`Token`] with it, and is believed once an
//! `Observe` from there repeats it.
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
/// Bytes of an endpoint in `Observed`, and of the whole payload of both in version 1 of the protocol.
pub const FORMER_OBSERVE_BODY: usize = 24;
/// Bytes of the payload of `Observe` and `Observed`: an endpoint and a token.
pub const OBSERVE_BODY: usize = FORMER_OBSERVE_BODY + 8;

/// What only who receives datagrams at a place can repeat. All zero: there is nothing to repeat.
pub type Token = [u8; 8];

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

    /// Appends an `Observe` frame that repeats `token`.
    pub fn observe(&self, session: u32, counter: u64, token: Token, out: &mut Vec<u8>) {
        let (kind, peer) = (RelayKind::Observe, RelayAddress([0; 8]));
        let body = body(&[], token);
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

    /// Appends the `Observed` frame that answers one with the same counter, in the form of version 1: it
    /// asks for no token.
    pub fn formerly_observed(
        &self,
        session: u32,
        counter: u64,
        endpoint: SocketAddr,
        out: &mut Vec<u8>,
    ) {
        let body = body(&encoded(endpoint), Token::default());
        let short = body.get(..FORMER_OBSERVE_BODY).unwrap_or_default();
        self.seal(&observed(session, counter), short, out);
    }

    /// Appends the `Observed` frame that answers a frame with the same counter: where that came from, and
    /// a token to be repeated from there.
    pub fn observed(
        &self,
        session: u32,
        counter: u64,
        (endpoint, token): (SocketAddr, Token),
        out: &mut Vec<u8>,
    ) {
        let body = body(&encoded(endpoint), token);
        self.seal(&observed(session, counter), &body, out);
    }

    /// The token in the payload of an `Observe` or `Observed` frame; none in those of version 1.
    #[must_use]
    pub fn token(payload: &[u8]) -> Option<Token> {
        let token = payload.get(FORMER_OBSERVE_BODY..)?.first_chunk::<8>()?;
        Some(*token)
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

fn observed(session: u32, counter: u64) -> RelayHeader {
    RelayHeader {
        kind: RelayKind::Observed,
        session,
        counter,
        peer: RelayAddress([0; 8]),
    }
}

fn encoded(endpoint: SocketAddr) -> [u8; FORMER_OBSERVE_BODY] {
    let mut bytes = [0; FORMER_OBSERVE_BODY];
    let encoded = postcard::to_slice(&endpoint, &mut bytes).map(|used| used.len());
    debug_assert!(encoded.is_ok(), "an endpoint fits the fixed body");
    bytes
}

fn body(endpoint: &[u8], token: Token) -> [u8; OBSERVE_BODY] {
    let mut body = [0; OBSERVE_BODY];
    body.iter_mut()
        .zip(endpoint)
        .for_each(|(to, from)| *to = *from);
    body.iter_mut()
        .skip(FORMER_OBSERVE_BODY)
        .zip(token)
        .for_each(|(to, from)| *to = from);
    body
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
        seal.observe(7, 1, [5; 8], &mut question);
        seal.observed(7, 1, (endpoint, [9; 8]), &mut answer);
        assert_eq!(question.len(), answer.len());
        let header = RelayHeader::parse(&answer).unwrap();
        let payload = seal.open(&header, &answer).unwrap();
        assert_eq!(RelaySeal::endpoint(payload), Ok(endpoint));
        assert_eq!(RelaySeal::token(payload), Some([9; 8]));
        let header = RelayHeader::parse(&question).unwrap();
        let payload = seal.open(&header, &question).unwrap();
        assert_eq!(RelaySeal::token(payload), Some([5; 8]));

        let mut former = Vec::new();
        seal.formerly_observed(7, 1, endpoint, &mut former);
        assert_eq!(former.len(), OVERHEAD + FORMER_OBSERVE_BODY);
        let header = RelayHeader::parse(&former).unwrap();
        let payload = seal.open(&header, &former).unwrap();
        assert_eq!(RelaySeal::endpoint(payload), Ok(endpoint));
        assert_eq!(RelaySeal::token(payload), None);
    }
}
