//! What a planet must never forget, as it stands in memory.
//!
//! The same [`Change`]s that a store keeps on disk are what changes the books, so that a planet that
//! starts holds exactly what a planet that stopped had committed.

mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use podmesh_proto::certificate::{Departure, Leases, Member, Membership};
use podmesh_proto::error::CertificateError;
use podmesh_proto::frame;
use podmesh_proto::id::{Name, NodeId, TokenId};
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::Statements;
use podmesh_proto::time::UnixSeconds;

pub use self::entry::Entry;
use crate::rules::externals::Externals;
use crate::rules::numbers::Numbers;
use crate::rules::records::{
    Admission, Change, FormerLease, Origin, ReceiptedClaim, Record, RecordKey,
};

/// Seconds for which the revocation of a token is kept beyond the token's end: who lets go of it by a
/// clock that is ahead is told it again by everybody else.
const TOKEN_AFTERLIFE: u64 = 30 * 24 * 3_600;

/// Everything durable. What is large is shared with a clone until one of the two changes it.
#[derive(Debug, Clone)]
pub struct Books {
    /// How they came to be.
    pub origin: Origin,
    /// The network.
    pub network: Network,
    /// The same, signed.
    pub network_statement: Signed<RootStatement>,
    entries: BTreeMap<NodeId, Arc<Entry>>,
    uses: BTreeMap<TokenId, BTreeMap<u32, NodeId>>,
    statements: Arc<Statements>,
    departures: Arc<BTreeMap<NodeId, Signed<Departure>>>,
    replaced: BTreeMap<NodeId, NodeId>,
    revoked_nodes: BTreeSet<NodeId>,
    revoked_tokens: BTreeMap<TokenId, UnixSeconds>,
    resolved: BTreeSet<NodeId>,
    pub(super) externals: Arc<Externals>,
    pub(super) former: Arc<BTreeMap<NodeId, FormerLease>>,
    loose: Vec<(u64, u64)>,
    trusted: u64,
    unknown_uses: Option<UnixSeconds>,
    /// Statements that were put and don't count, since this was asked last.
    outdated: Vec<[u8; 32]>,
}

impl Books {
    /// Empty books of a network.
    ///
    /// # Errors
    /// The statement is not signed by the root of the network that it describes.
    pub fn new(network: Signed<RootStatement>, origin: Origin) -> Result<Self, CertificateError> {
        Ok(Self {
            origin,
            network: Network::from_statement(&network)?,
            network_statement: network,
            entries: BTreeMap::new(),
            uses: BTreeMap::new(),
            statements: Arc::default(),
            departures: Arc::default(),
            replaced: BTreeMap::new(),
            revoked_nodes: BTreeSet::new(),
            revoked_tokens: BTreeMap::new(),
            resolved: BTreeSet::new(),
            externals: Arc::default(),
            former: Arc::default(),
            loose: Vec::new(),
            trusted: 0,
            unknown_uses: None,
            outdated: Vec::new(),
        })
    }

    /// Books as a store gives them back, in any order.
    ///
    /// # Errors
    /// There is no network among the records, or a record can't be read.
    pub fn from_records(records: Vec<Record>) -> Result<Self, CertificateError> {
        let origin = records.iter().find_map(|record| match record {
            Record::Origin(origin) => Some(*origin),
            _ => None,
        });
        let network = records.iter().find_map(|record| match record {
            Record::Network(network) => Some(network.as_ref().clone()),
            _ => None,
        });
        let network = network.ok_or(CertificateError::Mismatch {
            document: "store",
            field: "network",
        })?;
        let mut books = Self::new(network, origin.unwrap_or(Origin::Lost))?;
        // Claims need their admission, and both are judged by what the root said.
        let mut records = records;
        records.sort_by_key(|record| match record {
            Record::Claim(_) | Record::Renewal(_) => 2,
            Record::Admission(_) => 1,
            _ => 0,
        });
        for record in records {
            books.apply(&Change::Put(record))?;
        }
        Ok(books)
    }

    /// Applies one change.
    ///
    /// # Errors
    /// A signed part can't be read; nothing is changed then.
    pub fn apply(&mut self, change: &Change) -> Result<(), CertificateError> {
        match change {
            Change::Put(record) => self.put(record),
            Change::Remove(key) => {
                self.remove(key);
                Ok(())
            }
        }
    }

    /// Every node, members and those that have yet to claim.
    pub fn entries(&self) -> impl Iterator<Item = (&NodeId, &Entry)> {
        let entries = self.entries.iter();
        entries.map(|(node, entry)| (node, entry.as_ref()))
    }

    /// What the books say about `node`.
    #[must_use]
    pub fn entry(&self, node: &NodeId) -> Option<&Entry> {
        self.entries.get(node).map(Arc::as_ref)
    }

    /// The entry of the node that a membership says it is of, whoever signed it.
    #[must_use]
    pub fn entry_of(&self, membership: &Membership) -> Option<&Entry> {
        let node = membership.receipt.unverified().ok()?.node;
        self.entry(&node)
    }

    /// The member `node`, if it is one at `now`.
    #[must_use]
    pub fn member(&self, node: &NodeId, now: UnixSeconds) -> Option<&Member> {
        let member = self.entries.get(node)?.member.as_ref()?;
        let expired = member
            .expires
            .is_some_and(|at| now > at.plus(podmesh_proto::limits::CLOCK_SKEW));
        (!expired && !self.is_out(node)).then_some(member)
    }

    /// Whether the root put `node` out: revoked, or replaced by another.
    #[must_use]
    pub fn is_out(&self, node: &NodeId) -> bool {
        self.revoked_nodes.contains(node) || self.replaced.contains_key(node)
    }

    /// Who has the place of `node` by the root's word.
    #[must_use]
    pub fn replaced_by(&self, node: &NodeId) -> Option<&NodeId> {
        self.replaced.get(node)
    }

    /// Whether the root revoked `token`.
    #[must_use]
    pub fn is_revoked(&self, token: &TokenId) -> bool {
        self.revoked_tokens.contains_key(token)
    }

    /// When the root revoked `token`; said more than once, the earliest counts.
    #[must_use]
    pub fn revoked_at(&self, token: &TokenId) -> Option<UnixSeconds> {
        self.revoked_tokens.get(token).copied()
    }

    /// Whether the root called `node` the rightful holder of what it claims.
    #[must_use]
    pub fn is_resolved(&self, node: &NodeId) -> bool {
        self.resolved.contains(node)
    }

    /// The uses of `token` that are spent.
    #[must_use]
    pub fn spent(&self, token: &TokenId) -> Option<&BTreeMap<u32, NodeId>> {
        self.uses.get(token)
    }

    /// How many uses of each join token are spent.
    pub fn uses(&self) -> impl Iterator<Item = (&TokenId, usize)> {
        self.uses.iter().map(|(token, spent)| (token, spent.len()))
    }

    /// What the root said and still counts, but for the network itself.
    #[must_use]
    pub fn statements(&self) -> &Statements {
        &self.statements
    }

    /// The departure of `node`.
    #[must_use]
    pub fn departure(&self, node: &NodeId) -> Option<&Signed<Departure>> {
        self.departures.get(node)
    }

    /// All departures.
    pub fn departures(&self) -> impl Iterator<Item = &NodeId> {
        self.departures.keys()
    }

    /// Takes the changes that let go, on disk too, of statements whose place others have taken.
    pub fn take_outdated(&mut self) -> Vec<Change> {
        let outdated = std::mem::take(&mut self.outdated).into_iter();
        let over = outdated.filter(|hash| self.statements.get(hash).is_none());
        over.map(|hash| Change::Remove(RecordKey::Statement(hash)))
            .collect()
    }

    /// Revocations of tokens that admit nobody any more, whoever forgets that they were revoked: the
    /// grant ended 30 days ago, and the memberships that it gave have no end, so that none
    /// of them asks to be prolonged. Where they end, the revocation keeps them from going on.
    #[must_use]
    pub fn spent_revocations(&self, now: UnixSeconds) -> Vec<Change> {
        let grants = self.entries.values().map(|entry| &entry.grant);
        let endless = grants.filter(|grant| grant.membership.is_none());
        let over_at = endless
            .map(|grant| (grant.token, grant.expires.plus(TOKEN_AFTERLIFE)))
            .collect();
        let spent = self.statements.spent(&over_at, now).into_iter();
        spent
            .map(|hash| Change::Remove(RecordKey::Statement(hash)))
            .collect()
    }

    /// Until when somebody may have been admitted, and have gone, of whom these books know nothing.
    #[must_use]
    pub fn unknown_uses(&self) -> Option<UnixSeconds> {
        self.unknown_uses
    }

    /// The change that says so up to `until`.
    #[must_use]
    pub fn unknown_until(&self, until: UnixSeconds) -> Change {
        let known = self.unknown_uses.unwrap_or(until);
        Change::Put(Record::UnknownUses(known.max(until)))
    }

    /// Says so up to `until`, and returns the change to be made durable.
    pub fn set_unknown_until(&mut self, until: UnixSeconds) -> Change {
        self.unknown_uses = self.unknown_uses.max(Some(until));
        self.unknown_until(until)
    }

    /// Receipt numbers of which the books know what became.
    #[must_use]
    pub fn accounted(&self) -> Numbers {
        let mut numbers = self.borne();
        numbers.add(1, self.trusted);
        numbers
    }

    /// The highest receipt number that a planet is known to have given: a document bears or settles it,
    /// or did before its node went.
    #[must_use]
    pub fn shown(&self) -> u64 {
        self.borne().highest()
    }

    fn borne(&self) -> Numbers {
        let mut numbers = Numbers::default();
        numbers.add_all(self.loose.iter().copied());
        for entry in self.entries.values() {
            numbers.add_all(entry.numbers());
        }
        numbers
    }

    /// Receipt numbers that no receipt settles yet.
    #[must_use]
    pub fn loose(&self) -> &[(u64, u64)] {
        &self.loose
    }

    /// The change that adds `numbers` to them.
    pub fn loosen(&self, numbers: impl IntoIterator<Item = (u64, u64)>) -> Change {
        let mut loose = Numbers::default();
        loose.add_all(self.loose.iter().copied());
        loose.add_all(numbers);
        Change::Put(Record::Loose(loose.ranges().collect()))
    }

    /// Everything that is leased or claimed by others than `except`, and external peers' prefixes.
    pub fn taken<'a>(
        &'a self,
        except: impl Fn(&NodeId) -> bool + 'a,
    ) -> impl Iterator<Item = (Holder<'a>, IpNet)> + 'a {
        let nodes = self
            .entries
            .iter()
            .filter(move |(node, _)| !except(node) && !self.is_out(node))
            .flat_map(|(node, entry)| {
                let holder = Holder::Node(node, &entry.certificate.name);
                entry.prefixes().map(move |prefix| (holder, prefix))
            });
        let externals = self.externals().flat_map(|peer| {
            let holder = Holder::External(&peer.name);
            peer.prefixes.iter().map(move |prefix| (holder, *prefix))
        });
        nodes.chain(externals)
    }

    /// Leases of `node`.
    #[must_use]
    pub fn leases(&self, node: &NodeId) -> Option<&Leases> {
        self.entries.get(node).map(|entry| &entry.receipt.leases)
    }

    fn put(&mut self, record: &Record) -> Result<(), CertificateError> {
        match record {
            Record::Origin(origin) => self.origin = *origin,
            Record::Network(statement) => {
                self.network = Network::from_statement(statement)?;
                self.network_statement = statement.as_ref().clone();
                let nodes: Vec<NodeId> = self.entries.keys().copied().collect();
                nodes.iter().for_each(|node| self.judge(node));
            }
            Record::Statement(statement) => {
                let (hash, said) = (statement.hash(), self.network.verify(statement)?);
                if self.statements.is_over(&hash, &said) {
                    self.outdated.push(hash);
                    return Ok(());
                }
                self.listen(&said);
                let statements = Arc::make_mut(&mut self.statements);
                self.outdated
                    .extend(statements.insert(statement.as_ref().clone(), said));
            }
            Record::Use {
                token,
                number,
                node,
            } => {
                self.uses.entry(*token).or_default().insert(*number, *node);
            }
            Record::Admission(admission) => self.admit(admission)?,
            Record::Claim(claim) => self.claim(claim)?,
            Record::Departure(departure) => {
                let node = departure.unverified()?.node;
                Arc::make_mut(&mut self.departures).insert(node, departure.clone());
            }
            Record::Replaced { former, by } => {
                self.replaced.insert(*former, *by);
                self.recall_externals();
            }
            Record::Loose(numbers) => self.loose.clone_from(numbers),
            Record::Trusted(number) => self.trusted = *number,
            Record::UnknownUses(until) => self.unknown_uses = Some(*until),
            Record::Renewal(renewed) => {
                let node = renewed.receipt.unverified()?.node;
                if let Some(entry) = self.entry_mut(&node) {
                    entry.renewed = Some(renewed.clone());
                }
                self.judge(&node);
            }
            Record::FormerLease(former) => {
                Arc::make_mut(&mut self.former).insert(former.node, former.as_ref().clone());
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        match key {
            RecordKey::Statement(hash) => {
                Arc::make_mut(&mut self.statements).remove(hash);
            }
            RecordKey::Use(token, number) => {
                if let Some(uses) = self.uses.get_mut(token) {
                    uses.remove(number);
                }
            }
            RecordKey::Admission(node) => {
                self.entries.remove(node);
                self.recall_externals();
            }
            RecordKey::Claim(node) => {
                if let Some(entry) = self.entry_mut(node) {
                    entry.claim = None;
                    entry.member = None;
                }
                self.recall_externals();
            }
            RecordKey::Departure(node) => {
                Arc::make_mut(&mut self.departures).remove(node);
            }
            RecordKey::Replaced(node) => {
                self.replaced.remove(node);
            }
            RecordKey::Loose => self.loose.clear(),
            RecordKey::Trusted => self.trusted = 0,
            RecordKey::UnknownUses => self.unknown_uses = None,
            RecordKey::Renewal(node) => {
                if let Some(entry) = self.entry_mut(node) {
                    entry.renewed = None;
                }
                self.judge(node);
            }
            RecordKey::FormerLease(node) => {
                Arc::make_mut(&mut self.former).remove(node);
            }
            RecordKey::Origin | RecordKey::Network => {}
        }
    }

    fn admit(&mut self, admission: &Admission) -> Result<(), CertificateError> {
        let receipt = admission.receipt.unverified()?;
        let node = receipt.node;
        let former = self.entries.remove(&node);
        let certificate = |entry: &Arc<Entry>| entry.receipt.certificate;
        let goes_on = former.as_ref().map(certificate) == Some(receipt.certificate);
        let renewed = former.as_ref().filter(|_| goes_on);
        let entry = Entry {
            renewed: renewed.and_then(|entry| entry.renewed.clone()),
            admission: admission.clone(),
            grant: admission.application.grant.unverified()?,
            certificate: admission.application.certificate.unverified()?,
            receipt,
            claim: former.and_then(|entry| entry.claim.clone()),
            member: None,
            length: 0,
        };
        self.entries.insert(node, Arc::new(entry));
        self.judge(&node);
        Ok(())
    }

    fn claim(&mut self, kept: &ReceiptedClaim) -> Result<(), CertificateError> {
        let (claim, receipt) = (kept.claim.unverified()?, kept.receipt.unverified()?);
        let node = receipt.node;
        if let Some(entry) = self.entry_mut(&node) {
            entry.claim = Some((kept.clone(), claim, receipt));
        }
        self.judge(&node);
        Ok(())
    }

    fn entry_mut(&mut self, node: &NodeId) -> Option<&mut Entry> {
        self.entries.get_mut(node).map(Arc::make_mut)
    }

    /// Decides anew whether `node` is a member: a chain that doesn't hold (any more) is kept, so that
    /// its leases stay taken, but is shown to nobody.
    fn judge(&mut self, node: &NodeId) {
        let Some(entry) = self.entries.get_mut(node).map(Arc::make_mut) else {
            return;
        };
        // Expiry is judged at each use, by the clock of that moment.
        let Some(chain) = entry.membership() else {
            self.judge_externals_beside(node);
            return;
        };
        entry.length = frame::encode(&chain, "membership").map_or(usize::MAX, |bytes| bytes.len());
        entry.member = chain.prove(&self.network).ok();
        self.judge_externals_beside(node);
    }

    /// Takes to heart what counts from here on.
    fn listen(&mut self, said: &RootStatement) {
        match said {
            RootStatement::Network(_) => {}
            RootStatement::RevokeNode { node, .. } => {
                self.revoked_nodes.insert(*node);
                self.recall_externals();
            }
            RootStatement::RevokeToken { token, issued, .. } => {
                let earliest = self.revoked_tokens.entry(*token).or_insert(*issued);
                *earliest = (*earliest).min(*issued);
            }
            RootStatement::Resolve { node, .. } => {
                self.resolved.insert(*node);
            }
            RootStatement::External(peer) => {
                Arc::make_mut(&mut self.externals)
                    .all
                    .insert(peer.wireguard, peer.clone());
                self.judge_external(&peer.wireguard);
            }
            RootStatement::RevokeExternal { wireguard, .. } => {
                Arc::make_mut(&mut self.externals).all.remove(wireguard);
                self.judge_external(wireguard);
            }
        }
    }
}

/// Who has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder<'a> {
    /// A node.
    Node(&'a NodeId, &'a Name),
    /// An external peer.
    External(&'a Name),
}

impl std::fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(_, name) => write!(f, "node {name}"),
            Self::External(name) => write!(f, "external peer {name}"),
        }
    }
}
