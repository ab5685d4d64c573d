//! Who has left, by its own word.
//!
//! Anybody can make a key and sign its departure. The departure of a node that nobody here has seen is
//! remembered in case its membership comes late, but neither kept on disk nor told on, and each member can
//! make this node remember a few. What a planet says counts more: it has known the node.

use std::collections::BTreeSet;

use podmesh_proto::certificate::{Departure, Member};
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::key::VerifyingKey;
use podmesh_proto::limits::CLOCK_SKEW;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use super::Members;
use super::lies::{Newer, Source};
use crate::limits;

/// A node's word that it has left.
#[derive(Debug, Clone)]
pub(super) struct Departed {
    time: UnixSeconds,
    pub(super) signed: Signed<Departure>,
    /// The node's identities then; the newest one has signed.
    identities: Vec<VerifyingKey>,
    /// This node has known it as a member.
    was_known: bool,
    /// Which one in the order of hearing.
    order: u64,
    /// Planets that have said it themselves, and need not be told.
    told: BTreeSet<PlanetId>,
}

/// The departure of a node that was never seen here, by a member's word.
#[derive(Debug, Clone)]
pub(super) struct Stranger {
    time: UnixSeconds,
    identities: Vec<VerifyingKey>,
    by: NodeId,
}

/// What became of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// A member is gone.
    News,
    /// Known, or of a node that was never seen here: nothing follows from it.
    Nothing,
    /// The node was admitted anew since.
    Over,
}

impl Members {
    /// Takes a node's own word that it has left.
    ///
    /// # Errors
    /// It isn't the node's word.
    pub fn depart(
        &mut self,
        signed: &Signed<Departure>,
        source: Source,
        now: UnixSeconds,
    ) -> Result<Parting, CertificateError> {
        let (departure, identities) = Departure::verify(signed, self.network.id)?;
        let since = self.known.get(&departure.node);
        if since.is_some_and(|known| !identities.starts_with(&known.member.identities)) {
            return Err(CertificateError::Signature {
                document: "departure",
                signer: "the node's newest identity",
            });
        }
        if since.is_some_and(|known| known.member.admitted > departure.time) {
            return Ok(Parting::Over);
        }
        let before = self.departed.get(&departure.node);
        // The newest identity speaks for the node: a former one doesn't take its word back. Of a member none of
        // them holds, or it would not be known as one.
        let says_as_much = |before: &Departed| {
            (before.identities.len(), before.time) >= (identities.len(), departure.time)
        };
        if since.is_none() && before.is_some_and(says_as_much) {
            return Ok(Parting::Nothing);
        }
        let was_known = since.is_some() || self.quarantine.has(&departure.node);
        let known = was_known || before.is_some();
        if !known {
            if let Source::Member(by) = source {
                self.remember_stranger(&departure, identities, by, now);
                return Ok(Parting::Nothing);
            }
            if self.departed.len() >= limits::MAX_TOLD_DEPARTURES {
                return Ok(Parting::Nothing);
            }
        }
        self.partings += 1;
        let entry = Departed {
            time: departure.time,
            signed: signed.clone(),
            identities,
            was_known: was_known || before.is_some_and(|before| before.was_known),
            order: self.partings,
            told: BTreeSet::new(),
        };
        self.strangers.remove(&departure.node);
        self.departed.insert(departure.node, entry);
        self.remove(&departure.node);
        Ok(if known {
            Parting::News
        } else {
            Parting::Nothing
        })
    }

    /// Nobody leaves what was admitted in the future: such a date would outlast every true one.
    fn remember_stranger(
        &mut self,
        departure: &Departure,
        identities: Vec<VerifyingKey>,
        by: NodeId,
        now: UnixSeconds,
    ) {
        let of = |one: &NodeId| self.strangers.values().filter(|it| it.by == *one).count();
        let room = self.strangers.len() < limits::MAX_STRANGE_DEPARTURES
            && of(&by) < limits::MAX_STRANGE_DEPARTURES_OF_ONE;
        let before = self.strangers.get(&departure.node);
        let fits = match before {
            Some(before) => {
                (before.identities.len(), before.time) < (identities.len(), departure.time)
            }
            None => room,
        };
        if fits && departure.time <= now.plus(CLOCK_SKEW) {
            let time = departure.time;
            let by = before.map_or(by, |before| before.by);
            let stranger = Stranger {
                time,
                identities,
                by,
            };
            self.strangers.insert(departure.node, stranger);
        }
    }

    /// The last admission that a node's own word has ended, whoever told it, if `member` is of that or an earlier
    /// one. As in [`Self::depart`], whichever comes first: what a former identity says moves nobody who
    /// has another since.
    pub(super) fn left_at(&self, member: &Member) -> Option<UnixSeconds> {
        let ends = |time: UnixSeconds, identities: &[VerifyingKey]| {
            (time >= member.admitted && identities.starts_with(&member.identities)).then_some(time)
        };
        let departed = self.departed.get(&member.node);
        let stranger = self.strangers.get(&member.node);
        departed
            .and_then(|it| ends(it.time, &it.identities))
            .max(stranger.and_then(|it| ends(it.time, &it.identities)))
    }

    /// This node's own departure, where nothing of it is a member since: it has left, and its disk has gone back
    /// to before that.
    #[must_use]
    pub fn own_departure(&self) -> Option<&Signed<Departure>> {
        let departed = self.departed.get(&self.own);
        let gone = departed.filter(|_| self.own().is_none());
        gone.map(|departed| &departed.signed)
    }

    /// Notes that a planet has said itself that this node has left.
    pub fn planet_knows_departure(&mut self, planet: PlanetId, node: &NodeId) {
        self.lies.learnt(Source::Planet(planet), Newer::Gone(*node));
        if let Some(departed) = self.departed.get_mut(node) {
            departed.told.insert(planet);
        }
    }

    /// Departures, to be stored, in the order in which they were heard.
    pub fn departures(&self) -> impl Iterator<Item = &Signed<Departure>> {
        let mut all: Vec<&Departed> = self.departed.values().collect();
        all.sort_by_key(|departed| (departed.was_known, departed.order));
        all.into_iter().map(|departed| &departed.signed)
    }

    /// `count` departures of nodes that have not come back, those of members that were known here first,
    /// then what was heard last; without those that `planet`, if one is given, has said itself.
    #[must_use]
    pub fn last_departures(
        &self,
        count: usize,
        planet: Option<PlanetId>,
    ) -> Vec<Signed<Departure>> {
        let mut all: Vec<&Departed> = self
            .departed
            .iter()
            .filter(|(node, _)| !self.known.contains_key(*node))
            .map(|(_, departed)| departed)
            .filter(|departed| planet.is_none_or(|planet| !departed.told.contains(&planet)))
            .collect();
        // By the order of hearing: what a node says of its own time may be anything.
        all.sort_by_key(|departed| std::cmp::Reverse((departed.was_known, departed.order)));
        let first = all.into_iter().take(count);
        first.map(|departed| departed.signed.clone()).collect()
    }
}
