//! Storms at the planet: what a member says over its control connection.

use std::net::SocketAddr;

use anyhow::Result;
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::certificate::{Claim, Departure};
use podmesh_proto::key::SigningKey;
use podmesh_proto::limits::MAX_CANDIDATES;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage};
use podmesh_proto::signed::Signed;

use super::super::RogueMember;
use super::super::link::Link;
use super::source::anywhere_in;
use super::{Pace, Storm};
use crate::{clock, random};

/// The least port of a candidate that is tried.
const LEAST_PORT: u16 = 1_024;

impl RogueMember {
    pub(super) async fn bother_planet(&self, storm: &Storm, rate: u32) -> Result<()> {
        let mut pace = Pace::new(rate);
        loop {
            for _ in 0..pace.due().await {
                for message in self.next_of(storm).await? {
                    // Waits as soon as the planet takes no more.
                    self.says.send(message).await?;
                    self.storms.count("said", 1);
                }
            }
        }
    }

    /// Counts what the planet answers.
    pub(in super::super) fn tally(&self, message: &PlanetMessage) {
        match message {
            PlanetMessage::Claimed(_) => self.storms.count("receipted", 1),
            PlanetMessage::Refused(_) => self.storms.count("refused", 1),
            _ => {}
        }
    }

    async fn next_of(&self, storm: &Storm) -> Result<Vec<NodeMessage>> {
        Ok(match storm {
            Storm::Claims => vec![NodeMessage::Claim(self.next_claim()?)],
            Storm::Candidates { range, punch } => {
                let kind = if *punch {
                    CandidateKind::Reflexive
                } else {
                    CandidateKind::Host
                };
                let mut messages = vec![NodeMessage::Publish(self.anywhere(kind, *range)?)];
                if *punch {
                    let attempt = u32::try_from(self.whereabouts().sequence)?;
                    let peers = self.crowd().nodes();
                    let introduce = |peer| NodeMessage::Introduce { peer, attempt };
                    messages.extend(peers.into_iter().map(introduce));
                }
                messages
            }
            Storm::Departures => vec![NodeMessage::Leave(self.departure_of_nobody()?)],
            Storm::Memberships => {
                vec![NodeMessage::Membership(Box::new(self.membership.clone()))]
            }
            _ => {
                self.come_and_go().await?;
                Vec::new()
            }
        })
    }

    fn next_claim(&self) -> Result<Signed<Claim>> {
        let mut claim = self.membership.claim.unverified()?;
        let mut whereabouts = self.whereabouts();
        whereabouts.sequence += 1;
        claim.serial += whereabouts.sequence;
        Ok(Signed::seal(&claim, &self.keys.identity)?)
    }

    /// A departure that nobody can have heard of, far ahead of its time.
    pub(super) fn departure_of_nobody(&self) -> Result<Signed<Departure>> {
        let nobody = SigningKey::from_seed(random::bytes()?);
        let departure = Departure {
            network: self.network.id,
            node: nobody.node_id(),
            successions: Vec::new(),
            time: clock::now().plus(1 << 40),
        };
        Ok(Signed::seal(&departure, &nobody)?)
    }

    fn anywhere(&self, kind: CandidateKind, range: ipnet::IpNet) -> Result<Signed<EndpointRecord>> {
        let mut candidates = Vec::new();
        for _ in 0..MAX_CANDIDATES {
            let [high, low] = random::bytes()?;
            let port = u16::from_be_bytes([high, low]).max(LEAST_PORT);
            let endpoint = SocketAddr::new(anywhere_in(range)?, port);
            candidates.push(Candidate { kind, endpoint });
        }
        let mut whereabouts = self.whereabouts();
        whereabouts.sequence += 1;
        let record = EndpointRecord {
            network: self.network.id,
            node: self.keys.identity.node_id(),
            incarnation: self.incarnation,
            sequence: whereabouts.sequence,
            candidates,
            planets: self.network.planets.iter().map(|entry| entry.id).collect(),
        };
        Ok(Signed::seal(&record, &self.keys.identity)?)
    }

    async fn come_and_go(&self) -> Result<()> {
        let Some(planet) = self.network.planets.first() else {
            return Ok(());
        };
        let came = async {
            let mut link = Link::connect(planet).await?;
            link.hello(&self.keys, &self.network, Some(&self.membership))
                .await
        };
        let outcome = match came.await {
            Ok(_) => "greeted",
            Err(_) => "turned away",
        };
        self.storms.count(outcome, 1);
        Ok(())
    }
}
