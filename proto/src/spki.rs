//! An Ed25519 public key as a SubjectPublicKeyInfo (RFC 8410 §4): what TLS with raw public keys
//! (RFC 7250) sends in place of a certificate. A planet's id is its key, so comparing the two is the
//! whole judgement of a planet's identity.

/// DER of everything before the key itself.
const PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// DER of an Ed25519 private key without its public half (RFC 8410 §7), before the seed.
const PRIVATE_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Bytes of an encoded public key.
pub const SPKI_LENGTH: usize = PREFIX.len() + 32;

/// The SubjectPublicKeyInfo of an Ed25519 key.
#[must_use]
pub fn encode(key: &[u8; 32]) -> [u8; SPKI_LENGTH] {
    let mut der = [0; SPKI_LENGTH];
    der.iter_mut()
        .zip(PREFIX.iter().chain(key))
        .for_each(|(to, from)| *to = *from);
    der
}

/// The key in a SubjectPublicKeyInfo; `None` unless it is exactly one Ed25519 key.
#[must_use]
pub fn decode(der: &[u8]) -> Option<[u8; 32]> {
    der.strip_prefix(&PREFIX)?.try_into().ok()
}

/// The PKCS #8 form of a seed, as TLS libraries load a private key.
#[must_use]
pub fn private_key(seed: &[u8; 32]) -> zeroize::Zeroizing<Vec<u8>> {
    zeroize::Zeroizing::new([PRIVATE_PREFIX.as_slice(), seed].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_has_one_form() {
        // RFC 8410 §10.1.
        let key = [
            0x19, 0xbf, 0x44, 0x09, 0x69, 0x84, 0xcd, 0xfe, 0x85, 0x41, 0xba, 0xc1, 0x67, 0xdc,
            0x3b, 0x96, 0xc8, 0x50, 0x86, 0xaa, 0x30, 0xb6, 0xb6, 0xcb, 0x0c, 0x5c, 0x38, 0xad,
            0x70, 0x31, 0x66, 0xe1,
        ];
        let der = encode(&key);
        assert_eq!(decode(&der), Some(key));
        for length in 0..der.len() {
            assert_eq!(decode(&der[..length]), None);
        }
        assert_eq!(decode(&[der.as_slice(), &[0]].concat()), None);
        let mut x25519 = der;
        x25519[8] = 0x6e;
        assert_eq!(decode(&x25519), None);
    }

    #[test]
    fn the_private_form_is_that_of_the_library() {
        use ring::signature::{Ed25519KeyPair, KeyPair};
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&private_key(&[7; 32])).unwrap();
        let expected = crate::key::SigningKey::from_seed([7; 32]).public();
        assert_eq!(pair.public_key().as_ref(), expected.0);
    }
}
