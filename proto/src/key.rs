//! Keys: Ed25519 for identities and signatures, X25519 for WireGuard and probes.
//!
//! Secrets are made from random bytes that the caller provides, are wiped when dropped, and have no
//! `Debug`, `Display` or `Serialize`: they can't slip into a log or an answer.

use std::fmt;
use std::str::FromStr;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::error::DecodeError;
use crate::id::{NodeId, PlanetId};

/// An Ed25519 signing key (RFC 8032): a node's identity, a planet's, a token's one-time key, or a
/// network's root.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    public: VerifyingKey,
}

impl SigningKey {
    /// The key of a 32-byte seed, which must come from a cryptographic random source.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        let public = VerifyingKey(match Ed25519KeyPair::from_seed_unchecked(seed.as_slice()) {
            Ok(pair) => {
                let mut bytes = [0; 32];
                bytes
                    .iter_mut()
                    .zip(pair.public_key().as_ref())
                    .for_each(|(to, from)| *to = *from);
                bytes
            }
            // The only cause is a seed that isn't 32 bytes long.
            Err(_) => [0; 32],
        });
        Self { seed, public }
    }

    /// The seed, to be written to a file that only its owner can read.
    #[must_use]
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> VerifyingKey {
        self.public
    }

    /// The node whose identity this is.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId(self.public.0)
    }

    /// The planet whose key this is.
    #[must_use]
    pub fn planet_id(&self) -> PlanetId {
        PlanetId(self.public.0)
    }

    /// Signs `context ‖ 0 ‖ bytes`; the context keeps a signature of one kind of document from
    /// passing as another.
    #[must_use]
    pub fn sign(&self, context: &str, bytes: &[u8]) -> Signature {
        let mut signature = [0; 64];
        if let Ok(pair) = Ed25519KeyPair::from_seed_unchecked(self.seed.as_slice()) {
            let made = pair.sign(&framed(context, bytes));
            signature
                .iter_mut()
                .zip(made.as_ref())
                .for_each(|(to, from)| *to = *from);
        }
        Signature(signature)
    }
}

/// The public half of a [`SigningKey`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VerifyingKey(pub [u8; 32]);

impl VerifyingKey {
    /// Whether `signature` is this key's over `context ‖ 0 ‖ bytes`.
    #[must_use]
    pub fn verifies(&self, context: &str, bytes: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(&framed(context, bytes), &signature.0)
            .is_ok()
    }
}

impl From<NodeId> for VerifyingKey {
    fn from(id: NodeId) -> Self {
        Self(id.0)
    }
}

impl From<PlanetId> for VerifyingKey {
    fn from(id: PlanetId) -> Self {
        Self(id.0)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", NodeId(self.0).short())
    }
}

fn framed(context: &str, bytes: &[u8]) -> Vec<u8> {
    [context.as_bytes(), &[0], bytes].concat()
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature")
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (first, second) = self.0.split_at(32);
        (first, second).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (first, second) = <(Vec<u8>, Vec<u8>)>::deserialize(deserializer)?;
        <[u8; 64]>::try_from([first, second].concat())
            .map(Self)
            .map_err(|_| de::Error::custom("a signature has 64 bytes"))
    }
}

/// An X25519 secret (RFC 7748): a node's WireGuard key or its probe key.
#[derive(Clone)]
pub struct SecretKey(x25519_dalek::StaticSecret);

impl SecretKey {
    /// The key of 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(x25519_dalek::StaticSecret::from(bytes))
    }

    /// The bytes, to be written to a file that only its owner can read.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// The Diffie-Hellman secret with `peer`, or `None` if `peer` is a low-order point.
    #[must_use]
    pub fn agree(&self, peer: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self
            .0
            .diffie_hellman(&x25519_dalek::PublicKey::from(peer.0));
        shared
            .was_contributory()
            .then(|| Zeroizing::new(shared.to_bytes()))
    }

    /// The key as the tunnel library takes it.
    #[must_use]
    pub fn to_dalek(&self) -> x25519_dalek::StaticSecret {
        self.0.clone()
    }
}

/// An X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Whether this is one of the low-order points, with which every shared secret is zero and
    /// anybody could speak as the key's owner.
    #[must_use]
    pub fn is_low_order(&self) -> bool {
        // Any clamped scalar is a multiple of the cofactor, so it maps exactly those points to zero.
        SecretKey::from_bytes([0x55; 32]).agree(self).is_none()
    }
}

impl fmt::Display for PublicKey {
    /// Base64, as `wg` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use base64::Engine as _;
        f.write_str(&base64::engine::general_purpose::STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(Self)
            .ok_or(DecodeError::Malformed { kind: "public key" })
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// SHA-256 of `context ‖ 0 ‖ bytes`.
#[must_use]
pub fn digest(context: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    let made = ring::digest::digest(&ring::digest::SHA256, &framed(context, bytes));
    hash.iter_mut()
        .zip(made.as_ref())
        .for_each(|(to, from)| *to = *from);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_context_alone() {
        let key = SigningKey::from_seed([7; 32]);
        let signature = key.sign("grant", b"text");
        assert!(key.public().verifies("grant", b"text", &signature));
        assert!(!key.public().verifies("claim", b"text", &signature));
        assert!(!key.public().verifies("grant", b"texu", &signature));
        assert!(
            !SigningKey::from_seed([8; 32])
                .public()
                .verifies("grant", b"text", &signature)
        );
    }

    #[test]
    fn low_order_points_are_known() {
        let mut points = vec![[0; 32], [0; 32]];
        points[1][0] = 1;
        // RFC 7748 §6.1 and the list of cr.yp.to/ecdh.html: the two points of order eight.
        points.push([
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f,
            0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16,
            0x5f, 0x49, 0xb8, 0x00,
        ]);
        points.push([
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83,
            0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd,
            0xd0, 0x9f, 0x11, 0x57,
        ]);
        for last in [0xec, 0xed, 0xee] {
            let mut point = [0xff; 32];
            (point[0], point[31]) = (last, 0x7f);
            points.push(point);
        }
        for point in points {
            assert!(PublicKey(point).is_low_order(), "{point:02x?}");
        }
        assert!(!SecretKey::from_bytes([3; 32]).public().is_low_order());
    }
}
