//! The keys of the node and its UDP port: made by the join and kept, until the operator has the keys
//! changed. Until there is a join they are in memory alone, so that machines which are made from one image
//! have nothing in common. New keys are on disk before anybody hears of them; the old ones leave it when
//! the new ones are in force.

use std::fs;
use std::io;

use podmesh_engine::config::NodeKeys;
use podmesh_proto::key::{SecretKey, SigningKey, digest};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::kept::Kept;
use crate::random;
use crate::state::{Document, Loaded, StateDir, StateError, Trouble};

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
    /// Present once a join has made the keys this node's.
    birth: Option<Birth>,
    /// This machine's, if it has one.
    machine: Option<Machine>,
    /// Why the file doesn't say what is true, if it doesn't.
    owed: Option<Trouble>,
    document: Document,
}

impl Identity {
    /// Reads the identity, and says so when it had to fall back to the generation before. What no join has
    /// made this machine's own is left aside: `has_history` tells whether the state knows of a network
    /// that the node is, or was, a member of.
    ///
    /// # Errors
    /// The file is damaged: without it the node would be somebody else.
    pub(crate) fn load(
        dir: &StateDir,
        machine: Option<Machine>,
        has_history: bool,
    ) -> Result<Self, StateError> {
        let mut document = Document::new(dir, FILE, KIND, VERSION);
        let content = match document.load()? {
            Loaded::Nothing => {
                return Self::fresh(document, machine).map_err(|cause| unusable(dir, cause));
            }
            Loaded::Current(content) => content,
            Loaded::Previous(content, damage) => {
                tracing::warn!(
                    reason = damage,
                    "the identity file is damaged, its previous generation is used"
                );
                content
            }
        };
        let wire = Wire::read(&Zeroizing::new(content)).map_err(|_| StateError::Damaged {
            path: dir.path().join(FILE),
            damage: "its content is unreadable".to_owned(),
        })?;
        let mut identity = Self {
            port: wire.port,
            present: wire.present.clone(),
            next: wire.next.clone(),
            birth: wire.birth.clone(),
            machine,
            owed: None,
            document,
        };
        if !has_history && (identity.birth.is_none() || identity.is_from_elsewhere()) {
            tracing::info!("keys that no join has made this machine's own are left aside");
            return Self::fresh(identity.document, machine).map_err(|cause| unusable(dir, cause));
        }
        if identity.birth.is_none() {
            identity.birth = Some(Birth { machine });
            identity.owe();
        }
        Ok(identity)
    }

    /// Whether the keys were made on another machine, as far as can be told: this folder, or the whole
    /// disk, was copied.
    pub(crate) fn is_from_elsewhere(&self) -> bool {
        let born = self.birth.as_ref().and_then(|birth| birth.machine);
        born.zip(self.machine)
            .is_some_and(|(born, present)| born != present)
    }

    /// Whether a join has made the keys this node's.
    pub(crate) fn is_kept(&self) -> bool {
        self.birth.is_some()
    }

    /// Why the file doesn't say what is true, if it doesn't.
    pub(crate) fn trouble(&self) -> Option<&Trouble> {
        self.owed.as_ref()
    }

    /// The files as they were left. Nothing if there are to be none.
    pub(crate) fn left(&mut self) -> Vec<Kept> {
        if self.birth.is_none() {
            return Vec::new();
        }
        let left = self.document.left();
        if left.is_empty() {
            self.owe();
            return self.document.left();
        }
        left
    }

    /// Somebody has taken the files away, or changed them: writes them anew, or owes it.
    pub(crate) fn restore(&mut self) {
        self.owe();
    }

    /// A join begins: the keys are this node's from now on, and on disk in both generations.
    ///
    /// # Errors
    /// The file can't be written; nothing has changed then.
    pub(crate) fn keep(&mut self) -> io::Result<()> {
        if self.birth.is_some() {
            return Ok(());
        }
        self.birth = Some(Birth {
            machine: self.machine,
        });
        let kept = self.save_both();
        if kept.is_err() {
            self.birth = None;
        }
        kept
    }

    /// The node has left: its keys leave the disk, and new ones take their place in memory.
    ///
    /// # Errors
    /// The file can't be removed; the keys stay as they are.
    pub(crate) fn forget(&mut self) -> io::Result<NodeKeys> {
        let present = Keys::random()?;
        self.document.remove()?;
        self.present = present;
        self.next = None;
        self.birth = None;
        self.owed = None;
        Ok(self.keys())
    }

    /// Takes the port that was found to be free; kept as soon as the disk allows.
    pub(crate) fn change_port(&mut self, port: u16) {
        if self.port != port {
            self.port = port;
            self.owe();
        }
    }

    /// A port that nobody else chooses, in all likelihood.
    pub(crate) fn another_port() -> u16 {
        random_port()
    }

    /// Writes what the disk refused before.
    pub(crate) fn try_again(&mut self) {
        if self.owed.is_some() {
            self.owe();
        }
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
        let mut next = Keys::random()?;
        if !identity {
            next.identity = self.present.identity;
        }
        let keys = next.open();
        let before = self.next.replace(next);
        // The generation before has the present keys as well, and nothing else that counts.
        if let Err(error) = self.save() {
            self.next = before;
            return Err(error);
        }
        Ok(keys)
    }

    /// The prepared keys, if there are any, will never be in force.
    pub(crate) fn discard_rotation(&mut self) {
        if self.next.take().is_some() {
            self.owe();
        }
    }

    /// The prepared keys are in force: the old ones leave the disk, the generation before too. They are
    /// this machine's, wherever the former ones came from.
    ///
    /// # Errors
    /// The file can't be written yet; a start finds out by itself which keys are in force.
    pub(crate) fn complete_rotation(&mut self) -> io::Result<()> {
        if let Some(next) = self.next.take() {
            self.present = next;
        }
        self.birth = Some(Birth {
            machine: self.machine,
        });
        let saved = self.save_both();
        self.owed = saved.as_ref().err().map(Trouble::from);
        saved
    }

    fn fresh(document: Document, machine: Option<Machine>) -> io::Result<Self> {
        Ok(Self {
            port: random_port(),
            present: Keys::random()?,
            next: None,
            birth: None,
            machine,
            owed: None,
            document,
        })
    }

    /// Writes at once if the disk allows, and otherwise later.
    fn owe(&mut self) {
        if self.birth.is_none() {
            return;
        }
        let refused = self.save_both().err().map(|error| Trouble::from(&error));
        if let Some(trouble) = refused
            .as_ref()
            .filter(|it| self.owed.as_ref() != Some(*it))
        {
            tracing::warn!(reason = %trouble, "the identity file can't be written");
        }
        self.owed = refused;
    }

    fn save_both(&mut self) -> io::Result<()> {
        let content = self.content()?;
        self.document.store_both(&content)
    }

    fn save(&mut self) -> io::Result<()> {
        let content = self.content()?;
        self.document.store(&content)
    }

    fn content(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        let wire = Zeroizing::new(Wire {
            present: self.present.clone(),
            next: self.next.clone(),
            port: self.port,
            birth: self.birth.clone(),
        });
        let content = postcard::to_allocvec(&*wire).map_err(io::Error::other)?;
        Ok(Zeroizing::new(content))
    }
}

/// What tells a machine from its copies: a hash of `/etc/machine-id` (machine-id(5)), which an image
/// leaves empty and each machine made from it fills.
pub(crate) type Machine = [u8; 32];

/// This machine's, if it has one.
pub(crate) fn machine() -> Option<Machine> {
    machine_of(&fs::read_to_string("/etc/machine-id").ok()?)
}

fn machine_of(text: &str) -> Option<Machine> {
    let id = text.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| digest("podmesh machine", id.as_bytes()))
}

#[derive(Serialize, Deserialize, Zeroize)]
struct Wire {
    present: Keys,
    next: Option<Keys>,
    port: u16,
    birth: Option<Birth>,
}

/// How the keys came to be this node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize)]
struct Birth {
    /// The machine on which a join, or a rotation, made them.
    machine: Option<Machine>,
}

impl Wire {
    /// Also what was written before births were; a program of that time reads the beginning of this.
    fn read(content: &[u8]) -> Result<Zeroizing<Self>, postcard::Error> {
        let wire = postcard::from_bytes(content).or_else(|error| match error {
            // No birth is one byte of zero.
            postcard::Error::DeserializeUnexpectedEnd => {
                postcard::from_bytes(&Zeroizing::new([content, &[0]].concat()))
            }
            error => Err(error),
        });
        wire.map(Zeroizing::new)
    }
}

/// The seeds of a node's keys.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Keys {
    identity: [u8; 32],
    wireguard: [u8; 32],
    probe: [u8; 32],
}

impl Keys {
    fn random() -> io::Result<Self> {
        Ok(Self {
            identity: random::bytes()?,
            wireguard: random::bytes()?,
            probe: random::bytes()?,
        })
    }

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
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::scratch::Scratch;

    const HERE: Option<Machine> = Some([1; 32]);
    const ELSEWHERE: Option<Machine> = Some([2; 32]);

    /// An identity that a join has made.
    fn joined(dir: &StateDir) -> Identity {
        let mut identity = Identity::load(dir, HERE, false).unwrap();
        identity.keep().unwrap();
        identity
    }

    fn load(dir: &StateDir) -> Identity {
        Identity::load(dir, HERE, true).unwrap()
    }

    #[test]
    fn keys_and_port_are_made_by_the_join_and_kept() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let before = Identity::load(&dir, HERE, false).unwrap();
        assert!(!dir.path().join(FILE).exists());
        let first = joined(&dir);
        let (ours, theirs) = (before.keys(), first.keys());
        assert_ne!(ours.identity.node_id(), theirs.identity.node_id());
        let mut again = load(&dir);
        let (ours, theirs) = (first.keys(), again.keys());
        assert_eq!(ours.identity.node_id(), theirs.identity.node_id());
        assert_eq!(ours.wireguard.public(), theirs.wireguard.public());
        assert_eq!(ours.probe.public(), theirs.probe.public());
        assert_eq!(first.port, again.port);
        assert!((12_000..32_000).contains(&first.port));
        again.change_port(7_777);
        assert_eq!((load(&dir).port, again.trouble()), (7_777, None));
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_identity_has_two_generations_from_the_first_write_on() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let id = joined(&dir).keys().identity.node_id();
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(16) {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(load(&dir).keys().identity.node_id(), id, "cut at {cut}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(load(&dir).keys().identity.node_id(), id);
    }

    #[test]
    fn machines_made_from_an_image_have_other_keys() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let id = |identity: Identity| identity.keys().identity.node_id();
        let original = id(joined(&dir));
        // Joined there, and its state was taken out of the image.
        assert_ne!(
            id(Identity::load(&dir, ELSEWHERE, false).unwrap()),
            original
        );
        // Refused or left, on the machine itself, and where nobody can tell.
        for machine in [HERE, None] {
            assert_eq!(id(Identity::load(&dir, machine, false).unwrap()), original);
        }
        // A member's whole disk was copied: the same node, and it knows that.
        let copy = Identity::load(&dir, ELSEWHERE, true).unwrap();
        assert!(copy.is_from_elsewhere());
        assert_eq!(id(copy), original);
        assert!(!load(&dir).is_from_elsewhere());
        // After new keys it is the machine that the node runs on.
        let mut copy = Identity::load(&dir, ELSEWHERE, true).unwrap();
        copy.prepare_rotation(false).unwrap();
        copy.complete_rotation().unwrap();
        assert!(!copy.is_from_elsewhere());
        assert!(load(&dir).is_from_elsewhere());
    }

    #[test]
    fn keys_of_a_meshd_that_made_them_at_its_start_count_for_members_alone() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut old = Identity::load(&dir, HERE, false).unwrap();
        old.save().unwrap();
        let id = old.keys().identity.node_id();
        // Exactly what such a meshd wrote.
        let mut document = Document::new(&dir, FILE, KIND, VERSION);
        let Loaded::Current(content) = document.load().unwrap() else {
            panic!("it was just written");
        };
        let (birth, content) = content.split_last().unwrap();
        assert_eq!(*birth, 0);
        document.store(content).unwrap();
        let aside = Identity::load(&dir, HERE, false).unwrap();
        assert_ne!(aside.keys().identity.node_id(), id);
        let member = load(&dir);
        assert_eq!(member.keys().identity.node_id(), id);
        // From then on it knows where it belongs.
        let copy = Identity::load(&dir, ELSEWHERE, true).unwrap();
        assert!(copy.is_from_elsewhere());
        // And what is written can be read by the older one: the same, and something behind it.
        let Loaded::Current(newer) = document.load().unwrap() else {
            panic!("it was just written");
        };
        assert!(newer.starts_with(content) && newer.len() > content.len());
    }

    #[test]
    fn keys_that_are_left_aside_leave_the_disk_with_the_join() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut image = Identity::load(&dir, ELSEWHERE, false).unwrap();
        image.keep().unwrap();
        let old = image.keys();
        joined(&dir);
        assert!(!on_disk(&dir, old.identity.seed().as_slice()));
        assert!(!on_disk(&dir, old.wireguard.to_bytes().as_slice()));
    }

    #[test]
    fn forgotten_keys_are_in_no_file() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut identity = joined(&dir);
        let old = identity.keys();
        identity.prepare_rotation(false).unwrap();
        let new = identity.forget().unwrap();
        assert_ne!(new.identity.node_id(), old.identity.node_id());
        assert!(!identity.is_kept());
        assert!(!on_disk(&dir, old.identity.seed().as_slice()));
        identity.keep().unwrap();
        assert!(on_disk(&dir, new.identity.seed().as_slice()));
    }

    #[test]
    fn keys_whose_files_were_taken_away_are_written_anew() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut fresh = Identity::load(&dir, None, false).unwrap();
        assert!(fresh.left().is_empty(), "no join, no files");
        let mut identity = joined(&dir);
        assert_eq!(identity.left().len(), 2);
        for taken in ["identity", "identity.previous", ""] {
            let path = dir.path().join(taken);
            fs::remove_file(&path)
                .or_else(|_| fs::remove_dir_all(&path))
                .unwrap();
            assert!(!identity.left().iter().all(Kept::stands));
            identity.restore();
            assert!(identity.left().iter().all(Kept::stands), "{taken}");
            assert_eq!(
                load(&dir).keys().identity.node_id(),
                identity.keys().identity.node_id()
            );
        }
        // What a rotation could not write because the folder was gone is written by the next look.
        fs::remove_dir_all(dir.path()).unwrap();
        fs::write(dir.path(), b"in the way").unwrap();
        assert!(identity.prepare_rotation(false).is_err());
        fs::remove_file(dir.path()).unwrap();
        assert_eq!(identity.left().len(), 2);
    }

    #[test]
    fn what_a_disk_refuses_is_owed_and_written_later() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let in_the_way = dir.path().join("identity.new/in-the-way");
        fs::create_dir_all(&in_the_way).unwrap();
        let mut identity = Identity::load(&dir, HERE, false).unwrap();
        assert!(identity.keep().is_err() && !identity.is_kept());
        fs::remove_dir_all(dir.path().join("identity.new")).unwrap();
        identity.keep().unwrap();
        fs::create_dir_all(&in_the_way).unwrap();
        identity.change_port(7_777);
        assert!(identity.trouble().is_some());
        assert_ne!(load(&dir).port, 7_777);
        fs::remove_dir_all(dir.path().join("identity.new")).unwrap();
        identity.try_again();
        assert_eq!((identity.trouble(), load(&dir).port), (None, 7_777));
    }

    #[test]
    fn a_machine_is_known_by_its_id_and_an_image_has_none() {
        let ids = [
            "0123456789abcdef0123456789abcdef\n",
            "00000000000000000000000000000001",
        ];
        assert_ne!(machine_of(ids[0]).unwrap(), machine_of(ids[1]).unwrap());
        assert_eq!(machine_of(ids[0]), machine_of(ids[0].trim()));
        for none in [
            "",
            "uninitialized\n",
            "0123",
            "not a number at all, not one bit",
        ] {
            assert_eq!(machine_of(none), None, "{none}");
        }
    }

    fn on_disk(dir: &StateDir, secret: &[u8]) -> bool {
        let files = fs::read_dir(dir.path()).unwrap();
        let mut contents = files.map(|file| fs::read(file.unwrap().path()).unwrap());
        contents.any(|bytes| bytes.windows(32).any(|window| window == secret))
    }

    #[test]
    fn changed_keys_are_on_disk_before_they_count_and_old_ones_leave_it() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        drop(joined(&dir));
        for identity in [false, true] {
            let mut before = load(&dir);
            let old = before.keys();
            let next = before.prepare_rotation(identity).unwrap();
            let mut again = load(&dir);
            assert_eq!(again.keys().wireguard.public(), old.wireguard.public());
            let kept = again.next().unwrap();
            assert_eq!(kept.wireguard.public(), next.wireguard.public());
            let stays = kept.identity.public() == old.identity.public();
            assert_eq!(stays, !identity);
            again.complete_rotation().unwrap();
            assert!(!on_disk(&dir, old.wireguard.to_bytes().as_slice()));
            assert!(!on_disk(&dir, old.probe.to_bytes().as_slice()));
            assert_eq!(on_disk(&dir, old.identity.seed().as_slice()), !identity);
            let after = load(&dir);
            assert!(after.next().is_none());
            assert_eq!(after.keys().wireguard.public(), next.wireguard.public());
        }
        let mut refused = load(&dir);
        let next = refused.prepare_rotation(true).unwrap();
        refused.discard_rotation();
        assert!(load(&dir).next().is_none(), "a start would go on with them");
        assert!(!on_disk(&dir, next.wireguard.to_bytes().as_slice()));
    }

    #[test]
    fn a_damaged_identity_is_never_replaced_by_a_new_one() {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        drop(joined(&dir));
        let path = dir.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        for name in [FILE, "identity.previous"] {
            fs::write(dir.path().join(name), &bytes[..40]).unwrap();
        }
        assert!(matches!(
            Identity::load(&dir, HERE, true),
            Err(StateError::Damaged { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), &bytes[..40]);
    }
}
