//! Who gets in: judges an application and writes the receipt.
//!
//! Everything is decided against the books as they stand; the caller makes the changes durable
//! before the receipt leaves.

use ipnet::IpNet;
use podmesh_proto::certificate::{AdmissionReceipt, Application, Grant, Leases, NodeCertificate};
use podmesh_proto::frame;
use podmesh_proto::id::{NodeId, TokenId};
use podmesh_proto::key::{PublicKey, SigningKey};
use podmesh_proto::limits::CLOCK_SKEW;
use podmesh_proto::planet_api::{Refusal, RefusalCode};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use crate::rules::books::{Books, Holder};
use crate::rules::leases;
use crate::rules::records::{Admission, Change, Record, RecordKey};
use crate::rules::refusal::refuse;

/// Bytes of the largest application, so that a directory record always fits a message.
const MAX_APPLICATION: usize = 16 * 1024;

/// A decision in favour of a node.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// To be committed before the receipt leaves; empty when the node only asks again.
    pub(crate) changes: Vec<Change>,
    /// The answer.
    pub(crate) receipt: Signed<AdmissionReceipt>,
}

/// What the judgement needs besides the application.
pub(crate) struct Court<'a> {
    pub(crate) books: &'a Books,
    pub(crate) key: &'a SigningKey,
    /// The number that the next receipt gets; absent when the last one is given.
    pub(crate) next: Option<u64>,
    pub(crate) now: UnixSeconds,
}

impl Court<'_> {
    /// Judges the application that `node` (proven by its connection) hands in. `granting` says why
    /// nothing may be granted at the moment, if so.
    pub(crate) fn admit(
        &self,
        node: &NodeId,
        application: &Application,
        granting: Result<(), Refusal>,
    ) -> Result<Admitted, Refusal> {
        let length =
            frame::encode(application, "application").map_or(usize::MAX, |bytes| bytes.len());
        if length > MAX_APPLICATION {
            return Err(refuse(RefusalCode::Invalid, "the application is too long"));
        }
        let (grant, certificate) = application
            .verify(&self.books.network)
            .map_err(|error| refuse(RefusalCode::Unproven, error))?;
        if certificate.node != *node {
            let reason = "the certificate belongs to another node";
            return Err(refuse(RefusalCode::Unproven, reason));
        }
        if self.books.is_out(node) {
            let reason = format!("the root revoked node {}", node.short());
            return Err(refuse(RefusalCode::NodeRevoked, reason));
        }
        if self.books.is_revoked(&grant.token) {
            let reason = "the root revoked this join token; make a new one";
            return Err(refuse(RefusalCode::TokenRevoked, reason));
        }
        if let Some(again) = self.admitted_before(node, application) {
            return Ok(again);
        }
        self.not_under_another_name(node, &certificate)?;
        self.in_time(&grant)?;
        self.is_of_use(certificate.issued, certificate.expires)
            .map_err(|reason| {
                let next = "check both clocks, then join again; nothing is spent";
                refuse(
                    RefusalCode::Invalid,
                    format!("the membership {reason}; {next}"),
                )
            })?;
        self.may_be_dated(node, &grant)?;
        granting?;
        let number = self.use_number(&grant)?;
        self.unique(&grant, &certificate)?;
        self.no_other_has(
            |other| *other == certificate.node || grant.replaces == Some(*other),
            (certificate.wireguard, certificate.probe),
        )?;
        let leases = self.leases(&certificate, &grant)?;
        self.write(application, (&grant, number), &certificate, leases)
    }

    /// The answer got lost, or the node forgot it: the same one again.
    fn admitted_before(&self, node: &NodeId, application: &Application) -> Option<Admitted> {
        let entry = self.books.entry(node)?;
        let same = entry.receipt.certificate == application.certificate.hash();
        same.then(|| Admitted {
            changes: Vec::new(),
            receipt: entry.admission.receipt.clone(),
        })
    }

    /// A member that joins under another name is a copy of the machine, in all likelihood. Under its own
    /// name it may have lost its state, and gets what it had.
    fn not_under_another_name(
        &self,
        node: &NodeId,
        certificate: &NodeCertificate,
    ) -> Result<(), Refusal> {
        let member = self
            .books
            .entry(node)
            .filter(|entry| entry.member.is_some());
        let present = member.map(|entry| &entry.certificate.name);
        let Some(name) = present.filter(|name| **name != certificate.name) else {
            return Ok(());
        };
        if self.books.departure(node).is_some() {
            return Ok(());
        }
        let reason = format!(
            "this machine has the keys of node {name}, which is a member; if it was made from a copy of \
             that machine, `meshctl leave --forget-keys` here, then join again; if {name} is to be named \
             {}, it has to leave first",
            certificate.name
        );
        Err(refuse(RefusalCode::Conflict, reason))
    }

    /// # Errors
    /// There is no higher number.
    pub(super) fn next_number(&self) -> Result<u64, Refusal> {
        self.next.ok_or_else(|| {
            let reason = "no receipt number is left above the highest that the books count as known; \
                `planet trust-empty` goes back to the highest that a membership bears";
            refuse(RefusalCode::Exhausted, reason)
        })
    }

    fn in_time(&self, grant: &Grant) -> Result<(), Refusal> {
        if self.now > grant.expires {
            let reason = format!(
                "the join token expired at {}, and this planet's clock says {}; make a new one, or set that clock \
                 if it is wrong",
                grant.expires, self.now
            );
            return Err(refuse(RefusalCode::TokenExpired, reason));
        }
        if self.now < grant.issued.minus(CLOCK_SKEW) {
            let reason = format!(
                "the join token is valid from {}, and this planet's clock says {}; check both clocks",
                grant.issued, self.now
            );
            return Err(refuse(RefusalCode::Invalid, reason));
        }
        Ok(())
    }

    /// Whether a life that is asked for lies in the present. One that begins later would be longer than was
    /// granted. One that is over would cost a use and a place, and put out a member that has a life before it:
    /// the node's clock is behind, this one's is ahead, or the planet was away for so long.
    ///
    /// # Errors
    /// It doesn't; in words, how far it is from it.
    pub(super) fn is_of_use(
        &self,
        issued: UnixSeconds,
        expires: Option<UnixSeconds>,
    ) -> Result<(), String> {
        let Some(expires) = expires else {
            return Ok(());
        };
        let now = self.now;
        self.has_begun(issued)?;
        if expires <= now {
            let behind = now.0.saturating_sub(issued.0);
            return Err(format!(
                "would be over since {expires}: it was asked for {behind} s before this planet's {now}"
            ));
        }
        Ok(())
    }

    /// Whether a life that is asked for has begun.
    ///
    /// # Errors
    /// It hasn't; in words, how far it is from it.
    pub(super) fn has_begun(&self, issued: UnixSeconds) -> Result<(), String> {
        let now = self.now;
        if issued > now.plus(CLOCK_SKEW) {
            let ahead = issued.0.saturating_sub(now.0);
            return Err(format!(
                "would begin at {issued}, {ahead} s after this planet's {now}"
            ));
        }
        Ok(())
    }

    /// The one use of a token may be spent of which the books know nothing. Of many uses most are left, and who
    /// has such a token could have joined by it anyway.
    fn use_number(&self, grant: &Grant) -> Result<u32, Refusal> {
        let unknown = self.books.unknown_uses();
        if let Some(until) = unknown.filter(|until| grant.uses == 1 && grant.issued < *until) {
            let reason = format!(
                "this planet may not know of everybody who joined and went before {until}, and the one use of this \
                 join token of {} may be spent; make a new one",
                grant.issued
            );
            return Err(refuse(RefusalCode::TokenUsedUp, reason));
        }
        let spent = self.books.spent(&grant.token);
        let free = |number: &u32| spent.is_none_or(|spent| !spent.contains_key(number));
        (1..=grant.uses).find(free).ok_or_else(|| {
            let reason = match grant.uses {
                1 => "the one use of this join token is spent".to_owned(),
                uses => format!("all {uses} uses of this join token are spent"),
            };
            refuse(RefusalCode::TokenUsedUp, reason)
        })
    }

    fn unique(&self, grant: &Grant, certificate: &NodeCertificate) -> Result<(), Refusal> {
        let conflict = |what: &str, holder: Holder<'_>| {
            Err(refuse(
                RefusalCode::Conflict,
                format!("{holder} has {what}"),
            ))
        };
        for (node, entry) in self.books.entries() {
            let other = &entry.certificate;
            let holder = Holder::Node(node, &other.name);
            if *node == certificate.node || self.books.is_out(node) || grant.replaces == Some(*node)
            {
                continue;
            }
            if other.name == certificate.name {
                let what = format!(
                    "the name {0}; to let a new machine take its place: meshctl token create --for {0} \
                     --replaces {node}",
                    other.name
                );
                return conflict(&what, holder);
            }
            if node.relay_address() == certificate.node.relay_address() {
                return conflict("this relay address", holder);
            }
        }
        for peer in self.books.externals() {
            let holder = Holder::External(&peer.name);
            if peer.name == certificate.name {
                return conflict("this name", holder);
            }
        }
        Ok(())
    }

    /// Whether nobody but `own` has these WireGuard and probe keys.
    pub(super) fn no_other_has(
        &self,
        own: impl Fn(&NodeId) -> bool,
        (wireguard, probe): (PublicKey, PublicKey),
    ) -> Result<(), Refusal> {
        let conflict = |what: &str, holder: Holder<'_>| {
            let reason = format!("{holder} has this {what} key");
            Err(refuse(RefusalCode::Conflict, reason))
        };
        for (node, entry) in self.books.entries() {
            if own(node) || self.books.is_out(node) {
                continue;
            }
            let holder = Holder::Node(node, &entry.certificate.name);
            let theirs = entry.keys();
            if theirs.0 == wireguard {
                return conflict("WireGuard", holder);
            }
            if theirs.1 == probe {
                return conflict("probe", holder);
            }
        }
        match self
            .books
            .externals()
            .find(|peer| peer.wireguard == wireguard)
        {
            Some(peer) => conflict("WireGuard", Holder::External(&peer.name)),
            None => Ok(()),
        }
    }

    /// A lease belongs to a node id, or comes with the place of the node that is replaced. Who has left or
    /// was put out and comes back, be it with new keys under the same name, finds it again while it is free.
    fn leases(&self, certificate: &NodeCertificate, grant: &Grant) -> Result<Leases, Refusal> {
        let node = &certificate.node;
        let kept = self.books.leases(node);
        let inherited = || grant.replaces.and_then(|former| self.books.leases(&former));
        let former = || self.books.former_leases(node, &certificate.name);
        let own = |other: &NodeId| other == node || grant.replaces == Some(*other);
        let taken: Vec<IpNet> = self.books.taken(own).map(|(_, prefix)| prefix).collect();
        let supply = leases::Supply {
            taken: &taken,
            held: kept.or_else(inherited).or_else(former),
            given_up: &self.books.given_up(),
        };
        leases::choose(&self.books.network, grant, supply)
            .map_err(|error| refuse(RefusalCode::Exhausted, error))
    }

    /// By this clock, but later than what the node was admitted to before and what it has left: a departure
    /// ends a membership and all that are dated before it, and of two memberships the later one counts,
    /// whatever the clocks were by which they were dated.
    fn time_of_admission(&self, node: &NodeId) -> UnixSeconds {
        let departure = self.books.departure(node);
        let left = departure.and_then(|departure| departure.unverified().ok());
        let before = self.books.entry(node).map(|entry| entry.receipt.time);
        let over = left.map(|left| left.time).max(before);
        over.map_or(self.now, |over| self.now.max(over.plus(1)))
    }

    /// An admission that is dated after the end of its token is believed by nobody.
    fn may_be_dated(&self, node: &NodeId, grant: &Grant) -> Result<(), Refusal> {
        let time = self.time_of_admission(node);
        if time <= grant.expires {
            return Ok(());
        }
        let reason = format!(
            "by the wrong clock of some machine this node was a member until {time}, and the join token ends \
             before that; make one that lasts longer, or join with new keys after `meshctl leave --forget-keys`"
        );
        Err(refuse(RefusalCode::TokenExpired, reason))
    }

    fn write(
        &self,
        application: &Application,
        (grant, number): (&Grant, u32),
        certificate: &NodeCertificate,
        leases: Leases,
    ) -> Result<Admitted, Refusal> {
        let node = certificate.node;
        let receipt = AdmissionReceipt {
            network: self.books.network.id,
            planet: self.key.planet_id(),
            token: grant.token,
            use_number: number,
            node,
            name: certificate.name.clone(),
            certificate: application.certificate.hash(),
            leases,
            sequence: self.next_number()?,
            time: self.time_of_admission(&node),
        };
        let sealed = Signed::seal(&receipt, self.key)
            .map_err(|error| refuse(RefusalCode::Invalid, error))?;
        let mut changes = vec![Change::Put(spent(grant.token, number, node))];
        changes.extend(self.books.move_to(&node, &receipt.leases));
        let former = grant.replaces.filter(|former| *former != node);
        changes.extend(self.books.release(former.as_slice()));
        if let Some(former) = former {
            changes.push(Change::Put(Record::Replaced { former, by: node }));
        }
        if let Some(entry) = self.books.entry(&node) {
            // The claim's own numbers stay with it until it is replaced too.
            let mut numbers = vec![(entry.receipt.sequence, entry.receipt.sequence)];
            let held = former.and_then(|former| self.books.entry(&former));
            numbers.extend(held.iter().flat_map(|held| held.numbers()));
            changes.push(self.books.loosen(numbers));
            changes.push(Change::Remove(RecordKey::Renewal(node)));
        }
        changes.push(Change::Put(Record::Admission(Box::new(Admission {
            application: application.clone(),
            receipt: sealed.clone(),
        }))));
        Ok(Admitted {
            changes,
            receipt: sealed,
        })
    }
}

fn spent(token: TokenId, number: u32, node: NodeId) -> Record {
    Record::Use {
        token,
        number,
        node,
    }
}
