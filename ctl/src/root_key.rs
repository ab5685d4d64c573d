//! The file that holds a network's root key, sealed by a passphrase or, by explicit wish, plain.
//!
//! The passphrase becomes a key by Argon2id (RFC 9106, the parameters recommended there for a machine
//! with little memory), which seals the 32-byte seed with ChaCha20-Poly1305 (RFC 8439). Everything
//! else in the file is authenticated with it.

pub(crate) mod passphrase;
pub(crate) mod recovery;

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use podmesh_proto::id::{Name, NetworkId};
use podmesh_proto::key::SigningKey;
use podmesh_proto::network::Network;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::problem::Problem;

const SCHEMA: &str = "podmesh.root-key/v1";
/// KiB of memory, passes and lanes: RFC 9106 §4, second recommended option.
const COST: Cost = Cost {
    // An unoptimised build takes seconds for the real one.
    memory_kib: if cfg!(test) { 64 } else { 64 * 1024 },
    passes: 3,
    lanes: 4,
};
/// KiB: a file that asks for more was not written by us.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 64;
const MAX_LANES: u32 = 64;

/// A root key as its file holds it.
#[derive(Serialize, Deserialize)]
pub(crate) struct RootKeyFile {
    schema: String,
    /// For people.
    name: Name,
    /// The network that the key belongs to.
    network: NetworkId,
    /// Public half, hex.
    public: Hex<32>,
    seed: Protection,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "protection", rename_all = "kebab-case")]
enum Protection {
    None {
        seed: Hex<32>,
    },
    Passphrase {
        argon2id: Cost,
        salt: Hex<16>,
        nonce: Hex<12>,
        sealed: Hex<48>,
    },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl RootKeyFile {
    /// The file for `key` of the network `name`, whose id is `network`; plain if there is no
    /// passphrase.
    ///
    /// # Errors
    /// The machine has no randomness or not enough memory.
    pub(crate) fn seal(
        key: &SigningKey,
        (name, network): (&Name, NetworkId),
        passphrase: Option<&str>,
    ) -> Result<Self, Problem> {
        let public = key.public().0;
        let seed = match passphrase {
            None => Protection::None {
                seed: Hex(*key.seed()),
            },
            Some(passphrase) => {
                let (salt, nonce) = (random()?, random()?);
                let cipher = cipher(passphrase, &salt, COST)?;
                let payload = Payload {
                    msg: key.seed(),
                    aad: &bound(network, &public, COST),
                };
                let sealed = cipher
                    .encrypt(&Nonce::from(nonce), payload)
                    .ok()
                    .and_then(|sealed| sealed.try_into().ok())
                    .ok_or_else(|| Problem::failed("can't seal the root key"))?;
                Protection::Passphrase {
                    argon2id: COST,
                    salt: Hex(salt),
                    nonce: Hex(nonce),
                    sealed: Hex(sealed),
                }
            }
        };
        Ok(Self {
            schema: SCHEMA.to_owned(),
            name: name.clone(),
            network,
            public: Hex(public),
            seed,
        })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// No root key file, or one of another version.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let damaged = |cause: String| {
            Problem::failed(cause).next("use a backup, or `meshctl network recover`")
        };
        let file: Self = serde_json::from_str(text)
            .map_err(|error| damaged(format!("the root key file is damaged: {error}")))?;
        if file.schema == SCHEMA {
            Ok(file)
        } else {
            Err(damaged(format!(
                "the root key file says '{}', this meshctl reads {SCHEMA}",
                file.schema
            )))
        }
    }

    /// The text for the file.
    ///
    /// # Errors
    /// Never in practice.
    pub(crate) fn to_text(&self) -> Result<Zeroizing<String>, Problem> {
        let mut text = Zeroizing::new(
            serde_json::to_string_pretty(self)
                .map_err(|error| Problem::failed(error.to_string()))?,
        );
        text.push('\n');
        Ok(text)
    }

    /// Whether a passphrase is needed.
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.seed, Protection::Passphrase { .. })
    }

    /// Whether this is a root key of `network`.
    pub(crate) fn belongs_to(&self, network: &Network) -> bool {
        let ours = |key: &podmesh_proto::key::VerifyingKey| key.0 == self.public.0;
        ours(&network.root) || network.second_root.as_ref().is_some_and(ours)
    }

    /// The key. `passphrase` is asked for only if the file is sealed.
    ///
    /// # Errors
    /// No passphrase, the wrong one, or a damaged file.
    pub(crate) fn open(
        &self,
        passphrase: impl FnOnce() -> Result<Zeroizing<String>, Problem>,
    ) -> Result<SigningKey, Problem> {
        let mut seed = match &self.seed {
            Protection::None { seed } => Zeroizing::new(seed.0),
            Protection::Passphrase {
                argon2id: cost,
                salt,
                nonce,
                sealed,
            } => {
                cost.check()?;
                let cipher = cipher(&passphrase()?, &salt.0, *cost)?;
                let payload = Payload {
                    msg: &sealed.0,
                    aad: &bound(self.network, &self.public.0, *cost),
                };
                let opened = cipher.decrypt(&Nonce::from(nonce.0), payload);
                let opened = Zeroizing::new(opened.map_err(|_| wrong_passphrase())?);
                let mut seed = Zeroizing::new([0; 32]);
                seed.iter_mut()
                    .zip(opened.iter())
                    .for_each(|(to, from)| *to = *from);
                seed
            }
        };
        let key = SigningKey::from_seed(*seed);
        seed.zeroize();
        if key.public().0 == self.public.0 {
            Ok(key)
        } else {
            Err(Problem::failed(
                "the root key file is damaged: its two halves don't belong together",
            )
            .next("use a backup, or `meshctl network recover`"))
        }
    }
}

impl Cost {
    fn check(self) -> Result<(), Problem> {
        if self.memory_kib <= MAX_MEMORY_KIB && self.passes <= MAX_PASSES && self.lanes <= MAX_LANES
        {
            Ok(())
        } else {
            Err(Problem::failed(
                "the root key file asks for more memory or time than meshctl gives",
            )
            .next("check where the file comes from"))
        }
    }
}

/// A new key from the machine's randomness.
///
/// # Errors
/// There is none.
pub(crate) fn new_key() -> Result<SigningKey, Problem> {
    let mut seed = Zeroizing::new(random::<32>()?);
    let key = SigningKey::from_seed(*seed);
    seed.zeroize();
    Ok(key)
}

/// Random bytes from the machine.
///
/// # Errors
/// There are none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Problem::failed("the kernel gave no random bytes"))?;
    Ok(bytes)
}

fn wrong_passphrase() -> Problem {
    Problem::failed("wrong passphrase for the root key")
        .next("try again; without it only the recovery form helps: `meshctl network recover`")
}

fn cipher(passphrase: &str, salt: &[u8], cost: Cost) -> Result<ChaCha20Poly1305, Problem> {
    let mut key = Zeroizing::new([0; 32]);
    let Cost {
        memory_kib,
        passes,
        lanes,
    } = cost;
    let derived = Params::new(memory_kib, passes, lanes, Some(32)).and_then(|params| {
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(
            passphrase.as_bytes(),
            salt,
            key.as_mut(),
        )
    });
    derived.map_err(|error| {
        Problem::failed(format!("can't derive a key from the passphrase: {error}"))
    })?;
    Ok(ChaCha20Poly1305::new(key.as_ref().into()))
}

/// What the seal binds: a sealed seed can't be moved into a file that says something else.
fn bound(network: NetworkId, public: &[u8; 32], cost: Cost) -> Vec<u8> {
    [
        SCHEMA.as_bytes(),
        &[0],
        &network.0,
        public,
        &cost.memory_kib.to_be_bytes(),
        &cost.passes.to_be_bytes(),
        &cost.lanes.to_be_bytes(),
    ]
    .concat()
}

/// Bytes that are hex in JSON, wiped when dropped.
struct Hex<const N: usize>([u8; N]);

impl<const N: usize> Drop for Hex<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write;
        let mut text = Zeroizing::new(String::with_capacity(N * 2));
        for byte in &self.0 {
            write!(text, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let wrong = || serde::de::Error::custom(format!("expected {} hex digits", N * 2));
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|digit| {
                digit
                    .to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
            })
            .collect();
        let digits = Zeroizing::new(digits.ok_or_else(wrong)?);
        if digits.len() != N * 2 {
            return Err(wrong());
        }
        let mut bytes = Self([0; N]);
        for (byte, pair) in bytes.0.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |value, digit| value << 4 | digit);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(passphrase: Option<&str>) -> (SigningKey, RootKeyFile) {
        let key = SigningKey::from_seed([9; 32]);
        let name: Name = "lab".parse().unwrap();
        let network = Network::id_of(&key.public());
        let file = RootKeyFile::seal(&key, (&name, network), passphrase).unwrap();
        (key, file)
    }

    fn reread(file: &RootKeyFile) -> RootKeyFile {
        RootKeyFile::parse(&file.to_text().unwrap()).unwrap()
    }

    #[test]
    fn a_plain_key_comes_back_without_a_passphrase() {
        let (key, file) = file(None);
        let opened = reread(&file).open(|| panic!("no passphrase is needed"));
        assert_eq!(opened.unwrap().seed(), key.seed());
    }

    #[test]
    fn a_sealed_key_opens_with_its_passphrase_alone_and_shows_nothing() {
        let (key, sealed) = file(Some("correct horse"));
        let (_, plain) = file(None);
        let text = sealed.to_text().unwrap();
        let seed = plain.to_text().unwrap();
        let seed = seed
            .split('"')
            .find(|word| word.starts_with("0909"))
            .unwrap();
        assert!(!text.contains(seed));
        let open = |passphrase: &str| {
            let passphrase = Zeroizing::new(passphrase.to_owned());
            reread(&sealed).open(|| Ok(passphrase))
        };
        assert_eq!(open("correct horse").ok().unwrap().seed(), key.seed());
        assert!(open("correct horsf").is_err());
    }

    #[test]
    fn a_file_with_another_network_or_unbounded_cost_is_refused() {
        let (_, mut file) = file(Some("correct horse"));
        let passphrase = || Ok(Zeroizing::new("correct horse".to_owned()));
        file.network = NetworkId([0; 16]);
        assert!(file.open(passphrase).is_err());
        let Protection::Passphrase { argon2id, .. } = &mut file.seed else {
            panic!("sealed");
        };
        argon2id.memory_kib = u32::MAX;
        assert!(file.open(|| panic!("refused before asking")).is_err());
    }
}
