//! Identifiers and names.
//!
//! A node's id *is* its Ed25519 public key, and a network's id is the hash of its root key, so
//! neither can be claimed without the key. Binary formats carry raw bytes, JSON carries hex.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::DecodeError;
use crate::limits;

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The first eight hex digits, for people.
            #[must_use]
            pub fn short(&self) -> String {
                self.0.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = DecodeError;

            fn from_str(text: &str) -> Result<Self, DecodeError> {
                from_hex(text).map(Self).ok_or(DecodeError::Malformed { kind: stringify!($name) })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    <[u8; $len]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

byte_id!(
    /// A node: its Ed25519 identity public key.
    NodeId,
    32
);
byte_id!(
    /// A planet: its Ed25519 public key, which is also the pin of its QUIC endpoint.
    PlanetId,
    32
);
byte_id!(
    /// A network: the first half of the SHA-256 of its root key.
    NetworkId,
    16
);
byte_id!(
    /// A join token.
    TokenId,
    16
);

impl NodeId {
    /// The eight bytes by which relays address a node. Only among members of one network, so a
    /// birthday collision is out of reach of chance; a planet refuses a second node with the same.
    #[must_use]
    pub fn relay_address(&self) -> RelayAddress {
        let mut address = [0; 8];
        address
            .iter_mut()
            .zip(self.0)
            .for_each(|(to, from)| *to = from);
        RelayAddress(address)
    }
}

/// How a relay frame names a node: the first eight bytes of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayAddress(pub [u8; 8]);

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(pair).ok()?;
        if digits.starts_with('+') {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(bytes)
}

/// A checked name of a node, site, group, planet or network: `[a-z0-9]([a-z0-9.-]*[a-z0-9])?`, at
/// most 63 characters. Nothing else ever reaches a file name, a log or a terminal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        let edge = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
        let bytes = text.as_bytes();
        let good = bytes.len() <= limits::MAX_NAME
            && bytes.iter().copied().all(inner)
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            let text = text
                .chars()
                .take(40)
                .flat_map(char::escape_default)
                .collect();
            Err(DecodeError::Name { text })
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_nothing_else() {
        for good in ["a", "home-1", "node.lab", "9x"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a b",
            "a/b",
            "..",
            "\u{1b}]0;x\u{7}",
            "ä",
            &long,
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_print_and_parse_as_hex() {
        let id = NetworkId([0xab; 16]);
        assert_eq!(id.to_string().parse::<NetworkId>(), Ok(id));
        assert!("ab".parse::<NetworkId>().is_err());
        assert!("+b".repeat(16).parse::<NetworkId>().is_err());
    }
}
