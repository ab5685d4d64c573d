//! What a planet must never forget, as records that are put and removed.

use ipnet::IpNet;
use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Departure, Leases,
};
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::{Name, NodeId, TokenId};
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::renewal::Renewed;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use serde::{Deserialize, Serialize};

/// How the books came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Made by the operator together with the planet's key: what isn't in them never was.
    Fresh,
    /// Made because they were missing although the planet had a key: everything was forgotten.
    Lost,
    /// Restored from a backup: whatever came after it was forgotten.
    Restored,
    /// Were [`Self::Lost`] or [`Self::Restored`]; the members have told all of it since.
    Relearned,
}

/// One durable fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// How the books came to be.
    Origin(Origin),
    /// The newest edition of the network.
    Network(Box<Signed<RootStatement>>),
    /// Anything else that the root said.
    Statement(Box<Signed<RootStatement>>),
    /// A token's use is spent.
    Use {
        /// The token.
        token: TokenId,
        /// Which of its uses.
        number: u32,
        /// By whom.
        node: NodeId,
    },
    /// A node was admitted, with leases.
    Admission(Box<Admission>),
    /// A node's claim was receipted.
    Claim(Box<ReceiptedClaim>),
    /// A node left by its own word.
    Departure(Signed<Departure>),
    /// A node's place was taken by another, by the root's word.
    Replaced {
        /// The former holder.
        former: NodeId,
        /// The present one.
        by: NodeId,
    },
    /// Receipt numbers that no membership bears any more and no receipt settles yet.
    Loose(Vec<(u64, u64)>),
    /// The operator said that everything up to this number is accounted for.
    Trusted(u64),
    /// A node's membership goes on, or its keys changed.
    Renewal(Box<Renewed>),
    /// What a node held that has left, was put out, or holds something else by now.
    FormerLease(Box<FormerLease>),
    /// Until then somebody may have been admitted, and have gone, of whom these books know nothing: another
    /// planet granted, or the books are younger. Nobody can say which uses of tokens that spent.
    UnknownUses(UnixSeconds),
}

/// What a node held and gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerLease {
    /// By whom.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// What a planet leased to it.
    pub leases: Leases,
    /// All that nobody else could have.
    pub prefixes: Vec<IpNet>,
    /// The later it was given up, the higher.
    pub order: u64,
}

/// An admission as the books keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// By the node and its token.
    pub application: Application,
    /// By a planet.
    pub receipt: Signed<AdmissionReceipt>,
}

/// A claim as the books keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptedClaim {
    /// By the node.
    pub claim: Signed<Claim>,
    /// By a planet.
    pub receipt: Signed<ClaimReceipt>,
}

/// Names a record: a second one of the same key takes the first one's place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RecordKey {
    /// Of [`Record::Origin`].
    Origin,
    /// Of [`Record::Network`].
    Network,
    /// Of [`Record::Statement`]: its hash.
    Statement([u8; 32]),
    /// Of [`Record::Use`].
    Use(TokenId, u32),
    /// Of [`Record::Admission`].
    Admission(NodeId),
    /// Of [`Record::Claim`].
    Claim(NodeId),
    /// Of [`Record::Departure`].
    Departure(NodeId),
    /// Of [`Record::Replaced`]: the former holder.
    Replaced(NodeId),
    /// Of [`Record::Loose`].
    Loose,
    /// Of [`Record::Trusted`].
    Trusted,
    /// Of [`Record::Renewal`].
    Renewal(NodeId),
    /// Of [`Record::FormerLease`].
    FormerLease(NodeId),
    /// Of [`Record::UnknownUses`].
    UnknownUses,
}

impl Record {
    /// The record's key.
    ///
    /// # Errors
    /// A signed part can't be read.
    pub fn key(&self) -> Result<RecordKey, CertificateError> {
        Ok(match self {
            Self::Origin(_) => RecordKey::Origin,
            Self::Network(_) => RecordKey::Network,
            Self::Statement(statement) => RecordKey::Statement(statement.hash()),
            Self::Use { token, number, .. } => RecordKey::Use(*token, *number),
            Self::Admission(admission) => {
                RecordKey::Admission(admission.receipt.unverified()?.node)
            }
            Self::Claim(claim) => RecordKey::Claim(claim.receipt.unverified()?.node),
            Self::Departure(departure) => RecordKey::Departure(departure.unverified()?.node),
            Self::Replaced { former, .. } => RecordKey::Replaced(*former),
            Self::Loose(_) => RecordKey::Loose,
            Self::Trusted(_) => RecordKey::Trusted,
            Self::Renewal(renewed) => RecordKey::Renewal(renewed.receipt.unverified()?.node),
            Self::FormerLease(former) => RecordKey::FormerLease(former.node),
            Self::UnknownUses(_) => RecordKey::UnknownUses,
        })
    }
}

/// The changes that put an edition of the network into books that hold the edition `known` so far, and the
/// time up to which uses are `unknown` to them. A planet doesn't learn from another one which tokens were used by
/// members that are gone.
///
/// # Errors
/// The statement describes no network.
pub fn edition(
    (known, unknown): (Option<&Network>, Option<UnixSeconds>),
    statement: &Signed<RootStatement>,
) -> Result<Vec<Change>, CertificateError> {
    let network = Network::from_statement(statement)?;
    let grants = |network: &Network| network.planets.first().map(|planet| planet.id);
    let another = match known {
        Some(known) => grants(known) != grants(&network),
        None => network.version > 1,
    };
    let until = unknown.map_or(network.issued, |until| until.max(network.issued));
    let unknown = another.then_some(Record::UnknownUses(until));
    let edition = Record::Network(Box::new(statement.clone()));
    Ok([edition]
        .into_iter()
        .chain(unknown)
        .map(Change::Put)
        .collect())
}

/// A change of the books, durable as soon as a store has committed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds or replaces.
    Put(Record),
    /// Takes away.
    Remove(RecordKey),
}
