//! How a membership goes on: judges a renewal or rotation of keys and writes its receipt.
//!
//! Any planet of the network may do so, not only the one that arbitrates leases: nothing new is given
//! away. A revoked node gets no receipt, and a revoked token's nodes get none that prolongs their life.

use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::{Member, Membership};
use podmesh_proto::frame;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::VerifyingKey;
use podmesh_proto::limits::CLOCK_SKEW;
use podmesh_proto::planet_api::{PlanetMessage, Refusal, RefusalCode};
use podmesh_proto::renewal::{RenewalReceipt, RenewalRequest, Renewed, Standing};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::{Now, UnixSeconds};

use crate::rules::admission::Court;
use crate::rules::commits::Then;
use crate::rules::directory::Topic;
use crate::rules::records::{Change, Record};
use crate::rules::refusal::{not_now, refuse};
use crate::rules::{Action, ConnectionId, Event, Planet};

/// Bytes of the largest request: sixteen steps of an identity fit.
const MAX_REQUEST: usize = 6 * 1024;
/// Seconds between two successors of one node: each is written to disk and told to everybody. Where planets'
/// clocks differ by more, what a node may ask of one planet is the limit.
const MIN_GAP: u64 = 5;

/// A decision in favour of a renewal.
#[derive(Debug)]
pub(crate) struct Granted {
    /// To be committed before the receipt leaves; empty when the node only asks again.
    pub(crate) changes: Vec<Change>,
    /// The answer.
    pub(crate) receipt: Signed<RenewalReceipt>,
}

impl Court<'_> {
    /// Judges the request that `node` (proven by its connection) hands in.
    pub(crate) fn renew(
        &self,
        node: &NodeId,
        request: RenewalRequest,
        granting: Result<(), Refusal>,
    ) -> Result<Granted, Refusal> {
        let length = frame::encode(&request, "renewal").map_or(usize::MAX, |bytes| bytes.len());
        if length > MAX_REQUEST {
            return Err(refuse(RefusalCode::Invalid, "the renewal is too long"));
        }
        let entry = self.books.entry(node).filter(|_| !self.books.is_out(node));
        let known =
            entry.and_then(|entry| Some((entry, entry.member.as_ref()?, entry.membership()?)));
        let Some((entry, member, membership)) = known else {
            let reason = "only a member's membership can go on";
            return Err(refuse(RefusalCode::NotMember, reason));
        };
        let hash = request.renewal.hash();
        if let Some(kept) = &entry.renewed
            && kept.request.renewal.hash() == hash
        {
            return Ok(Granted {
                changes: Vec::new(),
                receipt: kept.receipt.clone(),
            });
        }
        self.still_lives(member)?;
        self.prolongs(member, &request)?;
        granting?;
        let last = entry.renewed.as_ref();
        let last = last.and_then(|renewed| renewed.receipt.unverified().ok());
        // A date in the future is of a clock that was wrong, and says nothing of how old the receipt is.
        let is_recent =
            |time: UnixSeconds| time <= self.now.plus(MIN_GAP) && self.now < time.plus(MIN_GAP);
        if last.is_some_and(|last| is_recent(last.time)) {
            let reason = "the last renewal of this node is seconds old";
            let wait = Duration::from_secs(MIN_GAP);
            return Err(not_now(RefusalCode::Busy, reason, wait));
        }
        let receipt = RenewalReceipt {
            network: self.books.network.id,
            planet: self.key.planet_id(),
            node: *node,
            renewal: hash,
            time: self.now,
        };
        let receipt = Signed::seal(&receipt, self.key)
            .map_err(|error| refuse(RefusalCode::Invalid, error))?;
        let renewed = Box::new(Renewed { request, receipt });
        self.follows(member, membership, &renewed)?;
        Ok(Granted {
            receipt: renewed.receipt.clone(),
            changes: vec![Change::Put(Record::Renewal(renewed))],
        })
    }

    fn still_lives(&self, member: &Member) -> Result<(), Refusal> {
        match member.expires {
            Some(at) if self.now > at.plus(CLOCK_SKEW) => {
                let reason =
                    format!("the membership ended at {at}; leave, and join with a new token");
                Err(refuse(RefusalCode::NotMember, reason))
            }
            _ => Ok(()),
        }
    }

    /// A successor for new keys has the life of the document before it, which was judged. One whose own life is
    /// over was asked for when the planet's clock was wrong, before the node was off: it has signed no other, and
    /// while its membership is within the tolerance of clocks, the next one can follow.
    fn prolongs(&self, member: &Member, request: &RenewalRequest) -> Result<(), Refusal> {
        let next = request.renewal.unverified();
        let next = next.map_err(|error| refuse(RefusalCode::Unproven, error))?;
        if (next.issued, next.expires) == (member.issued, member.expires) {
            return Ok(());
        }
        let goes_on = |end: &UnixSeconds| {
            let longer = member.expires.is_some_and(|before| before <= *end);
            longer && self.now <= end.plus(CLOCK_SKEW)
        };
        let lies_in_the_present = if next.expires.as_ref().is_some_and(goes_on) {
            self.has_begun(next.issued)
        } else {
            self.is_of_use(next.issued, next.expires)
        };
        lies_in_the_present.map_err(|reason| {
            let reason = format!("the renewed membership {reason}; check both clocks");
            refuse(RefusalCode::Unproven, reason)
        })
    }

    /// Whether the successor is the next one of `member`, and takes nothing that it may not have.
    fn follows(
        &self,
        member: &Member,
        membership: Membership,
        renewed: &Renewed,
    ) -> Result<(), Refusal> {
        let membership = Membership {
            renewed: Some(Box::new(renewed.clone())),
            ..membership
        };
        let next = membership
            .verify(&self.books.network, self.now)
            .map_err(|error| refuse(RefusalCode::Unproven, error))?;
        match next.standing(member) {
            Standing::Newer if next.renewal == member.renewal.saturating_add(1) => {}
            Standing::Forked => {
                let reason = format!(
                    "another successor of serial {} is known; somebody else may hold this node's keys",
                    member.renewal
                );
                return Err(refuse(RefusalCode::Conflict, reason));
            }
            Standing::Superseded => {
                let reason = "this identity was replaced by a newer one";
                return Err(refuse(RefusalCode::Unproven, reason));
            }
            Standing::Newer | Standing::Same | Standing::Older => {
                let reason = format!("serial {} does not follow {}", next.renewal, member.renewal);
                return Err(refuse(RefusalCode::Invalid, reason));
            }
        }
        let (token, _) = member.admitted_by;
        let prolonged = (next.issued, next.expires) != (member.issued, member.expires);
        if prolonged && self.books.is_revoked(&token) {
            let reason =
                "the root revoked the join token of this node, which ends with its present life";
            return Err(refuse(RefusalCode::TokenRevoked, reason));
        }
        self.no_other_has(|other| *other == member.node, (next.wireguard, next.probe))
    }
}

impl Planet {
    pub(super) fn renew(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        request: RenewalRequest,
        now: Now,
    ) {
        let granting = self.may_renew(now);
        let granted = match self.court(now).renew(&node, request, granting) {
            Ok(granted) => granted,
            Err(refusal) => {
                self.send(connection, PlanetMessage::NotRenewed(refusal.clone()));
                self.note(Event::Refused(node, refusal));
                return;
            }
        };
        let answer = PlanetMessage::Renewed(granted.receipt);
        if granted.changes.is_empty() {
            self.send(connection, answer);
            return;
        }
        let send = |message| {
            Then::Do(Action::Send {
                connection,
                message: Box::new(message),
            })
        };
        let reason = "the planet can't write to its disk and grants nothing until it can";
        let refusal = not_now(RefusalCode::Busy, reason, Duration::from_secs(10));
        let otherwise = vec![send(PlanetMessage::NotRenewed(refusal))];
        self.transact(granted.changes, vec![send(answer)], otherwise);
    }

    /// A node shows what another planet has receipted: its own membership, or the one of a member of which
    /// this planet has told it less.
    pub(super) fn shown(&mut self, node: NodeId, membership: &Membership, now: Now) {
        let of_other = self.may_pass_on(node, membership, now);
        match self.learn(membership, (!of_other).then_some(node), now) {
            Ok(changes) if changes.is_empty() => {}
            Ok(changes) => self.remember(changes, Vec::new(), Vec::new()),
            Err(reason) => self.note(Event::NotLearned(node, reason)),
        }
    }

    /// Whether `node` is a member that may show this membership, whosever it is: members are told of its node,
    /// or of the one whose place it has.
    fn may_pass_on(&self, node: NodeId, membership: &Membership, now: Now) -> bool {
        let application = &membership.application;
        let of = application.certificate.unverified().ok();
        let grant = application.grant.unverified().ok();
        let of = of.map(|of| of.node).into_iter();
        let mut about = of.chain(grant.and_then(|grant| grant.replaces));
        let is_told =
            |one: NodeId| self.books.entry(&one).is_some() || self.books.departure(&one).is_some();
        self.books.member(&node, now.unix).is_some() && about.any(is_told)
    }

    /// The identity that speaks for a node by now.
    pub(super) fn identity_of(&self, node: &NodeId) -> VerifyingKey {
        let entry = self.books.entry(node);
        entry.map_or((*node).into(), |entry| entry.identity())
    }

    /// Tells of a renewal. What a former identity said about the node's endpoints counts no more.
    pub(super) fn announce_renewal(&mut self, node: &NodeId, now: Now) {
        let (network, identity) = (self.books.network.id, self.identity_of(node));
        let outdated = self
            .endpoints
            .get(node)
            .is_some_and(|(signed, _)| EndpointRecord::verify(signed, network, &identity).is_err());
        if outdated {
            self.endpoints.remove(node);
            self.directory.forget(Topic::Endpoints(*node));
        }
        self.announce_member(node, now);
    }
}
