//! What a node may call its own: judges a claim and writes its receipt.

use std::net::IpAddr;

use ipnet::IpNet;
use podmesh_proto::certificate::{Claim, ClaimReceipt};
use podmesh_proto::id::NodeId;
use podmesh_proto::planet_api::{Refusal, RefusalCode};
use podmesh_proto::signed::Signed;

use crate::rules::admission::Court;
use crate::rules::leases::overlap;
use crate::rules::numbers::Numbers;
use crate::rules::records::{Change, ReceiptedClaim, Record, RecordKey};
use crate::rules::refusal::refuse;

/// Ranges of settled numbers that one receipt may name; the rest waits for the next receipt.
const MAX_SETTLED: usize = 256;

/// A decision in favour of a claim.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// To be committed before the receipt leaves; empty when the node only asks again.
    pub(crate) changes: Vec<Change>,
    /// The answer.
    pub(crate) receipt: Signed<ClaimReceipt>,
}

impl Court<'_> {
    /// Judges the claim that `node` (proven by its connection) hands in.
    pub(crate) fn claim(
        &self,
        node: &NodeId,
        signed: &Signed<Claim>,
        granting: Result<(), Refusal>,
    ) -> Result<Claimed, Refusal> {
        let entry = self.books.entry(node).filter(|_| !self.books.is_out(node));
        let entry = entry.ok_or_else(|| {
            refuse(
                RefusalCode::NotMember,
                "this node was not admitted; join first",
            )
        })?;
        let claim = signed
            .verify(&entry.identity(), "the node")
            .map_err(|error| refuse(RefusalCode::Unproven, error))?;
        if claim.node != *node || claim.network != self.books.network.id {
            let reason = "the claim belongs to another node or network";
            return Err(refuse(RefusalCode::Unproven, reason));
        }
        if let Some((kept, known, _)) = &entry.claim {
            if kept.claim.hash() == signed.hash() && entry.member.is_some() {
                return Ok(Claimed {
                    changes: Vec::new(),
                    receipt: kept.receipt.clone(),
                });
            }
            if claim.serial <= known.serial {
                let reason = format!(
                    "this node has made claim {} before, and this one is {}: its disk or its clock has gone back; join \
                     again when the clock is right",
                    known.serial, claim.serial
                );
                return Err(refuse(RefusalCode::Invalid, reason));
            }
        }
        claim
            .within(&self.books.network, &entry.grant)
            .map_err(|error| refuse(RefusalCode::Invalid, error))?;
        granting?;
        self.free(node, &claim)?;
        self.receipt(node, signed)
    }

    fn free(&self, node: &NodeId, claim: &Claim) -> Result<(), Refusal> {
        let overlay4 = claim
            .overlay4
            .map(|address| IpNet::from(IpAddr::V4(address)));
        let wanted: Vec<IpNet> = overlay4
            .into_iter()
            .chain(claim.pod_cidrs.iter().copied())
            .collect();
        let services = &self.books.network.ranges.services;
        for prefix in &wanted {
            if let Some(service) = services.iter().find(|range| overlap(range, prefix)) {
                let reason = format!("{prefix} overlaps the service range {service}");
                return Err(refuse(RefusalCode::Conflict, reason));
            }
        }
        let own = |other: &NodeId| other == node;
        for (holder, taken) in self.books.taken(own) {
            if let Some(prefix) = wanted.iter().find(|prefix| overlap(prefix, &taken)) {
                let reason = format!("{prefix} overlaps {taken} of {holder}");
                return Err(refuse(RefusalCode::Conflict, reason));
            }
        }
        Ok(())
    }

    fn receipt(&self, node: &NodeId, signed: &Signed<Claim>) -> Result<Claimed, Refusal> {
        let mut settled = Numbers::default();
        settled.add_all(self.books.loose().iter().copied());
        if let Some((_, _, former)) = self
            .books
            .entry(node)
            .and_then(|entry| entry.claim.as_ref())
        {
            settled.add(former.sequence, former.sequence);
            settled.add_all(former.settles.iter().copied());
        }
        let mut settles: Vec<(u64, u64)> = settled.ranges().collect();
        let rest = settles.split_off(settles.len().min(MAX_SETTLED));
        let receipt = ClaimReceipt {
            network: self.books.network.id,
            planet: self.key.planet_id(),
            node: *node,
            claim: signed.hash(),
            sequence: self.next_number()?,
            settles,
            time: self.now,
        };
        let receipt = Signed::seal(&receipt, self.key)
            .map_err(|error| refuse(RefusalCode::Invalid, error))?;
        let loose = if rest.is_empty() {
            Change::Remove(RecordKey::Loose)
        } else {
            Change::Put(Record::Loose(rest))
        };
        let kept = ReceiptedClaim {
            claim: signed.clone(),
            receipt: receipt.clone(),
        };
        let mut changes = vec![loose, Change::Put(Record::Claim(Box::new(kept)))];
        // Until here the node may have to hear that what it was before is over: its disk may have gone back.
        if self.books.departure(node).is_some() {
            changes.push(Change::Remove(RecordKey::Departure(*node)));
        }
        Ok(Claimed { changes, receipt })
    }
}
