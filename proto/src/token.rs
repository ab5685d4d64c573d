//! Join tokens: one line of text that buys a certificate.
//!
//! A token carries the network as its root signed it (so a node needs no other source of trust),
//! the grant, and the grant's one-time key. Whoever holds the text can join: it travels in a file or
//! a service credential, never in an argument or the environment.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::certificate::Grant;
use crate::error::{CertificateError, DecodeError};
use crate::key::{SigningKey, digest};
use crate::limits;
use crate::network::{Network, RootStatement};
use crate::signed::Signed;

const PREFIX: &str = "podmesh1-";
const CHECKSUM: usize = 8;

/// A join token with its secret.
pub struct JoinToken {
    /// The network, signed by its root.
    pub network: Signed<RootStatement>,
    /// What the token gives, signed by the root.
    pub grant: Signed<Grant>,
    /// The one-time key named in the grant.
    pub key: SigningKey,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    network: Signed<RootStatement>,
    grant: Signed<Grant>,
    seed: [u8; 32],
}

impl JoinToken {
    /// The text form.
    ///
    /// # Errors
    /// The network document is too long for a token.
    pub fn to_text(&self) -> Result<Zeroizing<String>, DecodeError> {
        let wire = Wire {
            network: self.network.clone(),
            grant: self.grant.clone(),
            seed: *self.key.seed(),
        };
        let mut bytes = Zeroizing::new(
            postcard::to_allocvec(&wire)
                .map_err(|_| DecodeError::Malformed { kind: "join token" })?,
        );
        let hash = digest("podmesh token checksum v1", &bytes);
        bytes.extend(hash.iter().take(CHECKSUM));
        Ok(Zeroizing::new(format!(
            "{PREFIX}{}",
            URL_SAFE_NO_PAD.encode(bytes.as_slice())
        )))
    }

    /// The network and grant, if the root signed both and the key is the grant's.
    ///
    /// # Errors
    /// The first document that doesn't hold.
    pub fn verify(&self) -> Result<(Network, Grant), CertificateError> {
        let network = Network::from_statement(&self.network)?;
        let grant = [Some(network.root), network.second_root]
            .iter()
            .flatten()
            .find_map(|root| self.grant.verify(root, "the root").ok())
            .ok_or(CertificateError::Signature {
                document: "grant",
                signer: "the root",
            })?;
        if grant.network != network.id {
            return Err(CertificateError::OtherNetwork { document: "grant" });
        }
        if grant.token_key != self.key.public() {
            return Err(CertificateError::Mismatch {
                document: "grant",
                field: "token key",
            });
        }
        Ok((network, grant))
    }
}

impl FromStr for JoinToken {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        const KIND: &str = "join token";
        let text = text.trim();
        if text.len() > limits::MAX_MESSAGE {
            let (length, limit) = (text.len(), limits::MAX_MESSAGE);
            return Err(DecodeError::TooLong {
                kind: KIND,
                length,
                limit,
            });
        }
        let malformed = DecodeError::Malformed { kind: KIND };
        let body = text.strip_prefix(PREFIX).ok_or(malformed.clone())?;
        let bytes = Zeroizing::new(
            URL_SAFE_NO_PAD
                .decode(body)
                .map_err(|_| DecodeError::Seal { kind: KIND })?,
        );
        let split = bytes
            .len()
            .checked_sub(CHECKSUM)
            .ok_or(DecodeError::Seal { kind: KIND })?;
        let (wire, checksum) = bytes.split_at(split);
        if digest("podmesh token checksum v1", wire).get(..CHECKSUM) != Some(checksum) {
            return Err(DecodeError::Seal { kind: KIND });
        }
        let wire: Wire = postcard::from_bytes(wire).map_err(|_| malformed)?;
        Ok(Self {
            network: wire.network,
            grant: wire.grant,
            key: SigningKey::from_seed(wire.seed),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken")
    }
}
