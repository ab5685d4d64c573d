//! Coming back from disk, and going there.

use std::sync::atomic::Ordering;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::certificate::Membership;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::renewal::{RenewalRequest, identities};
use podmesh_proto::time::Now;

use crate::engine::Engine;
use crate::error::StartError;
use crate::join::Join;
use crate::limits;
use crate::membership::lies::Source;
use crate::membership::{Learned, Members};
use crate::mutation::{self, Mutant};
use crate::output::Output;
use crate::path_id::SocketId;
use crate::publishing::Witness;
use crate::stored::{ActivePath, CachedPath, STORED_VERSION, StoredState};

impl Engine {
    /// Takes up the last life of this node.
    pub(super) fn restore(&mut self, mut stored: StoredState, now: Now) -> Result<(), StartError> {
        if stored.version > STORED_VERSION {
            return Err(StartError::Version {
                found: stored.version,
                supported: STORED_VERSION,
            });
        }
        self.claim_serial = stored.claim_serial;
        let floor = if mutation::is(Mutant::FloorIgnored) {
            0
        } else {
            stored.incarnation_floor.saturating_add(1)
        };
        self.incarnation = now.unix.0.max(floor);
        for (socket, endpoint) in stored.reflexive.drain(..) {
            self.endpoints.saw(Witness::Disk, socket, endpoint);
        }
        // Those of a node that was put out are what it knows of others, too.
        if stored.network.is_none() || stored.joining.is_some() {
            self.left = stored.departures.pop();
        }
        let Some(statement) = stored.network.clone() else {
            return Ok(());
        };
        let network = Network::from_statement(&statement).map_err(StartError::Network)?;
        if let Some(membership) = &stored.membership {
            self.recognise(membership, &network, stored.renewing.as_ref())?;
        }
        let me = self.node_id();
        self.renewing.request = stored.renewing.take();
        // One that is asked for by old keys is from before they were to change: the disk has gone back.
        let asks = self.renewing.request.as_ref();
        let asks = asks.is_some_and(|request| self.asks_for_next(request));
        self.renewing.resumes = !asks && !mutation::is(Mutant::RotationForgotten);
        self.planets.set(&network.planets);
        self.outputs
            .push_back(Output::Planets(network.planets.clone()));
        // Who has a network, and neither a membership nor a join, was put out by the root.
        if stored.membership.is_some() || stored.joining.is_none() {
            let members = Members::new(network, statement, me);
            self.members = Some(self.recall(members, &mut stored, now));
            self.adopt_stored_keys();
            self.dirty = true;
            self.trust_changed(now);
        } else if let Some(joining) = stored.joining.take() {
            self.join = Join::resume(statement, joining).ok();
        }
        // The first plan has what each path carried last: until a smaller MTU is found it is right, and what
        // senders learn from a plan without it they remember for minutes.
        self.follow_members(now);
        self.recall_paths(&stored);
        self.settle(now);
        self.recall_endpoints(&stored, now);
        Ok(())
    }

    /// Whether the stored membership is this node's: one of its identities, or the one that takes the
    /// last one's place, is its key.
    fn recognise(
        &mut self,
        membership: &Membership,
        network: &Network,
        pending: Option<&RenewalRequest>,
    ) -> Result<(), StartError> {
        let Ok(certificate) = membership.application.certificate.unverified() else {
            return Ok(());
        };
        let newest = membership.prove(network).map(|member| member.identity());
        let newest = newest.unwrap_or(certificate.node.into());
        let pending = pending.and_then(|request| {
            let steps = identities(network.id, certificate.node, &request.successions);
            steps.ok()?.last().copied()
        });
        let next = self.config.next.as_ref().map(|keys| keys.identity.public());
        let mine = self.config.keys.identity.public();
        if mine != newest && pending != Some(mine) && next != Some(newest) {
            return Err(StartError::OtherNode);
        }
        self.node = certificate.node;
        Ok(())
    }

    fn recall(&self, mut members: Members, stored: &mut StoredState, now: Now) -> Members {
        let (external, others): (Vec<_>, Vec<_>) = stored
            .statements
            .iter()
            .partition(|one| matches!(one.unverified(), Ok(RootStatement::External(_))));
        let apply = |members: &mut Members, statements: Vec<_>| {
            for statement in statements {
                if let Err(error) = members.apply(statement, Source::Disk, now.unix) {
                    tracing::debug!(%error, "a stored statement doesn't hold");
                }
            }
        };
        apply(&mut members, others);
        for departure in &stored.departures {
            if let Err(error) = members.depart(departure, Source::Disk, now.unix) {
                tracing::debug!(%error, "a stored departure doesn't hold");
            }
        }
        let own = stored.membership.take();
        for membership in own.into_iter().chain(stored.members.drain(..)) {
            if members.learn(membership, Source::Disk, now.unix) == Learned::Refused {
                tracing::debug!("a stored membership doesn't hold any more");
            }
        }
        // Members are pinned: an external peer that collides with one did so before the restart.
        apply(&mut members, external);
        // Those that collided before the restart collide again, and none of them is first.
        members.start_batch();
        for membership in stored.quarantined.drain(..) {
            members.learn(membership, Source::Disk, now.unix);
        }
        members.start_batch();
        members.expire(now.unix);
        members
    }

    fn recall_paths(&mut self, stored: &StoredState) {
        for cached in &stored.paths {
            if let Some(peer) = self.peers.known_mut(&cached.node) {
                peer.cached.push((cached.socket, cached.endpoint));
            }
        }
        for active in &stored.active {
            if let Some(peer) = self.peers.known_mut(&active.node) {
                let most = u16::try_from(self.config.mtu).unwrap_or(u16::MAX);
                peer.mtu = active.mtu.min(most).max(limits::MIN_MTU);
                peer.former = Some(*active);
                let resumes = active.direct && !peer.cached.is_empty();
                peer.link.resumes.store(resumes, Ordering::Relaxed);
            }
        }
    }

    fn recall_endpoints(&mut self, stored: &StoredState, now: Now) {
        let Some(network) = self.members.as_ref().map(|members| members.network().id) else {
            return;
        };
        for signed in &stored.endpoints {
            let identity = self.members.as_ref().zip(signed.unverified().ok());
            let identity = identity.map(|(members, claimed)| members.identity_of(&claimed.node));
            if let Some(identity) = identity
                && let Ok(record) = EndpointRecord::verify(signed, network, &identity)
            {
                self.take_record(record, signed.clone(), now);
            }
        }
        let awake: Vec<_> = self
            .peers
            .nodes()
            .filter(|peer| peer.paths.is_some() && !peer.cached.is_empty())
            .map(|peer| (peer.member.node, peer.cached.clone()))
            .collect();
        for (node, cached) in awake {
            self.with_paths(&node, now, |paths| paths.set_cached(&cached, now));
        }
    }

    /// Everything that the next life needs.
    pub(super) fn stored_state(&self) -> StoredState {
        let mut stored = StoredState {
            version: STORED_VERSION,
            network: self.network_statement(),
            joining: self.join.as_ref().map(Join::stored),
            claim_serial: self.claim_serial,
            incarnation_floor: self.latest_life(),
            reflexive: self.endpoints.reflexive(),
            departures: self.left.clone().into_iter().collect(),
            renewing: self.renewing.request.clone(),
            ..StoredState::default()
        };
        let Some(members) = &self.members else {
            return stored;
        };
        let me = self.node_id();
        stored.membership = members.own().map(|own| (*own.membership).clone());
        let others = members.all().filter(|known| known.member.node != me);
        stored.members = others.map(|known| (*known.membership).clone()).collect();
        let quarantined = members.quarantined_memberships();
        stored.quarantined = quarantined.map(|one| (**one).clone()).collect();
        let statements = members.statements().iter();
        stored.statements = statements.map(|(_, kept)| kept.signed.clone()).collect();
        stored.departures = members.departures().cloned().collect();
        let records = self
            .peers
            .all_known()
            .filter_map(|peer| peer.record.as_ref());
        stored.endpoints = records.map(|(_, signed)| signed.clone()).collect();
        stored.paths = self.last_good_paths();
        stored.active = self.active_paths();
        stored
    }

    fn active_paths(&self) -> Vec<ActivePath> {
        let nodes = self.peers.all_known();
        let active = nodes.filter_map(|peer| {
            let Some(path) = peer.link.lock().path else {
                // A life that ends before it has found one knows no better.
                return peer.former;
            };
            Some(ActivePath {
                node: peer.member.node,
                mtu: peer.mtu,
                direct: path.is_direct(),
            })
        });
        active.collect()
    }

    fn last_good_paths(&self) -> Vec<CachedPath> {
        let mut all = Vec::new();
        for peer in self.peers.all_known() {
            let good: Vec<(SocketId, _)> = peer
                .paths
                .as_ref()
                .map_or_else(|| peer.cached.clone(), |paths| paths.last_good());
            all.extend(good.into_iter().map(|(socket, endpoint)| CachedPath {
                node: peer.member.node,
                socket,
                endpoint,
            }));
        }
        all
    }
}
