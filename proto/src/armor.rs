//! Signed documents as one line of text, for files and for pasting.
//!
//! Prefix (what it is, and the format's version), then base64url of the encoded document and an
//! 8-byte checksum, so that a lost character is found before any signature is judged. Lines that
//! start with `#` are remarks for people.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::DecodeError;
use crate::key::digest;
use crate::limits;
use crate::network::RootStatement;
use crate::signed::{Document, Signed};

const CHECKSUM: usize = 8;
const CHECKSUM_CONTEXT: &str = "podmesh armor checksum v1";

/// A kind of armored text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armor {
    /// A network as its root signed it: what `meshctl network create` writes and a planet adopts.
    Network,
    /// Any other statement of the root, a revocation for example.
    Statement,
}

impl Armor {
    /// The kind that fits a statement.
    ///
    /// # Errors
    /// The statement can't be read.
    pub fn of(statement: &Signed<RootStatement>) -> Result<Self, DecodeError> {
        Ok(match statement.unverified()? {
            RootStatement::Network(_) => Self::Network,
            _ => Self::Statement,
        })
    }

    /// The text of `document`, one line without an end of line.
    ///
    /// # Errors
    /// The document can't be encoded.
    pub fn encode<T: Document>(self, document: &Signed<T>) -> Result<String, DecodeError> {
        let kind = self.kind();
        let mut bytes =
            postcard::to_allocvec(document).map_err(|_| DecodeError::Malformed { kind })?;
        let checksum = digest(CHECKSUM_CONTEXT, &bytes);
        bytes.extend(checksum.iter().take(CHECKSUM));
        Ok(format!(
            "{}{}",
            self.prefix(),
            URL_SAFE_NO_PAD.encode(bytes)
        ))
    }

    /// The document in `text`, its signature not yet verified. White space and lines that start with
    /// `#` are ignored.
    ///
    /// # Errors
    /// Another kind of text, or damaged.
    pub fn decode<T: Document>(self, text: &str) -> Result<Signed<T>, DecodeError> {
        let kind = self.kind();
        let (length, limit) = (text.len(), limits::MAX_MESSAGE);
        if length > limit {
            return Err(DecodeError::TooLong {
                kind,
                length,
                limit,
            });
        }
        let remark = |line: &&str| !line.trim_start().starts_with('#');
        let line: String = text
            .lines()
            .filter(remark)
            .flat_map(str::split_whitespace)
            .collect();
        let body = line
            .strip_prefix(self.prefix())
            .ok_or(DecodeError::Malformed { kind })?;
        let damaged = DecodeError::Seal { kind };
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| damaged.clone())?;
        let split = bytes.len().checked_sub(CHECKSUM).ok_or(damaged.clone())?;
        let (document, checksum) = bytes.split_at(split);
        if digest(CHECKSUM_CONTEXT, document).get(..CHECKSUM) != Some(checksum) {
            return Err(damaged);
        }
        match postcard::take_from_bytes(document) {
            Ok((signed, [])) => Ok(signed),
            _ => Err(DecodeError::Malformed { kind }),
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Network => "podmesh-network1-",
            Self::Statement => "podmesh-statement1-",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Network => "network file",
            Self::Statement => "statement file",
        }
    }
}

/// The statement in a text of either kind, its signature not yet verified.
///
/// # Errors
/// Neither a network nor a statement, or damaged.
pub fn decode_statement(text: &str) -> Result<Signed<RootStatement>, DecodeError> {
    match Armor::Network.decode(text) {
        Err(DecodeError::Malformed { .. }) => Armor::Statement.decode(text),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NetworkId, TokenId};
    use crate::key::SigningKey;
    use crate::time::UnixSeconds;

    #[test]
    fn armored_text_survives_remarks_and_wrapping_but_no_damage() {
        let said = RootStatement::RevokeToken {
            network: NetworkId([1; 16]),
            token: TokenId([2; 16]),
            issued: UnixSeconds(3),
        };
        let signed = Signed::seal(&said, &SigningKey::from_seed([4; 32])).unwrap();
        assert_eq!(Armor::of(&signed), Ok(Armor::Statement));
        let text = Armor::Statement.encode(&signed).unwrap();
        let (first, second) = text.split_at(40);
        let wrapped = format!("# revokes a token\n{first}\n  {second}\n");
        assert_eq!(decode_statement(&wrapped), Ok(signed));
        assert!(Armor::Network.decode::<RootStatement>(&text).is_err());
        for position in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[position] = if damaged[position] == b'A' {
                b'B'
            } else {
                b'A'
            };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(decode_statement(&damaged).is_err(), "{position}");
            assert!(decode_statement(&text[..position]).is_err(), "{position}");
        }
    }
}
