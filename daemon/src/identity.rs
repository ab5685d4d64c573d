//! The keys of the node and its UDP port: made at the first start and kept, until the operator has the
//! keys changed. New keys are on disk before anybody hears of them; the old ones leave it when the new
//! ones are in force.

use std::io;

use podmesh_engine::config::NodeKeys;
use podmesh_proto::key::{SecretKey, SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::random;
use crate::state::{Document, Loaded, StateDir, StateError};

const FILE: &str = "identity";
const KIND: &str = "podmesh identity file";
const VERSION: u16 = 2;
/// Ports that we choose from: below those that Linux gives to outgoing connections (32,768 on).
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

/// Who this node is, as far as it knows by itself.
pub(crate) struct Identity {
    /// UDP port of tunnels and probes.
    pub(crate) port: u16,
    present: Keys,
    next: Option<Keys>,
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
            port: wire.port,
            present: wire.present.clone(),
            next: wire.next.clone(),
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

    /// The keys in force.
    pub(crate) fn keys(&self) -> NodeKeys {
        self.present.open()
    }

    /// The keys that are to take their place.
    pub(crate) fn next(&self) -> Option<NodeKeys> {
        self.next.as_ref().map(Keys::open)
    }

    /// Makes new tunnel and probe keys, and a new identity if `identity`, and keeps them beside the
    /// present ones.
    ///
    /// # Errors
    /// The file can't be written; nothing has changed then.
    pub(crate) fn prepare_rotation(&mut self, identity: bool) -> io::Result<NodeKeys> {
        let next = Keys {
            identity: if identity {
                random::bytes()?
            } else {
                self.present.identity
            },
            wireguard: random::bytes()?,
            probe: random::bytes()?,
        };
        let keys = next.open();
        let before = self.next.replace(next);
        if let Err(error) = self.save() {
            self.next = before;
            return Err(error);
        }
        Ok(keys)
    }

    /// The prepared keys are in force: the old ones leave the disk, the generation before too.
    ///
    /// # Errors
    /// The file can't be written; a start finds out by itself which keys are in force.
    pub(crate) fn complete_rotation(&mut self) -> io::Result<()> {
        if let Some(next) = self.next.take() {
            self.present = next;
        }
        self.save()?;
        self.save()
    }

    fn create(document: Document) -> io::Result<Self> {
        let mut identity = Self {
            port: random_port(),
            present: Keys {
                identity: random::bytes()?,
                wireguard: random::bytes()?,
                probe: random::bytes()?,
            },
            next: None,
            document,
        };
        identity.save()?;
        Ok(identity)
    }

    fn save(&mut self) -> io::Result<()> {
        let wire = Zeroizing::new(Wire {
            present: self.present.clone(),
            next: self.next.clone(),
            port: self.port,
        });
        let content = Zeroizing::new(postcard::to_allocvec(&*wire).map_err(io::Error::other)?);
        self.document.store(&content)
    }
}

#[derive(Serialize, Deserialize, Zeroize)]
struct Wire {
    present: Keys,
    next: Option<Keys>,
    port: u16,
}

/// The seeds of a node's keys.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Keys {
    identity: [u8; 32],
    wireguard: [u8; 32],
    probe: [u8; 32],
}

impl Keys {
    fn open(&self) -> NodeKeys {
        NodeKeys {
            identity: SigningKey::from_seed(self.identity),
            wireguard: SecretKey::from_bytes(self.wireguard),
            probe: SecretKey::from_bytes(self.probe),
        }
    }
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
        let (ours, theirs) = (first.keys(), again.keys());
        assert_eq!(ours.identity.node_id(), theirs.identity.node_id());
        assert_eq!(ours.wireguard.public(), theirs.wireguard.public());
        assert_eq!(ours.probe.public(), theirs.probe.public());
        assert_eq!(first.port, again.port);
        assert!((12_000..32_000).contains(&first.port));
        again.change_port().unwrap();
        assert_eq!(Identity::load(&dir).unwrap().port, again.port);
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn changed_keys_are_on_disk_before_they_count_and_old_ones_leave_it() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let on_disk = |secret: &[u8]| {
            let files = fs::read_dir(dir.path()).unwrap();
            let mut contents = files.map(|file| fs::read(file.unwrap().path()).unwrap());
            contents.any(|bytes| bytes.windows(32).any(|window| window == secret))
        };
        for identity in [false, true] {
            let mut before = Identity::load(&dir).unwrap();
            let old = before.keys();
            let next = before.prepare_rotation(identity).unwrap();
            let mut again = Identity::load(&dir).unwrap();
            assert_eq!(again.keys().wireguard.public(), old.wireguard.public());
            let kept = again.next().unwrap();
            assert_eq!(kept.wireguard.public(), next.wireguard.public());
            let stays = kept.identity.public() == old.identity.public();
            assert_eq!(stays, !identity);
            again.complete_rotation().unwrap();
            assert!(!on_disk(old.wireguard.to_bytes().as_slice()));
            assert!(!on_disk(old.probe.to_bytes().as_slice()));
            assert_eq!(on_disk(old.identity.seed().as_slice()), !identity);
            let after = Identity::load(&dir).unwrap();
            assert!(after.next().is_none());
            assert_eq!(after.keys().wireguard.public(), next.wireguard.public());
        }
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
