//! Who has left, by its own word.

use std::collections::BTreeSet;

use podmesh_proto::certificate::Departure;
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::{NodeId, PlanetId};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use super::Members;
use crate::limits;

/// A node's word that it has left.
#[derive(Debug, Clone)]
pub(super) struct Departed {
    pub(super) time: UnixSeconds,
    signed: Signed<Departure>,
    /// Planets that have said it themselves, and need not be told.
    told: BTreeSet<PlanetId>,
}

/// What became of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// A member is gone.
    News,
    /// Known, or of a node that was never seen here: nothing follows from it.
    Nothing,
    /// The node has come back since it said so.
    Over,
}

impl Members {
    /// Takes a node's own word that it has left.
    ///
    /// # Errors
    /// It isn't the node's word.
    pub fn depart(&mut self, signed: &Signed<Departure>) -> Result<Parting, CertificateError> {
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
        let strange = since.is_none() && !self.quarantine.has(&departure.node);
        if strange && self.departed.len() >= limits::MAX_STRANGE_DEPARTURES {
            return Ok(Parting::Nothing);
        }
        let known = self.departed.get(&departure.node);
        if known.is_some_and(|known| known.time >= departure.time) {
            return Ok(Parting::Nothing);
        }
        let entry = Departed {
            time: departure.time,
            signed: signed.clone(),
            told: BTreeSet::new(),
        };
        self.departed.insert(departure.node, entry);
        self.remove(&departure.node);
        Ok(if strange {
            Parting::Nothing
        } else {
            Parting::News
        })
    }

    /// Notes that a planet has said itself that this node has left.
    pub fn planet_knows_departure(&mut self, planet: PlanetId, node: &NodeId) {
        if let Some(departed) = self.departed.get_mut(node) {
            departed.told.insert(planet);
        }
    }

    /// Departures, to be stored.
    pub fn departures(&self) -> impl Iterator<Item = &Signed<Departure>> {
        self.departed.values().map(|departed| &departed.signed)
    }

    /// The last `count` departures of nodes that have not come back, the newest first; without those
    /// that `planet`, if one is given, has said itself.
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
        all.sort_by_key(|departed| std::cmp::Reverse(departed.time));
        let newest = all.into_iter().take(count);
        newest.map(|departed| departed.signed.clone()).collect()
    }
}
