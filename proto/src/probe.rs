//! Sealed probes between two nodes: they prove a path, measure it, and open NATs.
//!
//! A probe is sealed under the shared secret of the two nodes' probe keys, so that nobody else can
//! make one, answer one or learn who sent it: the sender is known by an 8-byte tag that only the two
//! can compute. Ping and pong have the same length, so an answer is never larger than the question.
//!
//! Layout: `0x20 | version | 2 zero bytes | tag 8 | nonce 24 | ciphertext | seal 16`
//! (XChaCha20-Poly1305; the random nonce means no counter has to outlive a crash).

use std::net::SocketAddr;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::datagram::PROBE;
use crate::error::DecodeError;
use crate::id::{NetworkId, NodeId};
use crate::key::{PublicKey, SecretKey};

const VERSION: u8 = 1;
const HEADER: usize = 12;
const NONCE: usize = 24;
const BODY: usize = 64;
const SEAL: usize = 16;
/// Bytes of every probe.
pub const PROBE_LENGTH: usize = HEADER + NONCE + BODY + SEAL;

/// What a probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Start of the sender's process, Unix seconds: counters begin anew with it.
    pub incarnation: u64,
    /// Grows with each probe of one incarnation to this peer; a replay repeats it.
    pub counter: u64,
    /// Ping or pong.
    pub body: ProbeBody,
    /// The latest incarnation of the receiver's that the sender knows of, and to which it listens. Zero if it
    /// knows of none, and in probes of programs that don't say: what is behind a body is zero.
    pub known: u64,
}

/// Ping or pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeBody {
    /// Answer me.
    Ping {
        /// Repeated by the pong.
        transaction: u64,
    },
    /// The answer.
    Pong {
        /// Of the ping.
        transaction: u64,
        /// Where the ping came from, as its receiver saw it.
        observed: SocketAddr,
    },
}

/// The eight bytes by which a receiver finds a probe's sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeTag(pub [u8; 8]);

/// Keys of the probes between two nodes, one per direction.
pub struct ProbeKeys {
    send: Zeroizing<[u8; 32]>,
    receive: Zeroizing<[u8; 32]>,
    send_tag: ProbeTag,
    receive_tag: ProbeTag,
}

impl ProbeKeys {
    /// Derives the keys (HKDF-SHA256 over the X25519 secret, salted with the network's id);
    /// `None` if the peer's key is a low-order point.
    #[must_use]
    pub fn derive(
        secret: &SecretKey,
        me: &NodeId,
        peer_key: &PublicKey,
        peer: &NodeId,
        network: &NetworkId,
    ) -> Option<Self> {
        let shared = secret.agree(peer_key)?;
        let prk =
            ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &network.0).extract(shared.as_slice());
        let direction = |from: &NodeId, to: &NodeId| {
            let info = [b"podmesh probe v1".as_slice(), &from.0, &to.0];
            let mut okm = Zeroizing::new([0; 40]);
            prk.expand(&info, Length(40))
                .ok()?
                .fill(okm.as_mut_slice())
                .ok()?;
            let (key, tag) = okm.split_first_chunk::<32>()?;
            Some((Zeroizing::new(*key), ProbeTag(tag.try_into().ok()?)))
        };
        let (send, send_tag) = direction(me, peer)?;
        let (receive, receive_tag) = direction(peer, me)?;
        Some(Self {
            send,
            receive,
            send_tag,
            receive_tag,
        })
    }

    /// The tag on probes that the peer sends us.
    #[must_use]
    pub fn receive_tag(&self) -> ProbeTag {
        self.receive_tag
    }

    /// Seals a probe under a random nonce.
    #[must_use]
    pub fn seal(&self, probe: &Probe, nonce: &[u8; NONCE]) -> Vec<u8> {
        let mut body = [0; BODY];
        // The longest body (an IPv6 pong) has 10 + 10 + 1 + 10 + 1 + 16 + 3 + 10 = 61 bytes.
        let encoded = postcard::to_slice(probe, &mut body).map(|used| used.len());
        debug_assert!(encoded.is_ok(), "a probe fits its fixed body");
        let mut datagram = Vec::with_capacity(PROBE_LENGTH);
        datagram.extend_from_slice(&[PROBE, VERSION, 0, 0]);
        datagram.extend_from_slice(&self.send_tag.0);
        let payload = Payload {
            msg: &body,
            aad: &datagram,
        };
        let cipher = XChaCha20Poly1305::new(self.send.as_slice().into());
        let sealed = cipher
            .encrypt(XNonce::from_slice(nonce), payload)
            .unwrap_or_default();
        datagram.extend_from_slice(nonce);
        datagram.extend_from_slice(&sealed);
        datagram
    }

    /// Opens a probe of the peer.
    ///
    /// # Errors
    /// Not sealed by the peer, or not readable.
    pub fn open(&self, datagram: &[u8]) -> Result<Probe, DecodeError> {
        const KIND: &str = "probe";
        let seal = DecodeError::Seal { kind: KIND };
        let (header, rest) = datagram.split_first_chunk::<HEADER>().ok_or(seal.clone())?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or(seal.clone())?;
        let cipher = XChaCha20Poly1305::new(self.receive.as_slice().into());
        let payload = Payload {
            msg: sealed,
            aad: header,
        };
        let body = cipher
            .decrypt(XNonce::from_slice(nonce), payload)
            .map_err(|_| seal)?;
        let (probe, _padding) =
            postcard::take_from_bytes(&body).map_err(|_| DecodeError::Malformed { kind: KIND })?;
        Ok(probe)
    }
}

/// The tag of a probe, if the datagram has the shape of one.
#[must_use]
pub fn tag_of(datagram: &[u8]) -> Option<ProbeTag> {
    match datagram {
        [PROBE, VERSION, 0, 0, rest @ ..] if datagram.len() == PROBE_LENGTH => {
            rest.first_chunk::<8>().copied().map(ProbeTag)
        }
        _ => None,
    }
}

struct Length(usize);

impl ring::hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (ProbeKeys, ProbeKeys) {
        let (a, b) = (
            SecretKey::from_bytes([1; 32]),
            SecretKey::from_bytes([2; 32]),
        );
        let (id_a, id_b, network) = (NodeId([1; 32]), NodeId([2; 32]), NetworkId([9; 16]));
        let keys_a = ProbeKeys::derive(&a, &id_a, &b.public(), &id_b, &network).unwrap();
        let keys_b = ProbeKeys::derive(&b, &id_b, &a.public(), &id_a, &network).unwrap();
        (keys_a, keys_b)
    }

    fn longest() -> Probe {
        let observed = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
            .parse()
            .unwrap();
        let body = ProbeBody::Pong {
            transaction: u64::MAX,
            observed,
        };
        Probe {
            incarnation: u64::MAX,
            counter: u64::MAX,
            body,
            known: u64::MAX,
        }
    }

    #[test]
    fn probes_open_at_the_peer_and_have_one_length() {
        let (a, b) = pair();
        let ping = Probe {
            incarnation: 1,
            counter: 0,
            body: ProbeBody::Ping { transaction: 7 },
            known: 0,
        };
        for probe in [ping, longest()] {
            let datagram = a.seal(&probe, &[5; 24]);
            assert_eq!(datagram.len(), PROBE_LENGTH);
            assert_eq!(tag_of(&datagram), Some(b.receive_tag()));
            assert_eq!(b.open(&datagram), Ok(probe));
            assert!(
                a.open(&datagram).is_err(),
                "a probe doesn't open in its own direction"
            );
        }
    }

    /// Programs that know of no such thing end with the body, and read no further.
    #[test]
    fn a_body_without_the_last_field_says_that_nothing_is_known() {
        let body = ProbeBody::Ping { transaction: 7 };
        let probe = Probe {
            known: 0,
            body,
            ..longest()
        };
        let mut padded = postcard::to_allocvec(&(probe.incarnation, probe.counter, body)).unwrap();
        padded.resize(BODY, 0);
        let (read, _) = postcard::take_from_bytes::<Probe>(&padded).unwrap();
        assert_eq!(read, probe);
        let with = postcard::to_allocvec(&Probe { known: 9, ..probe }).unwrap();
        let (read, _) = postcard::take_from_bytes::<(u64, u64, ProbeBody)>(&with).unwrap();
        assert_eq!(read, (probe.incarnation, probe.counter, body));
    }

    #[test]
    fn no_changed_bit_passes() {
        let (a, b) = pair();
        let datagram = a.seal(&longest(), &[5; 24]);
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(b.open(&changed).is_err(), "bit {bit}");
        }
        for length in 0..datagram.len() {
            assert!(b.open(&datagram[..length]).is_err(), "length {length}");
        }
    }
}
