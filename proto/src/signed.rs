//! Documents that carry their signature.
//!
//! What is signed is the exact byte string that travels, so no canonical form is needed and a
//! document means the same to everybody who can verify it.

use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{CertificateError, DecodeError};
use crate::key::{Signature, SigningKey, VerifyingKey, digest};
use crate::limits;

/// A kind of document that can be signed.
pub trait Document: Serialize + DeserializeOwned {
    /// What it is called in errors.
    const KIND: &'static str;
    /// Signature context, with the format's version; no two kinds share one.
    const CONTEXT: &'static str;
}

/// A `T` in its encoded form, with one signature over exactly these bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    bytes: Vec<u8>,
    signature: Signature,
    #[serde(skip)]
    kind: PhantomData<T>,
}

impl<T: Document> Signed<T> {
    /// Encodes and signs `document`.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`] if it is over [`limits::MAX_SIGNED`].
    pub fn seal(document: &T, key: &SigningKey) -> Result<Self, DecodeError> {
        let bytes = encode(document)?;
        let signature = key.sign(T::CONTEXT, &bytes);
        Ok(Self {
            bytes,
            signature,
            kind: PhantomData,
        })
    }

    /// The document, if `key` signed it.
    ///
    /// # Errors
    /// [`CertificateError::Signature`] naming `signer`, or the document can't be read.
    pub fn verify(&self, key: &VerifyingKey, signer: &'static str) -> Result<T, CertificateError> {
        if self.bytes.len() > limits::MAX_SIGNED {
            return Err(self.too_long().into());
        }
        if !key.verifies(T::CONTEXT, &self.bytes, &self.signature) {
            return Err(CertificateError::Signature {
                document: T::KIND,
                signer,
            });
        }
        Ok(self.unverified()?)
    }

    /// The document as it stands, whoever signed it: only to find out whose key to verify with.
    ///
    /// # Errors
    /// The document can't be read.
    pub fn unverified(&self) -> Result<T, DecodeError> {
        if self.bytes.len() > limits::MAX_SIGNED {
            return Err(self.too_long());
        }
        let (document, rest) = postcard::take_from_bytes(&self.bytes)
            .map_err(|_| DecodeError::Malformed { kind: T::KIND })?;
        if rest.is_empty() {
            Ok(document)
        } else {
            Err(DecodeError::Malformed { kind: T::KIND })
        }
    }

    /// A further signature by `key` over the same bytes, in a context of its own.
    #[must_use]
    pub fn countersign(&self, context: &str, key: &SigningKey) -> Signature {
        key.sign(context, &self.bytes)
    }

    /// Whether `signature` is a [`Self::countersign`] by `key`.
    #[must_use]
    pub fn countersigned(&self, context: &str, key: &VerifyingKey, signature: &Signature) -> bool {
        key.verifies(context, &self.bytes, signature)
    }

    /// Bytes that this takes in a message, at most.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len().saturating_add(64 + 8)
    }

    /// Hash of the signed bytes, by which another document refers to this one.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        digest(T::CONTEXT, &self.bytes)
    }

    /// The document with its signature as base64, as the local sockets carry it.
    ///
    /// # Errors
    /// The document can't be encoded.
    pub fn to_base64(&self) -> Result<String, DecodeError> {
        let bytes =
            postcard::to_allocvec(self).map_err(|_| DecodeError::Malformed { kind: T::KIND })?;
        Ok(STANDARD.encode(bytes))
    }

    /// The reverse of [`Self::to_base64`]; the signature is not yet verified.
    ///
    /// # Errors
    /// Too long, or not what `to_base64` makes.
    pub fn from_base64(text: &str) -> Result<Self, DecodeError> {
        let (length, limit) = (text.len(), limits::MAX_MESSAGE);
        if length > limit {
            let kind = T::KIND;
            return Err(DecodeError::TooLong {
                kind,
                length,
                limit,
            });
        }
        let malformed = DecodeError::Malformed { kind: T::KIND };
        let bytes = STANDARD.decode(text).map_err(|_| malformed.clone())?;
        match postcard::take_from_bytes(&bytes) {
            Ok((signed, [])) => Ok(signed),
            _ => Err(malformed),
        }
    }

    fn too_long(&self) -> DecodeError {
        let (length, limit) = (self.bytes.len(), limits::MAX_SIGNED);
        DecodeError::TooLong {
            kind: T::KIND,
            length,
            limit,
        }
    }
}

fn encode<T: Document>(document: &T) -> Result<Vec<u8>, DecodeError> {
    let bytes =
        postcard::to_allocvec(document).map_err(|_| DecodeError::Malformed { kind: T::KIND })?;
    if bytes.len() > limits::MAX_SIGNED {
        let (length, limit) = (bytes.len(), limits::MAX_SIGNED);
        return Err(DecodeError::TooLong {
            kind: T::KIND,
            length,
            limit,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NetworkId, TokenId};
    use crate::network::RootStatement;
    use crate::time::UnixSeconds;

    #[test]
    fn a_signed_document_survives_base64_and_nothing_is_left_over() {
        let said = RootStatement::RevokeToken {
            network: NetworkId([1; 16]),
            token: TokenId([2; 16]),
            issued: UnixSeconds(3),
        };
        let signed = Signed::seal(&said, &SigningKey::from_seed([4; 32])).unwrap();
        let text = signed.to_base64().unwrap();
        assert_eq!(Signed::from_base64(&text), Ok(signed));
        assert!(Signed::<RootStatement>::from_base64(&format!("{text}AAAA")).is_err());
        assert!(Signed::<RootStatement>::from_base64("").is_err());
    }
}
