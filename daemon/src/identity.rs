//! The keys of the node and its UDP port: made at the first start and kept.

use std::io;

use podmesh_proto::key::{SecretKey, SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::random;
use crate::state::{Document, Loaded, StateDir, StateError};

const FILE: &str = "identity";
const KIND: &str = "podmesh identity file";
const VERSION: u16 = 1;
/// Ports that we choose from: below those that Linux gives to outgoing connections (32,768 on).
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

/// Who this node is, as far as it knows by itself.
pub(crate) struct Identity {
    /// Signs for the node; its public half is the node's id.
    pub(crate) signing: SigningKey,
    /// The key of all tunnels.
    pub(crate) wireguard: SecretKey,
    /// The key of all probes.
    pub(crate) probe: SecretKey,
    /// UDP port of tunnels and probes.
    pub(crate) port: u16,
    document: Document,
}

impl Identity {
    /// Reads the identity, or makes one at the first start. Says so when it had to fall back to the
    /// generation before.
    ///
    /// # Errors
    /// The file is damaged or can't be written: without it the node would be somebody else after a
    /// restart.
    pub(crate) fn load(dir: &StateDir) -> Result<Self, StateError> {
        let mut document = Document::new(dir, FILE, KIND, VERSION);
        let content = match document.load()? {
            Loaded::Nothing => return Self::create(document).map_err(|cause| unusable(dir, cause)),
            Loaded::Current(content) => content,
            Loaded::Previous(content, damage) => {
                tracing::warn!(
                    reason = damage,
                    "the identity file is damaged, its previous generation is used"
                );
                content
            }
        };
        let content = Zeroizing::new(content);
        let wire: Zeroizing<Wire> =
            postcard::from_bytes(&content)
                .map(Zeroizing::new)
                .map_err(|_| StateError::Damaged {
                    path: dir.path().join(FILE),
                    damage: "its content is unreadable",
                })?;
        Ok(Self {
            signing: SigningKey::from_seed(wire.identity),
            wireguard: SecretKey::from_bytes(wire.wireguard),
            probe: SecretKey::from_bytes(wire.probe),
            port: wire.port,
            document,
        })
    }

    /// Takes another port and keeps it.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn change_port(&mut self) -> io::Result<()> {
        self.port = random_port();
        self.save()
    }

    fn create(document: Document) -> io::Result<Self> {
        let mut identity = Self {
            signing: SigningKey::from_seed(random::bytes()?),
            wireguard: SecretKey::from_bytes(random::bytes()?),
            probe: SecretKey::from_bytes(random::bytes()?),
            port: random_port(),
            document,
        };
        identity.save()?;
        Ok(identity)
    }

    fn save(&mut self) -> io::Result<()> {
        let wire = Zeroizing::new(Wire {
            identity: *self.signing.seed(),
            wireguard: *self.wireguard.to_bytes(),
            probe: *self.probe.to_bytes(),
            port: self.port,
        });
        let content = Zeroizing::new(postcard::to_allocvec(&*wire).map_err(io::Error::other)?);
        self.document.store(&content)
    }
}

#[derive(Serialize, Deserialize, Zeroize)]
struct Wire {
    identity: [u8; 32],
    wireguard: [u8; 32],
    probe: [u8; 32],
    port: u16,
}

fn random_port() -> u16 {
    let offset = random::below(u64::from(PORTS));
    FIRST_PORT + u16::try_from(offset).unwrap_or(0)
}

fn unusable(dir: &StateDir, cause: io::Error) -> StateError {
    StateError::Unusable {
        path: dir.path().join(FILE),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn keys_and_port_are_made_once_and_kept() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let first = Identity::load(&dir).unwrap();
        let mut again = Identity::load(&dir).unwrap();
        assert_eq!(first.signing.node_id(), again.signing.node_id());
        assert_eq!(first.wireguard.public(), again.wireguard.public());
        assert_eq!(first.probe.public(), again.probe.public());
        assert_eq!(first.port, again.port);
        assert!((12_000..32_000).contains(&first.port));
        again.change_port().unwrap();
        assert_eq!(Identity::load(&dir).unwrap().port, again.port);
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_identity_is_never_replaced_by_a_new_one() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        drop(Identity::load(&dir).unwrap());
        let path = dir.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..40]).unwrap();
        assert!(matches!(
            Identity::load(&dir),
            Err(StateError::Damaged { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), &bytes[..40]);
    }
}
