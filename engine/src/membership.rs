//! Who is in the network, as far as this node can prove it.
//!
//! A membership is verified link by link before it is looked at. The first verified holder of a name,
//! key, token use or address range is pinned, also on disk: a later one that wants the same is
//! quarantined and named, and the holder notices nothing. Where this node knew neither of two that
//! collide (both arrive in one *batch*), it routes to neither until the root decides. Planets can't
//! take anything away: members go by the root's revocation, by their own signed departure, or when
//! their certificate expires. Of one node the newest state counts, and it can't be undone: older ones,
//! former identities and second successors of one document are refused.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use podmesh_proto::certificate::{Member, Membership};
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::{NodeId, PlanetId, TokenId};
use podmesh_proto::key::{PublicKey, VerifyingKey};
use podmesh_proto::limits::CLOCK_SKEW;
use podmesh_proto::network::{ExternalPeer, Network, RootStatement};
use podmesh_proto::renewal::Standing;
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{Kept, Statements};
use podmesh_proto::time::UnixSeconds;

mod departures;
mod externals;
pub mod holdings;
mod late;
pub mod lies;
mod quarantine;
mod records;
mod root;
mod untimely;

pub use self::departures::Parting;
use self::departures::{Departed, Stranger};
use self::externals::Externals;
use self::holdings::{Holdings, MemberId, of_member};
pub use self::late::Better;
use self::lies::{Lie, Lies, Newer, Source, may_be_late};
use self::quarantine::Quarantine;
use self::untimely::Untimely;
use crate::mutation::{self, Mutant};

/// Everything that this node believes about its network.
pub struct Members {
    network: Network,
    network_statement: Signed<RootStatement>,
    own: NodeId,
    known: BTreeMap<NodeId, Known>,
    externals: Externals,
    holdings: Holdings,
    quarantine: Quarantine,
    revoked: BTreeMap<NodeId, UnixSeconds>,
    revoked_tokens: BTreeMap<TokenId, UnixSeconds>,
    resolved: BTreeMap<NodeId, UnixSeconds>,
    departed: BTreeMap<NodeId, Departed>,
    statements: Statements,
    /// Departures of nodes that were never seen here, by the word of members.
    strangers: BTreeMap<NodeId, Stranger>,
    /// Departures that were taken.
    partings: u64,
    expiries: BTreeSet<(UnixSeconds, NodeId)>,
    /// Those that are over.
    ended: BTreeSet<(UnixSeconds, NodeId)>,
    lies: Lies,
    /// Planets that have shown the present edition of the network on this connection.
    up_to_date: BTreeSet<PlanetId>,
    untimely: Untimely,
    batch: u64,
    changed: BTreeSet<MemberId>,
    sequence: u64,
}

/// A pinned member.
#[derive(Debug, Clone)]
pub struct Known {
    /// What its membership proves.
    pub member: Arc<Member>,
    /// The membership.
    pub membership: Arc<Membership>,
    /// Past its certificate's time: still the holder, but not routed to.
    pub expired: bool,
    batch: u64,
}

/// What became of a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// Known, in the same or a newer form.
    Same,
    /// News.
    New,
    /// Not believed, or not routed to.
    Refused,
}

impl Members {
    /// The members of a network of which only the network itself is known.
    #[must_use]
    pub fn new(network: Network, network_statement: Signed<RootStatement>, own: NodeId) -> Self {
        Self {
            network,
            network_statement,
            own,
            known: BTreeMap::new(),
            externals: Externals::default(),
            holdings: Holdings::default(),
            quarantine: Quarantine::default(),
            revoked: BTreeMap::new(),
            revoked_tokens: BTreeMap::new(),
            resolved: BTreeMap::new(),
            departed: BTreeMap::new(),
            statements: Statements::default(),
            strangers: BTreeMap::new(),
            partings: 0,
            expiries: BTreeSet::new(),
            ended: BTreeSet::new(),
            lies: Lies::default(),
            up_to_date: BTreeSet::new(),
            untimely: Untimely::default(),
            batch: 0,
            changed: BTreeSet::new(),
            sequence: 0,
        }
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network as its root signed it.
    #[must_use]
    pub fn network_statement(&self) -> &Signed<RootStatement> {
        &self.network_statement
    }

    /// This node itself, once it is a member.
    #[must_use]
    pub fn own(&self) -> Option<&Known> {
        self.known.get(&self.own)
    }

    /// The holder with this id, expired or not.
    #[must_use]
    pub fn known(&self, node: &NodeId) -> Option<&Known> {
        self.known.get(node)
    }

    /// All holders, this node too.
    pub fn all(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// The holders from an id on, in the order of ids.
    pub fn range(&self, from: Bound<NodeId>) -> impl Iterator<Item = &Known> {
        self.known
            .range((from, Bound::Unbounded))
            .map(|(_, known)| known)
    }

    /// The external peers that are routed to.
    pub fn externals(&self) -> impl Iterator<Item = &ExternalPeer> {
        self.externals.known.values().map(|(peer, _)| peer)
    }

    /// The external peer with this key.
    #[must_use]
    pub fn external(&self, key: &PublicKey) -> Option<&ExternalPeer> {
        self.externals.get(key)
    }

    /// The members that are not routed to, each with the reason.
    pub fn quarantined(&self) -> impl Iterator<Item = (&Member, &str)> {
        self.quarantine.nodes()
    }

    /// The member with this id that is not routed to, because it collides with another.
    #[must_use]
    pub fn kept_apart(&self, node: &NodeId) -> Option<&Arc<Member>> {
        self.quarantine.member(node)
    }

    /// The indexes of what is held by whom.
    #[must_use]
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// What was said that doesn't hold.
    pub fn lies(&self) -> &Lies {
        &self.lies
    }

    /// Notes something that doesn't hold and was found elsewhere.
    pub fn note(&mut self, lie: Lie, source: Source, told: (String, String), now: UnixSeconds) {
        self.lies.note(lie, source, told, now);
    }

    /// The planets whose word was not believed because of the time, and would be at this one; each is
    /// given once.
    pub fn take_timely(&mut self, now: UnixSeconds) -> Vec<PlanetId> {
        if mutation::is(Mutant::UntimelyForgotten) {
            return Vec::new();
        }
        self.untimely.take(now)
    }

    /// Whether the root has put this node out.
    #[must_use]
    pub fn is_revoked(&self, node: &NodeId) -> bool {
        self.revoked.contains_key(node)
    }

    /// The highest receipt number in any membership seen.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What the root said and still counts, but for the network itself.
    #[must_use]
    pub fn statements(&self) -> &Statements {
        &self.statements
    }

    /// What the root said, for somebody who was away: at most `count` statements, revocations first,
    /// and of these the newest.
    #[must_use]
    pub fn pressing_statements(&self, count: usize) -> Vec<Signed<RootStatement>> {
        let all = self.statements.iter().map(|(_, kept)| kept);
        let mut all: Vec<&Kept> = all.collect();
        all.sort_by_key(|kept| Reverse((kept.said.is_revocation(), kept.said.issued())));
        all.into_iter()
            .take(count)
            .map(|kept| kept.signed.clone())
            .collect()
    }

    /// Memberships in quarantine, to be stored.
    pub fn quarantined_memberships(&self) -> impl Iterator<Item = &Arc<Membership>> {
        self.quarantine.memberships()
    }

    /// The members whose state has changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<MemberId> {
        std::mem::take(&mut self.changed)
    }

    /// Ends a batch: what is learned from here on collides with what was learned before as a
    /// newcomer does with a known holder.
    pub fn start_batch(&mut self) {
        self.batch = self.batch.saturating_add(1);
    }

    /// A path to this member is proven: it holds its keys, and traffic may depend on it. From here on
    /// it is a known holder to whoever else comes, also within the batch in which both were told.
    pub fn confirm(&mut self, node: &NodeId) {
        if let Some(known) = self.known.get_mut(node) {
            known.batch = 0;
        }
    }

    /// Learns of a membership.
    pub fn learn(&mut self, membership: Membership, source: Source, now: UnixSeconds) -> Learned {
        let claimed = membership.application.certificate.unverified();
        if let Ok(certificate) = &claimed
            && let Some(known) = self.known.get(&certificate.node)
            && *known.membership == membership
        {
            let member = Arc::clone(&known.member);
            self.says_present(source, &member);
            return Learned::Same;
        }
        #[cfg(feature = "virtual-time")]
        if mutation::is(Mutant::NoReceiptCheck)
            && let Some(member) = mutation::receiptless(&membership, &self.network)
        {
            return self.learn_verified(Arc::new(member), Arc::new(membership), source, now);
        }
        // What this node once believed stays with its holder, also beyond its time.
        let member = match membership.prove(&self.network) {
            Ok(member) => member,
            Err(error) => {
                self.note_unverified(&membership, &error, source, now);
                return Learned::Refused;
            }
        };
        // Its own life goes on by a planet's word, whatever this clock says: it has no other.
        if source != Source::Disk
            && member.node != self.own
            && let Err(error) = member.is_in_time(now)
        {
            self.untimely.note(source, &member, now);
            let sentence = format!("{} was offered outside of its time: {error}", member.name);
            let newer = (Lie::OutOfTime, Newer::Time(member.node));
            self.lies.late(newer, source, sentence, now);
            return Learned::Refused;
        }
        self.learn_verified(Arc::new(member), Arc::new(membership), source, now)
    }

    fn learn_verified(
        &mut self,
        member: Arc<Member>,
        membership: Arc<Membership>,
        source: Source,
        now: UnixSeconds,
    ) -> Learned {
        if let Err((lie, sentence)) = self.still_in(&member, source) {
            if lie == Lie::GoneMember {
                let newer = (lie, Newer::Gone(member.node));
                self.lies.late(newer, source, sentence, now);
            } else {
                let told = (member.node.to_string(), sentence);
                self.lies.note(lie, source, told, now);
            }
            return Learned::Refused;
        }
        self.sequence = self.sequence.max(member.sequence);
        if let Some(known) = self.known.get(&member.node) {
            let standing = member.standing(&known.member);
            if standing != Standing::Newer {
                let told = lies::about_state(&member, &known.member, standing);
                match told {
                    Some((lie, sentence)) if may_be_late(&member, &known.member, standing) => {
                        let newer = (lie, Newer::Member(member.node));
                        self.lies.late(newer, source, sentence, now);
                    }
                    Some((lie, sentence)) => {
                        let told = (member.node.to_string(), sentence);
                        self.lies.note(lie, source, told, now);
                    }
                    None if standing == Standing::Same => self.says_present(source, &member),
                    None => {}
                }
                let believed = matches!(standing, Standing::Same | Standing::Older);
                return if believed {
                    Learned::Same
                } else {
                    Learned::Refused
                };
            }
        } else if self.quarantine.has_same(&member.node, &membership) {
            return Learned::Refused;
        }
        self.says_present(source, &member);
        if let Some(gone) = member.replaces.filter(|gone| *gone != member.node) {
            // The grant is the root's word.
            self.revoked.entry(gone).or_insert(member.admitted);
            self.remove(&gone);
        }
        self.admit(member, membership, source, now)
    }

    /// Makes a verified member a holder, unless it collides.
    fn admit(
        &mut self,
        member: Arc<Member>,
        membership: Arc<Membership>,
        source: Source,
        now: UnixSeconds,
    ) -> Learned {
        let id = MemberId::Node(member.node);
        let wanted = of_member(&member);
        let mut collisions = self.holdings.collisions(id, &wanted);
        let wins =
            self.resolved.contains_key(&member.node) || mutation::is(Mutant::NewestClaimWins);
        if !collisions.is_empty() && wins {
            self.yield_to(&member, &collisions, now);
            collisions = self.holdings.collisions(id, &wanted);
        }
        if !collisions.is_empty() && !self.known.contains_key(&member.node) {
            self.externals_give_way(&member, &collisions, (source, now));
            collisions = self.holdings.collisions(id, &wanted);
        }
        let contested = self.quarantine.contested_by(&member.node, &wanted);
        let decided = self.resolved.contains_key(&member.node);
        if collisions.is_empty() && (contested.is_none() || decided) {
            self.settle(member, membership, now);
            return Learned::New;
        }
        self.quarantine_newcomer((member, membership), collisions, contested, (source, now));
        Learned::Refused
    }

    fn settle(&mut self, member: Arc<Member>, membership: Arc<Membership>, now: UnixSeconds) {
        let id = MemberId::Node(member.node);
        let batch = match self.known.get(&member.node) {
            Some(before) => {
                self.holdings.remove(id, &of_member(&before.member));
                before.batch
            }
            None => self.batch,
        };
        self.quarantine.remove(&member.node);
        self.lies.overtake(&member.node.to_string(), now);
        self.holdings.insert(id, &of_member(&member));
        if let Some(expires) = member.expires {
            self.expiries.insert((expires, member.node));
        }
        self.changed.insert(id);
        let (node, expired) = (member.node, false);
        self.known.insert(
            node,
            Known {
                member,
                membership,
                expired,
                batch,
            },
        );
    }

    /// Removes a node; what collided with it gets its chance.
    fn remove(&mut self, node: &NodeId) {
        let id = MemberId::Node(*node);
        if self.quarantine.remove(node) {
            self.changed.insert(id);
        }
        if let Some(known) = self.known.remove(node) {
            self.holdings.remove(id, &of_member(&known.member));
            self.changed.insert(id);
            self.lies.forget(Source::Member(*node));
            self.lies.nothing_newer(node);
            self.readmit(id);
            self.recall_externals();
        }
    }

    /// A planet serves the network no more: what it said that doesn't hold is nothing to be done about.
    pub fn forget_planet(&mut self, planet: PlanetId) {
        self.up_to_date.remove(&planet);
        self.lies.forget(Source::Planet(planet));
    }

    /// Whether revocations and departures leave room for this member.
    fn still_in(&self, member: &Member, source: Source) -> Result<(), (Lie, String)> {
        let name = &member.name;
        if self.revoked.contains_key(&member.node) {
            let sentence = format!("{name} was offered as a member, but the root revoked it");
            return Err((Lie::GoneMember, sentence));
        }
        if let Some(left) = self.left_at(member) {
            let sentence =
                format!("{name} was offered as a member, but it has left what it was until {left}");
            return Err((Lie::GoneMember, sentence));
        }
        let (token, _) = member.admitted_by;
        if let Some(revoked) = self.revoked_tokens.get(&token)
            && member.admitted > *revoked
            && !self.known.contains_key(&member.node)
        {
            let token = token.short();
            let sentence = format!("{name} was admitted by token {token} after its revocation");
            return Err((Lie::AfterRevocation, sentence));
        }
        let life = |member: &Member| (member.issued, member.expires);
        let known = self.known.get(&member.node);
        if let Some(revoked) = self.revoked_tokens.get(&token)
            && member.expires.is_some()
            && member.renewal > 0
            && member.issued > *revoked
            && source != Source::Disk
            && known.is_none_or(|known| life(&known.member) != life(member))
        {
            let token = token.short();
            let sentence = format!("{name} was renewed after the revocation of its token {token}");
            return Err((Lie::AfterRevocation, sentence));
        }
        Ok(())
    }

    /// Judges certificates whose time is over; those that a wrong clock has ended begin again.
    pub fn expire(&mut self, now: UnixSeconds) {
        let limit = now.minus(CLOCK_SKEW);
        let mut back = self.ended.split_off(&(limit, NodeId([0; 32])));
        if mutation::is(Mutant::EndedForGood) {
            back.clear();
        }
        let ended: Vec<(UnixSeconds, NodeId)> = std::iter::from_fn(|| {
            let first = self.expiries.first().copied();
            first.filter(|(at, _)| *at < limit)?;
            self.expiries.pop_first()
        })
        .collect();
        for (entries, expired) in [(ended, true), (back.into_iter().collect(), false)] {
            for (at, node) in entries {
                let known = self.known.get_mut(&node);
                let Some(known) = known.filter(|known| known.member.expires == Some(at)) else {
                    continue;
                };
                known.expired = expired;
                self.changed.insert(MemberId::Node(node));
                let places = if expired {
                    &mut self.ended
                } else {
                    &mut self.expiries
                };
                places.insert((at, node));
            }
        }
    }

    /// The identity that speaks for a node, as far as this one knows.
    #[must_use]
    pub fn identity_of(&self, node: &NodeId) -> VerifyingKey {
        let known = self.known.get(node).map(|known| &known.member);
        let member = known.or_else(|| self.kept_apart(node));
        member.map_or((*node).into(), |member| member.identity())
    }

    fn note_unverified(
        &mut self,
        membership: &Membership,
        error: &CertificateError,
        source: Source,
        now: UnixSeconds,
    ) {
        let claimed = membership.application.certificate.unverified().ok();
        let node = claimed.as_ref().map(|certificate| certificate.node);
        let known = node.and_then(|node| self.known.get(&node));
        let name = claimed.map_or_else(
            || "a node".to_owned(),
            |certificate| certificate.name.to_string(),
        );
        let (lie, what) = match known {
            Some(known) if known.membership.application != membership.application => {
                (Lie::SwappedKey, "with another certificate")
            }
            Some(known) if known.membership.claim != membership.claim => {
                (Lie::MovedAddress, "with other addresses")
            }
            Some(known) if known.membership.renewed != membership.renewed => {
                (Lie::SwappedKey, "with a renewal that doesn't hold")
            }
            _ => match error {
                CertificateError::Expired { .. }
                | CertificateError::NotYet { .. }
                | CertificateError::Mismatch {
                    field: "token use", ..
                } => (Lie::TokenReplay, "by a token that doesn't hold"),
                _ => (Lie::FalseMember, "without a valid admission"),
            },
        };
        let subject = node.map_or_else(String::new, |node| node.to_string());
        let sentence = format!("{name} was offered {what}: {error}");
        let told = (subject, sentence);
        match error {
            CertificateError::UnknownPlanet { .. } => {
                self.note_unknown_planet(lie, source, told, now);
            }
            _ => self.lies.note(lie, source, told, now),
        }
    }
}

#[cfg(test)]
mod tests;
