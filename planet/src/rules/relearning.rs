//! What a planet does that may have forgotten something: it asks, and grants nothing meanwhile.
//!
//! Every receipt has a number, and every claim receipt names the numbers that no membership bears
//! any more. So a planet knows that it knows everything when no number up to the highest that
//! anybody has seen is unaccounted for.

mod patience;

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_proto::certificate::{Departure, Member, Membership};
use podmesh_proto::id::NodeId;
use podmesh_proto::planet_api::{PlanetMessage, Refusal, RefusalCode};
use podmesh_proto::renewal::Standing;
use podmesh_proto::time::{Moment, Now};

use crate::rules::books::{Books, Entry, Holder};
use crate::rules::commits::Then;
use crate::rules::leases::overlap;
use crate::rules::records::{Admission, Change, Origin, ReceiptedClaim, Record, RecordKey};
use crate::rules::refusal::not_now;
use crate::rules::{Action, ConnectionId, Event, Planet};

/// After a start, members have this long to show that something was forgotten: longer than a node waits
/// between two tries, or takes to notice that the planet has started anew.
pub(super) const LISTENING: Duration = Duration::from_secs(35);
/// A node that says it has seen a higher number has this long to show it.
const RUMOUR: Duration = Duration::from_secs(30);
/// Between two numbers of one node that are believed without being shown, so that nobody can stop the
/// grants by coming back.
const RUMOUR_PERIOD: Duration = Duration::from_secs(3_600);

/// What is known of what may have been forgotten.
#[derive(Debug)]
pub(super) struct Relearning {
    started: Moment,
    /// When the first member had nothing to tell, or had told all.
    first_report: Option<Moment>,
    /// What nodes said that they have seen.
    rumours: BTreeMap<NodeId, Rumour>,
    /// The reason of the last refusal, so that the log has it once.
    said: Option<String>,
}

/// What a node said about numbers that it hasn't shown.
#[derive(Debug)]
enum Rumour {
    /// A number that may have been forgotten, and until when that is believed.
    Believed(u64, Moment),
    /// Its last one was shown by somebody, or said at this moment at the latest; the next one waits.
    Heard(Moment),
    /// Nobody showed its last one: its numbers count no more until the planet starts anew.
    Empty,
}

impl Relearning {
    pub(super) fn new(books: &Books, now: Moment) -> Self {
        let nothing_to_tell = books.origin == Origin::Fresh && books.entries().next().is_none();
        Self {
            started: now,
            first_report: nothing_to_tell.then_some(now),
            rumours: BTreeMap::new(),
            said: None,
        }
    }

    /// A member says which number it has seen. Without a membership that bears the number this is only
    /// its word, so it counts for a while, and once in a while.
    pub(super) fn rumour(&mut self, node: NodeId, sequence: u64, books: &Books, now: Moment) {
        if sequence <= books.accounted().highest() {
            return;
        }
        let waits = match self.rumours.get(&node) {
            None => false,
            Some(Rumour::Heard(at)) => now.since(*at) < RUMOUR_PERIOD,
            Some(Rumour::Believed(..) | Rumour::Empty) => true,
        };
        if !waits {
            let believed = Rumour::Believed(sequence, now + RUMOUR);
            self.rumours.insert(node, believed);
        }
    }

    /// Ends rumours: those that the books bear out by now, and those for which `over` says so.
    fn weigh(&mut self, books: &Books, now: Moment, over: impl Fn(&NodeId, Moment) -> bool) {
        let highest = books.accounted().highest();
        for (node, rumour) in &mut self.rumours {
            let Rumour::Believed(sequence, until) = *rumour else {
                continue;
            };
            if sequence <= highest {
                *rumour = Rumour::Heard(now);
            } else if over(node, until) {
                *rumour = Rumour::Empty;
            }
        }
    }

    /// The highest number that anybody is believed to have seen.
    pub(super) fn highest(&self, books: &Books) -> u64 {
        let rumoured = self.rumours.values().map(|rumour| match rumour {
            Rumour::Believed(sequence, _) => *sequence,
            Rumour::Heard(_) | Rumour::Empty => 0,
        });
        let shown = books.accounted().highest();
        rumoured.fold(shown, u64::max)
    }

    /// Why nothing may be granted now.
    pub(super) fn why_not(&self, books: &Books, now: Moment) -> Option<String> {
        self.why_not_up_to(self.highest(books), books, now)
    }

    /// Why nothing may be granted now by what was shown, whatever anybody merely says.
    fn why_not_shown(&self, books: &Books, now: Moment) -> Option<String> {
        self.why_not_up_to(books.accounted().highest(), books, now)
    }

    fn why_not_up_to(&self, highest: u64, books: &Books, now: Moment) -> Option<String> {
        if let Some((first, last)) = books.accounted().first_gap(highest) {
            return Some(format!(
                "the planet has forgotten receipts {first} to {last} and waits for the nodes that hold them"
            ));
        }
        let listened = now.since(self.started) >= LISTENING;
        let ready = match books.origin {
            Origin::Lost | Origin::Restored => {
                let since = self.first_report.map(|first| now.since(first));
                since.is_some_and(|since| since >= LISTENING)
            }
            Origin::Fresh | Origin::Relearned => self.first_report.is_some() || listened,
        };
        if ready {
            return None;
        }
        Some(match books.origin {
            Origin::Lost => "the planet has lost its books and asks the members".to_owned(),
            Origin::Restored => {
                "the planet was restored from a backup and asks the members".to_owned()
            }
            Origin::Fresh | Origin::Relearned => {
                "the planet has just started and listens to the members first".to_owned()
            }
        })
    }

    /// What to remember when a planet starts with books that were lost or restored since it stopped.
    pub(super) fn begin(books: &mut Books, now: Now) -> Option<Change> {
        let forgetful = matches!(books.origin, Origin::Lost | Origin::Restored);
        let news = forgetful && books.unknown_uses().is_none();
        news.then(|| books.set_unknown_until(now.unix))
    }

    /// What to commit together with the first grant after everything was relearned.
    pub(super) fn conclude(&self, books: &Books) -> Option<Change> {
        matches!(books.origin, Origin::Lost | Origin::Restored)
            .then_some(Change::Put(Record::Origin(Origin::Relearned)))
    }
}

impl Planet {
    pub(super) fn may_grant(&self, now: Now) -> Result<(), Refusal> {
        wait_for(self.relearning.why_not(&self.books, now.moment))
    }

    /// Why no membership may go on at the moment. Any planet of the network may let one go on; it only
    /// has to have heard those first that know of revocations and newer states. A renewal takes no
    /// number and no lease, so a number that somebody merely says it has seen is no reason.
    pub(super) fn may_renew(&self, now: Now) -> Result<(), Refusal> {
        if self.is_arbiter() {
            return wait_for(self.relearning.why_not_shown(&self.books, now.moment));
        }
        if now.moment.since(self.relearning.started) >= LISTENING {
            return Ok(());
        }
        let reason = "the planet has just started and listens to the members first";
        let wait = Duration::from_secs(2);
        Err(not_now(RefusalCode::Relearning, reason, wait))
    }

    /// Asks a member for what it holds, if there may be something to learn.
    pub(super) fn consult(&mut self, connection: ConnectionId, now: Now) {
        let gap = self
            .books
            .accounted()
            .first_gap(self.relearning.highest(&self.books));
        let highest = self.books.accounted().highest();
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        // Who says to have seen more is asked, whether that is believed or not.
        let wanted = gap.is_some()
            || known.sequence > highest
            || self.relearning.conclude(&self.books).is_some();
        if !wanted {
            known.reported = true;
            self.relearning.first_report.get_or_insert(now.moment);
        } else if !known.asked {
            known.asked = true;
            self.send(connection, PlanetMessage::Relearn);
        }
    }

    pub(super) fn report(
        &mut self,
        connection: ConnectionId,
        node: NodeId,
        memberships: &[Membership],
        now: Now,
    ) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        if !known.asked || known.reported {
            return;
        }
        if memberships.is_empty() {
            known.reported = true;
            self.relearning
                .weigh(&self.books, now.moment, |teller, _| *teller == node);
            self.relearning.first_report.get_or_insert(now.moment);
            return;
        }
        let mut changes = Vec::new();
        for membership in memberships {
            let is_known = self.is_in_books(membership);
            match self.learn(membership, None, now) {
                Ok(learned) if !learned.is_empty() => {
                    changes.extend(learned);
                    continue;
                }
                Ok(_) => {}
                Err(reason) => self.note(Event::NotLearned(node, reason)),
            }
            let allowance = self.allowances.of(node, now.moment);
            if !is_known && !allowance.in_vain.take(1, now.moment) {
                if let Some(known) = self.connections.get_mut(&connection) {
                    known.reported = true;
                }
                break;
            }
        }
        if !changes.is_empty() {
            self.remember(changes, Vec::new(), Vec::new());
        }
    }

    /// Whether the books hold exactly this.
    pub(super) fn is_in_books(&self, membership: &Membership) -> bool {
        let known = self.books.entry_of(membership);
        known.is_some_and(|entry| entry.membership().as_ref() == Some(membership))
    }

    /// Takes a membership into the books if it holds and is news; `shown_by` is who it must belong to.
    /// It holds at once; the changes are returned to be made durable.
    pub(super) fn learn(
        &mut self,
        membership: &Membership,
        shown_by: Option<NodeId>,
        now: Now,
    ) -> Result<Vec<Change>, String> {
        if self.is_in_books(membership) {
            return Ok(Vec::new());
        }
        // A lease outlives the certificate it was given with, so expiry is no reason to forget.
        let member = membership
            .prove(&self.books.network)
            .map_err(|error| error.to_string())?;
        if shown_by.is_some_and(|node| node != member.node) {
            return Err("the membership belongs to another node".to_owned());
        }
        if self.books.is_out(&member.node) {
            return Err(format!("the root revoked node {}", member.node.short()));
        }
        if !self.is_news(membership, &member)? {
            return Ok(Vec::new());
        }
        self.outlives_its_token(&member, now)?;
        let known = self.books.entry(&member.node);
        let mut leaving = self.make_room(&member)?;
        let former = member.replaces.filter(|former| *former != member.node);
        leaving.extend(former);
        let mut changes = self.books.release(&leaving);
        if let Some(entry) = known.filter(|entry| entry.newest() != member.sequence) {
            // What a newer receipt doesn't settle must not become a gap.
            let gone = leaving.iter().filter_map(|node| self.books.entry(node));
            let numbers: Vec<(u64, u64)> = gone
                .chain(std::iter::once(entry))
                .flat_map(Entry::numbers)
                .collect();
            changes.push(self.books.loosen(numbers));
        }
        changes.push(Change::Remove(RecordKey::Departure(member.node)));
        let (former, by) = (former.into_iter(), member.node);
        changes.extend(former.map(|former| Change::Put(Record::Replaced { former, by })));
        changes.extend(records(membership, &member));
        changes.extend(self.gone_unheard(membership)?);
        self.apply(&changes, now);
        Ok(changes)
    }

    /// What to remember if a receipt settles numbers of which this planet never heard: some of them may have
    /// been admissions, of nodes that are gone since, and nobody can say any more by which tokens.
    fn gone_unheard(&self, membership: &Membership) -> Result<Option<Change>, String> {
        let receipt = membership.claim_receipt.unverified();
        let receipt = receipt.map_err(|error| error.to_string())?;
        let known = self.books.accounted();
        let unheard = |(first, last): &(u64, u64)| !known.has_all(*first, *last);
        let any = receipt.settles.iter().any(unheard);
        Ok(any.then(|| self.books.unknown_until(receipt.time)))
    }

    /// Whether the revocation of its token leaves room for what a member shows. Times in receipts are a
    /// planet's word, so a planet that has no reason to think that it forgot anybody learns nobody of a
    /// revoked token: it would have given the receipt itself.
    fn outlives_its_token(&self, member: &Member, now: Now) -> Result<(), String> {
        let Some(revoked) = self.books.revoked_at(&member.admitted_by.0) else {
            return Ok(());
        };
        let known = self.books.entry(&member.node);
        let known = known.and_then(|entry| entry.member.as_ref());
        let admitted = known.is_some_and(|known| known.admitted_by == member.admitted_by);
        if !admitted && (member.admitted > revoked || !self.may_have_forgotten(now)) {
            let name = &member.name;
            return Err(format!("the root revoked the join token of {name}"));
        }
        let life = |member: &Member| (member.issued, member.expires);
        let prolonged = member.renewal > 0 && member.expires.is_some() && member.issued > revoked;
        if prolonged && known.map(life) != Some(life(member)) {
            let name = &member.name;
            return Err(format!(
                "{name} was renewed after the revocation of its join token"
            ));
        }
        Ok(())
    }

    /// Whether somebody may hold a receipt that the books don't know: another planet's, or a forgotten
    /// one.
    fn may_have_forgotten(&self, now: Now) -> bool {
        let listening = now.moment.since(self.relearning.started) < LISTENING;
        let incomplete = self.relearning.why_not(&self.books, now.moment).is_some();
        !self.is_arbiter() || listening || incomplete
    }

    /// Whether the books know less of a member than `membership` says.
    fn is_news(&self, membership: &Membership, member: &Member) -> Result<bool, String> {
        let receipt = membership
            .receipt
            .unverified()
            .map_err(|error| error.to_string())?;
        if let Some(departure) = self.books.departure(&member.node) {
            let left = Departure::verify(departure, self.books.network.id);
            let (left, by) = left.map_err(|error| error.to_string())?;
            // What a former identity said moves nobody who has another since, whichever is heard first.
            if left.time >= receipt.time && by.starts_with(&member.identities) {
                return Err(format!("node {} has left", member.name));
            }
        }
        let entry = self.books.entry(&member.node);
        let Some(known) = entry.and_then(|entry| entry.member.as_ref()) else {
            return Ok(entry.map_or(0, Entry::newest) < member.sequence);
        };
        match member.standing(known) {
            Standing::Newer => Ok(true),
            Standing::Same | Standing::Older => Ok(false),
            Standing::Superseded => Err(format!("{} has another identity by now", member.name)),
            Standing::Forked => Err(format!(
                "{} shows another successor of its certificate than the one that is known",
                member.name
            )),
        }
    }

    /// Whether a learned member fits in beside the ones that are known, and who has to go for it. The
    /// known ones stay, unless the root said that the new one is right or they are outdated.
    fn make_room(&self, member: &Member) -> Result<Vec<NodeId>, String> {
        let yields = |node: &NodeId| {
            let resolved = self.books.is_resolved(&member.node) && !self.books.is_resolved(node);
            resolved || self.is_outdated(node, member.sequence)
        };
        let mut evicted: Vec<NodeId> = Vec::new();
        let wanted = member.prefixes();
        let own = |node: &NodeId| *node == member.node || member.replaces == Some(*node);
        for (holder, prefix) in self.books.taken(own) {
            if wanted.iter().any(|wanted| overlap(wanted, &prefix)) {
                match holder {
                    Holder::Node(node, _) if yields(node) => {
                        evicted.push(*node);
                    }
                    _ => return Err(format!("{} claims {prefix} of {holder}", member.name)),
                }
            }
        }
        for (node, entry) in self.books.entries() {
            let other = &entry.certificate;
            let same = other.name == member.name
                || entry.keys().0 == member.wireguard
                || node.relay_address() == member.node.relay_address();
            if !same || own(node) || self.books.is_out(node) || evicted.contains(node) {
                continue;
            }
            if !yields(node) {
                let holder = Holder::Node(node, &other.name);
                return Err(format!("{} has the name or key of {holder}", member.name));
            }
            evicted.push(*node);
        }
        Ok(evicted)
    }

    /// Whether a node that old books name has given up its place since: a later receipt gave away what
    /// it held, which no planet does before the holder has left, and it was not seen again.
    fn is_outdated(&self, node: &NodeId, sequence: u64) -> bool {
        let newest = self.books.entry(node).map_or(0, Entry::newest);
        let highest = self.relearning.highest(&self.books);
        let forgetful = self.books.origin == Origin::Restored
            || self.books.accounted().first_gap(highest).is_some();
        forgetful && newest < sequence && !self.online.contains_key(node)
    }

    /// Forgets rumours that nobody has shown, asks members again, and says when grants stop or start.
    pub(super) fn watch_relearning(&mut self, now: Now) {
        self.relearning
            .weigh(&self.books, now.moment, |_, until| now.moment >= until);
        let reason = self.relearning.why_not(&self.books, now.moment);
        if reason.is_some() {
            let members: Vec<ConnectionId> = self
                .connections
                .iter()
                .filter(|(_, known)| known.told.is_some() && !known.asked)
                .map(|(id, _)| *id)
                .collect();
            members.into_iter().for_each(|id| self.consult(id, now));
        }
        if reason != self.relearning.said && self.is_arbiter() {
            let patience = self.relearning.patience(&self.books, now.moment);
            let event = reason.clone().map_or(Event::Granting, |reason| {
                Event::Relearning(reason, patience)
            });
            self.note(event);
            self.relearning.said = reason;
        }
    }

    /// The operator takes the decision.
    pub(super) fn trust_empty(&mut self, request: u64, now: Now) {
        let answer = |result| Action::Answer { request, result };
        let is_missing = self.relearning.why_not(&self.books, now.moment).is_some();
        // Numbers that were trusted and that nobody bears are to be gone back from.
        if !is_missing && self.books.accounted().highest() == self.books.shown() {
            let words = "nothing is missing: the planet grants already, and nothing was changed";
            self.outbox.push_back(answer(Ok(words.to_owned())));
            return;
        }
        // Nobody's mere word goes to disk: a number that nobody bears could never be gone beyond.
        let highest = self.ahead().shown();
        let changes = vec![
            Change::Put(Record::Trusted(highest)),
            Change::Put(Record::Origin(Origin::Relearned)),
            self.books.unknown_until(now.unix),
        ];
        let result = Ok(format!(
            "the planet grants again; everything up to receipt {highest} counts as known"
        ));
        let failed = Err("the planet can't write to its disk; free some space first".to_owned());
        self.transact(
            changes,
            vec![Then::Trust, Then::Do(answer(result))],
            vec![Then::Do(answer(failed))],
        );
    }

    /// The operator's decision is durable.
    pub(super) fn trust(&mut self, now: Now) {
        self.relearning.weigh(&self.books, now.moment, |_, _| true);
        self.relearning.first_report.get_or_insert(now.moment);
    }
}

fn wait_for(reason: Option<String>) -> Result<(), Refusal> {
    let wait = Duration::from_secs(2);
    reason.map_or(Ok(()), |reason| {
        Err(not_now(RefusalCode::Relearning, reason, wait))
    })
}

/// A membership as the books keep it, with the token's use that it proves.
fn records(membership: &Membership, member: &Member) -> impl Iterator<Item = Change> + use<> {
    let (token, number) = member.admitted_by;
    let spent = Record::Use {
        token,
        number,
        node: member.node,
    };
    let admission = Admission {
        application: membership.application.clone(),
        receipt: membership.receipt.clone(),
    };
    let claim = ReceiptedClaim {
        claim: membership.claim.clone(),
        receipt: membership.claim_receipt.clone(),
    };
    let (admission, claim) = (Box::new(admission), Box::new(claim));
    let goes_on = match &membership.renewed {
        Some(renewed) => Change::Put(Record::Renewal(renewed.clone())),
        None => Change::Remove(RecordKey::Renewal(member.node)),
    };
    [spent, Record::Admission(admission), Record::Claim(claim)]
        .map(Change::Put)
        .into_iter()
        .chain([goes_on])
}
