//! Everything that the root said and that still counts, and how two parties find out with little talk
//! what of it the other lacks.
//!
//! Of several statements about one [`Subject`] one counts, whatever order they come in; the others are
//! let go. Two parties that hold many compare a [`Summary`]: statements fall into [`BUCKETS`] by the
//! first bits of their hash, each with a digest. Who finds other digests than its own says what it
//! holds in those buckets ([`Held`]), and who hears that tells what is missing there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, TokenId};
use crate::key::PublicKey;
use crate::network::{Network, RootStatement};
use crate::signed::Signed;
use crate::time::UnixSeconds;

/// Parts that all statements are compared in. A [`Summary`] fits one packet of any tunnel.
pub const BUCKETS: u8 = 128;

/// First bytes of a statement's hash: enough to tell statements of one root apart.
pub type ShortId = [u8; 8];

/// What a statement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The network itself; the highest version counts.
    Network,
    /// A node: put out, which is final, or called the rightful holder.
    Node(NodeId),
    /// A join token; its first revocation counts.
    Token(TokenId),
    /// An external peer; the latest word counts.
    External(PublicKey),
}

impl RootStatement {
    /// What this is about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        match self {
            Self::Network(_) => Subject::Network,
            Self::RevokeNode { node, .. } | Self::Resolve { node, .. } => Subject::Node(*node),
            Self::RevokeToken { token, .. } => Subject::Token(*token),
            Self::External(peer) => Subject::External(peer.wireguard),
            Self::RevokeExternal { wireguard, .. } => Subject::External(*wireguard),
        }
    }

    /// Of two statements about one subject the one with the greater weight counts.
    fn weight(&self) -> (u64, u64) {
        let later = self.issued().0;
        let earlier = u64::MAX - later;
        match self {
            Self::Network(network) => (network.version, later),
            Self::Resolve { .. } => (0, later),
            Self::RevokeNode { .. } => (1, earlier),
            Self::RevokeToken { .. } => (0, earlier),
            Self::External(_) => (later, 0),
            Self::RevokeExternal { .. } => (later, 1),
        }
    }
}

/// A statement that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// As the root signed it.
    pub signed: Signed<RootStatement>,
    /// What it says.
    pub said: RootStatement,
}

/// The statements of one root that count, but for the network itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statements {
    all: BTreeMap<[u8; 32], Kept>,
    subjects: BTreeMap<Subject, [u8; 32]>,
}

impl Statements {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them with their hashes, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8; 32], &Kept)> {
        self.all.iter()
    }

    /// The statement with this hash.
    #[must_use]
    pub fn get(&self, hash: &[u8; 32]) -> Option<&Kept> {
        self.all.get(hash)
    }

    /// The hash of the statement about `subject`.
    #[must_use]
    pub fn about(&self, subject: Subject) -> Option<&[u8; 32]> {
        self.subjects.get(&subject)
    }

    /// Whether a statement with this hash adds nothing: it is here, or another one about its subject
    /// counts.
    #[must_use]
    pub fn is_over(&self, hash: &[u8; 32], said: &RootStatement) -> bool {
        let present = self.subjects.get(&said.subject());
        let present = present.and_then(|hash| Some((hash, self.all.get(hash)?)));
        present.is_some_and(|(known, kept)| (kept.said.weight(), known) >= (said.weight(), hash))
    }

    /// The statement that says the opposite about the same subject, and counts: a node can't be right and
    /// out, and an external peer is in or out by the latest word.
    #[must_use]
    pub fn overtaken_by(&self, hash: &[u8; 32], said: &RootStatement) -> Option<&RootStatement> {
        let other = self.all.get(self.subjects.get(&said.subject())?)?;
        let opposite = std::mem::discriminant(&other.said) != std::mem::discriminant(said);
        (opposite && self.is_over(hash, said)).then_some(&other.said)
    }

    /// Keeps a verified statement, unless it [is over](Self::is_over); gives the hash of the one that it
    /// takes the place of.
    pub fn insert(
        &mut self,
        signed: Signed<RootStatement>,
        said: RootStatement,
    ) -> Option<[u8; 32]> {
        let hash = signed.hash();
        if self.is_over(&hash, &said) {
            return None;
        }
        let former = self.subjects.insert(said.subject(), hash);
        if let Some(former) = &former {
            self.all.remove(former);
        }
        self.all.insert(hash, Kept { signed, said });
        former
    }

    /// Lets go of a statement.
    pub fn remove(&mut self, hash: &[u8; 32]) {
        if let Some(kept) = self.all.remove(hash) {
            self.subjects.remove(&kept.said.subject());
        }
    }

    /// Revocations of tokens that are over, where `over_at` tells from when on a token's revocation
    /// changes nothing any more.
    pub fn spent(
        &self,
        over_at: &BTreeMap<TokenId, UnixSeconds>,
        now: UnixSeconds,
    ) -> Vec<[u8; 32]> {
        let over = over_at.iter().filter(|(_, at)| **at < now);
        let held = over.filter_map(|(token, _)| self.subjects.get(&Subject::Token(*token)));
        held.copied().collect()
    }

    /// What to compare with another party; `edition` is that of the network that is known.
    #[must_use]
    pub fn summary(&self, edition: Edition) -> Summary {
        let mut buckets = vec![ShortId::default(); usize::from(BUCKETS)];
        for hash in self.all.keys() {
            if let Some(digest) = buckets.get_mut(usize::from(bucket_of(hash))) {
                digest
                    .iter_mut()
                    .zip(short(hash))
                    .for_each(|(sum, byte)| *sum ^= byte);
            }
        }
        Summary { edition, buckets }
    }

    /// The buckets in which the other party holds something else.
    #[must_use]
    pub fn differing(&self, other: &Summary) -> Vec<u8> {
        let mine = self.summary(Edition::default());
        (0..BUCKETS)
            .filter(|bucket| mine.digest(*bucket) != other.digest(*bucket))
            .collect()
    }

    /// Whether `other` has the same in the bucket in which a statement with this hash is held here.
    #[must_use]
    pub fn agrees_on(&self, hash: &[u8; 32], other: &Summary) -> bool {
        let bucket = bucket_of(hash);
        let mine = self.summary(Edition::default());
        self.all.contains_key(hash) && mine.digest(bucket) == other.digest(bucket)
    }

    /// What is held in a bucket.
    #[must_use]
    pub fn held(&self, bucket: u8) -> Held {
        let ids = self
            .all
            .range(range_of(bucket))
            .map(|(hash, _)| short(hash));
        Held {
            bucket,
            ids: ids.collect(),
        }
    }

    /// Hashes of what the other party lacks in a bucket.
    #[must_use]
    pub fn missing(&self, held: &Held) -> Vec<[u8; 32]> {
        let there: BTreeSet<&ShortId> = held.ids.iter().collect();
        self.all
            .range(range_of(held.bucket))
            .map(|(hash, _)| *hash)
            .filter(|hash| !there.contains(&short(hash)))
            .collect()
    }

    /// Whether the other party holds something in a bucket that is not here.
    #[must_use]
    pub fn lacks_of(&self, held: &Held) -> bool {
        let mine = self.all.range(range_of(held.bucket));
        let mine: BTreeSet<ShortId> = mine.map(|(hash, _)| short(hash)).collect();
        held.ids.iter().any(|id| !mine.contains(id))
    }
}

/// Which document of the network a party knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Edition {
    /// Its version.
    pub version: u64,
    /// First bytes of its hash: the root may have signed two of one version.
    pub document: ShortId,
}

impl Edition {
    /// That of a network, as its root signed it.
    #[must_use]
    pub fn of(network: &Network, signed: &Signed<RootStatement>) -> Self {
        Self {
            version: network.version,
            document: short(&signed.hash()),
        }
    }

    /// Whether who knows `other` has something to learn from this one: it is newer, or another one of the
    /// same version.
    #[must_use]
    pub fn is_news_to(&self, other: &Self) -> bool {
        self.version > other.version
            || (self.version == other.version && self.document != other.document)
    }
}

/// One digest per bucket of what a party holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Edition of the network that the party knows.
    pub edition: Edition,
    buckets: Vec<ShortId>,
}

impl Summary {
    /// Who names fewer buckets than there are holds nothing in the others.
    fn digest(&self, bucket: u8) -> ShortId {
        let digest = self.buckets.get(usize::from(bucket));
        digest.copied().unwrap_or_default()
    }
}

/// What a party holds in one bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The bucket, below [`BUCKETS`].
    pub bucket: u8,
    /// All of it.
    pub ids: Vec<ShortId>,
}

impl Held {
    /// Bytes of one that names `ids` statements, at most.
    #[must_use]
    pub fn length_of(ids: usize) -> usize {
        ids.saturating_mul(size_of::<ShortId>()).saturating_add(8)
    }
}

/// Bytes of statements, or of what is held, in one message between node and planet: below
/// [`MAX_MESSAGE`](crate::limits::MAX_MESSAGE) by a good margin.
pub const PORTION: usize = 44 * 1024;

/// Lists in messages of a bearable length.
pub fn portions(held: impl IntoIterator<Item = Held>) -> Vec<Vec<Held>> {
    let mut portions: Vec<Vec<Held>> = Vec::new();
    let mut room = 0;
    for held in held {
        let length = Held::length_of(held.ids.len());
        match portions.last_mut() {
            Some(last) if length <= room => last.push(held),
            _ => {
                portions.push(vec![held]);
                room = PORTION;
            }
        }
        room = room.saturating_sub(length);
    }
    portions
}

fn bucket_of(hash: &[u8; 32]) -> u8 {
    hash.first().map_or(0, |byte| byte >> 1)
}

fn range_of(bucket: u8) -> RangeInclusive<[u8; 32]> {
    let (mut first, mut last) = ([0; 32], [0xff; 32]);
    let bits = bucket.min(BUCKETS - 1) << 1;
    (first[0], last[0]) = (bits, bits | 1);
    first..=last
}

fn short(hash: &[u8; 32]) -> ShortId {
    let mut id = ShortId::default();
    id.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NetworkId;
    use crate::key::SigningKey;
    use crate::network::ExternalPeer;

    const NETWORK: NetworkId = NetworkId([1; 16]);

    fn sign(said: RootStatement) -> (Signed<RootStatement>, RootStatement) {
        let root = SigningKey::from_seed([7; 32]);
        (Signed::seal(&said, &root).unwrap(), said)
    }

    fn revoke(number: u32, issued: u64) -> (Signed<RootStatement>, RootStatement) {
        let mut node = [0; 32];
        node[..4].copy_from_slice(&number.to_le_bytes());
        sign(RootStatement::RevokeNode {
            network: NETWORK,
            node: NodeId(node),
            issued: UnixSeconds(issued),
        })
    }

    fn resolve(issued: u64) -> (Signed<RootStatement>, RootStatement) {
        sign(RootStatement::Resolve {
            network: NETWORK,
            node: NodeId([0; 32]),
            issued: UnixSeconds(issued),
        })
    }

    fn token(issued: u64) -> (Signed<RootStatement>, RootStatement) {
        sign(RootStatement::RevokeToken {
            network: NETWORK,
            token: TokenId([3; 16]),
            issued: UnixSeconds(issued),
        })
    }

    fn external(name: &str, issued: u64) -> (Signed<RootStatement>, RootStatement) {
        sign(RootStatement::External(ExternalPeer {
            network: NETWORK,
            name: name.parse().unwrap(),
            wireguard: PublicKey([9; 32]),
            prefixes: Vec::new(),
            endpoint: None,
            issued: UnixSeconds(issued),
        }))
    }

    fn no_external(issued: u64) -> (Signed<RootStatement>, RootStatement) {
        sign(RootStatement::RevokeExternal {
            network: NETWORK,
            wireguard: PublicKey([9; 32]),
            issued: UnixSeconds(issued),
        })
    }

    #[test]
    fn of_each_subject_one_statement_counts_in_whatever_order_they_come() {
        let sets = [
            (
                vec![revoke(0, 5), revoke(0, 9), resolve(7), resolve(99)],
                revoke(0, 5),
            ),
            (vec![token(8), token(3), token(5)], token(3)),
            (
                vec![external("a", 4), no_external(4), external("b", 3)],
                no_external(4),
            ),
            (
                vec![no_external(4), external("a", 6), no_external(5)],
                external("a", 6),
            ),
        ];
        for (said, counts) in sets {
            for turn in 0..said.len() {
                for backwards in [false, true] {
                    let mut order = said.clone();
                    order.rotate_left(turn);
                    if backwards {
                        order.reverse();
                    }
                    let mut set = Statements::default();
                    for (signed, said) in order {
                        set.insert(signed, said);
                    }
                    assert_eq!(set.len(), 1);
                    assert_eq!(set.iter().next().unwrap().1.said, counts.1);
                }
            }
        }
        // Said twice in one second, the same one counts everywhere.
        let (a, b) = (external("a", 4), external("b", 4));
        let mut sets = [Statements::default(), Statements::default()];
        for (signed, said) in [a.clone(), b.clone()] {
            sets[0].insert(signed, said);
        }
        for (signed, said) in [b, a] {
            sets[1].insert(signed, said);
        }
        assert_eq!(sets[0], sets[1]);
    }

    #[test]
    fn two_parties_find_what_the_other_lacks_by_talking_of_little_else() {
        let (mut here, mut there) = (Statements::default(), Statements::default());
        for number in 0..3_000 {
            let (signed, said) = revoke(number, 1);
            if number % 1_000 != 7 {
                here.insert(signed.clone(), said.clone());
            }
            if number % 1_000 != 8 {
                there.insert(signed, said);
            }
        }
        let differing = here.differing(&there.summary(Edition::default()));
        assert!((2..=6).contains(&differing.len()), "{differing:?}");
        let tell = |from: &Statements, to: &mut Statements, buckets: &[u8]| {
            let mut told = 0;
            for bucket in buckets {
                for hash in from.missing(&to.held(*bucket)) {
                    let kept = from.get(&hash).unwrap().clone();
                    to.insert(kept.signed, kept.said);
                    told += 1;
                }
            }
            told
        };
        assert!(differing.iter().any(|it| here.lacks_of(&there.held(*it))));
        assert_eq!(tell(&there, &mut here, &differing), 3);
        assert_eq!(tell(&here, &mut there, &differing), 3);
        assert_eq!(here, there);
        assert_eq!(
            here.differing(&there.summary(Edition::default())),
            Vec::<u8>::new()
        );
        assert!(!differing.iter().any(|it| here.lacks_of(&there.held(*it))));
    }

    #[test]
    fn an_edition_is_news_to_who_has_an_older_or_another_one() {
        let edition = |version, byte| Edition {
            version,
            document: [byte; 8],
        };
        assert!(edition(2, 1).is_news_to(&edition(1, 1)));
        assert!(edition(2, 1).is_news_to(&edition(2, 2)));
        assert!(edition(2, 2).is_news_to(&edition(2, 1)));
        assert!(!edition(2, 1).is_news_to(&edition(2, 1)));
        assert!(!edition(2, 1).is_news_to(&edition(3, 2)));
    }

    #[test]
    fn a_word_that_changes_nothing_is_told_from_one_that_is_known() {
        let overtaken = |first: (Signed<RootStatement>, RootStatement),
                         second: (Signed<RootStatement>, RootStatement)| {
            let mut set = Statements::default();
            set.insert(first.0, first.1);
            set.overtaken_by(&second.0.hash(), &second.1).is_some()
        };
        assert!(overtaken(revoke(0, 5), resolve(9)), "out is out");
        assert!(!overtaken(revoke(0, 5), revoke(0, 9)), "known");
        assert!(!overtaken(resolve(5), revoke(0, 9)));
        assert!(!overtaken(resolve(9), resolve(5)));
        assert!(!overtaken(revoke(1, 5), resolve(9)), "another node");
    }

    #[test]
    fn nonsense_about_buckets_harms_nobody() {
        let mut set = Statements::default();
        let (signed, said) = revoke(1, 1);
        set.insert(signed, said);
        let short = Summary {
            edition: Edition::default(),
            buckets: vec![[1; 8]; 2],
        };
        assert!((1..=3).contains(&set.differing(&short).len()));
        let long = Summary {
            edition: Edition::default(),
            buckets: vec![[0; 8]; 400],
        };
        assert_eq!(set.differing(&long).len(), 1);
        let beyond = Held {
            bucket: 255,
            ids: vec![[1; 8]],
        };
        assert!(set.lacks_of(&beyond));
        assert!(set.missing(&beyond).len() <= 1);
    }
}
