//! What a stolen planet knows: what nodes show it when they connect.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Member, Membership, NodeCertificate,
};
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::limits::MAX_RECORDS_PER_UPDATE;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::planet_api::{DirectoryCursor, DirectoryRecord, DirectoryUpdate, PlanetMessage};
use podmesh_proto::signed::Signed;
use tokio::sync::mpsc::UnboundedSender;

use crate::clock;
use crate::knock::Door;

/// Everything that was harvested, and the way to everybody who listens.
pub(super) struct Books {
    pub(super) network: Network,
    pub(super) members: BTreeMap<NodeId, Membership>,
    /// Every chain that ever came by, oldest first.
    pub(super) seen: Vec<Membership>,
    /// Nodes that were let in and have yet to claim.
    admitted: BTreeMap<NodeId, (Application, Signed<AdmissionReceipt>)>,
    endpoints: BTreeMap<NodeId, Signed<EndpointRecord>>,
    listeners: BTreeMap<NodeId, UnboundedSender<PlanetMessage>>,
    /// What the root said and this planet told nobody.
    pub(super) withheld: Vec<Signed<RootStatement>>,
    epoch: u64,
    version: u64,
    pub(super) sequence: u64,
}

impl Books {
    pub(super) fn new(network: Network, epoch: u64) -> Self {
        Self {
            network,
            members: BTreeMap::new(),
            seen: Vec::new(),
            admitted: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            listeners: BTreeMap::new(),
            withheld: Vec::new(),
            epoch,
            version: 1,
            sequence: 0,
        }
    }

    /// The directory's present state.
    pub(super) fn cursor(&self) -> DirectoryCursor {
        DirectoryCursor {
            epoch: self.epoch,
            version: self.version,
        }
    }

    /// Somebody connected; everybody learns of it, and it learns of everybody.
    pub(super) fn connected(&mut self, node: NodeId, listener: UnboundedSender<PlanetMessage>) {
        let all: Vec<DirectoryRecord> = self
            .members
            .keys()
            .filter(|other| **other != node)
            .flat_map(|other| self.records_of(other))
            .collect();
        self.version += 1;
        for message in self.updates(&all, true) {
            // A listener that is gone is taken off when its connection ends.
            let _ = listener.send(message);
        }
        self.listeners.insert(node, listener);
        let news = self.records_of(&node);
        self.tell_except(&[node], &news);
    }

    /// Somebody's connection ended, unless it has a newer one.
    pub(super) fn disconnected(&mut self, node: NodeId, listener: &UnboundedSender<PlanetMessage>) {
        if self
            .listeners
            .get(&node)
            .is_some_and(|present| present.same_channel(listener))
        {
            self.listeners.remove(&node);
        }
    }

    /// Takes a chain, if it holds. Who reports an older one, as nodes do when they connect, doesn't
    /// undo what a lie has put in its place.
    pub(super) fn harvest(&mut self, membership: &Membership) {
        let Ok(member) = membership.verify(&self.network, clock::now()) else {
            return;
        };
        self.sequence = self.sequence.max(member.sequence);
        if !self.seen.contains(membership) {
            self.seen.push(membership.clone());
        }
        let age = |member: &Member| (member.renewal, member.serial);
        let known = self.members.get(&member.node);
        let known = known.and_then(|known| known.prove(&self.network).ok());
        if known.is_none_or(|known| age(&known) <= age(&member)) {
            self.members.insert(member.node, membership.clone());
        }
    }

    /// A node was let in.
    pub(super) fn admitted(
        &mut self,
        node: NodeId,
        application: Application,
        receipt: Signed<AdmissionReceipt>,
    ) {
        self.admitted.insert(node, (application, receipt));
    }

    /// A node's claim was receipted: everybody learns of the whole chain.
    pub(super) fn claimed(
        &mut self,
        node: NodeId,
        claim: Signed<Claim>,
        claim_receipt: Signed<ClaimReceipt>,
    ) {
        let known = self.members.get(&node);
        let known = known.map(|known| (known.application.clone(), known.receipt.clone()));
        let Some((application, receipt)) = self.admitted.remove(&node).or(known) else {
            return;
        };
        let membership = Membership {
            application,
            receipt,
            claim,
            claim_receipt,
            renewed: None,
        };
        self.harvest(&membership);
        let news = self.records_of(&node);
        self.tell_except(&[node], &news);
    }

    /// Takes a node's endpoints and passes them on.
    pub(super) fn published(&mut self, node: NodeId, record: Signed<EndpointRecord>) {
        self.endpoints.insert(node, record.clone());
        self.tell_except(&[node], &[DirectoryRecord::Endpoints(record)]);
    }

    /// Tells both ends of a pair to punch.
    pub(super) fn introduce(&mut self, node: NodeId, peer: NodeId, attempt: u32) {
        for (to, with) in [(node, peer), (peer, node)] {
            self.say(
                &to,
                PlanetMessage::Punch {
                    peer: with,
                    attempt,
                    fire_in: Duration::from_millis(50),
                },
            );
        }
    }

    /// Sends a message to one node.
    pub(super) fn say(&self, node: &NodeId, message: PlanetMessage) {
        if let Some(listener) = self.listeners.get(node) {
            let _ = listener.send(message);
        }
    }

    /// Tells records to everybody but some; gives the names of those who were told.
    pub(super) fn tell_except(
        &mut self,
        except: &[NodeId],
        records: &[DirectoryRecord],
    ) -> Vec<String> {
        self.version += 1;
        let messages = self.updates(records, false);
        let told = self
            .listeners
            .iter()
            .filter(|(node, _)| !except.contains(node));
        told.map(|(node, listener)| {
            for message in &messages {
                let _ = listener.send(message.clone());
            }
            self.name_of(node)
        })
        .collect()
    }

    /// Says something that is no directory record to everybody.
    pub(super) fn announce(&self, message: &PlanetMessage) -> Vec<String> {
        self.listeners
            .iter()
            .map(|(node, listener)| {
                let _ = listener.send(message.clone());
                self.name_of(node)
            })
            .collect()
    }

    /// The newest chain of the member with this name.
    pub(super) fn member(&self, name: &Name) -> Result<&Membership> {
        self.members
            .values()
            .find(|member| certificate(member).is_ok_and(|found| found.name == *name))
            .with_context(|| format!("no member {name} was harvested"))
    }

    /// Everybody but the accomplice who is connected, and where they might be.
    pub(super) fn doors(&self, accomplice: Option<NodeId>) -> Vec<Door> {
        let connected = self.listeners.keys();
        connected
            .filter(|node| Some(**node) != accomplice)
            .filter_map(|node| {
                let certificate = certificate(self.members.get(node)?).ok()?;
                let record = self.endpoints.get(node)?.unverified().ok()?;
                let candidates = record.candidates.iter();
                Some((
                    certificate,
                    candidates.map(|candidate| candidate.endpoint).collect(),
                ))
            })
            .collect()
    }

    /// Names of those who listen.
    pub(super) fn listeners(&self) -> Vec<String> {
        self.listeners
            .keys()
            .map(|node| self.name_of(node))
            .collect()
    }

    /// A node's newest record of endpoints.
    pub(super) fn endpoints_of(&self, node: &NodeId) -> Option<&Signed<EndpointRecord>> {
        self.endpoints.get(node)
    }

    fn name_of(&self, node: &NodeId) -> String {
        let certificate = self.members.get(node).map(certificate);
        match certificate {
            Some(Ok(certificate)) => certificate.name.to_string(),
            _ => node.short(),
        }
    }

    fn records_of(&self, node: &NodeId) -> Vec<DirectoryRecord> {
        let member = self.members.get(node).cloned();
        let member = member.map(|member| DirectoryRecord::Member(Box::new(member)));
        let endpoints = self.endpoints.get(node).cloned();
        let endpoints = endpoints.map(DirectoryRecord::Endpoints);
        let presence = DirectoryRecord::Presence {
            node: *node,
            online: self.listeners.contains_key(node),
        };
        member
            .into_iter()
            .chain(endpoints)
            .chain([presence])
            .collect()
    }

    fn updates(&self, records: &[DirectoryRecord], from_start: bool) -> Vec<PlanetMessage> {
        let cursor = self.cursor();
        // Chains are long: fewer of them than a message may have at most.
        let mut parts: Vec<&[DirectoryRecord]> =
            records.chunks(MAX_RECORDS_PER_UPDATE / 2).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        (0..)
            .zip(parts)
            .map(|(number, records)| {
                PlanetMessage::Directory(DirectoryUpdate {
                    cursor,
                    from_start: from_start && number == 0,
                    records: records.to_vec(),
                })
            })
            .collect()
    }
}

/// A chain's certificate, whoever signed it.
pub(super) fn certificate(membership: &Membership) -> Result<NodeCertificate> {
    Ok(membership.application.certificate.unverified()?)
}

/// A chain's claim, whoever signed it.
pub(super) fn claim(membership: &Membership) -> Result<Claim> {
    Ok(membership.claim.unverified()?)
}
