//! What a planet does for its nodes, without any judgement.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};

use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Leases, Membership,
};
use podmesh_proto::id::{NodeId, RelayAddress};
use podmesh_proto::network::Network;
use podmesh_proto::planet_api::{
    DirectoryCursor, DirectoryRecord, DirectoryUpdate, NodeMessage, PlanetMessage, Refusal,
    RefusalCode, Welcome,
};
use podmesh_proto::relayed::{RelayGrant, RelayHeader, RelayKind, RelaySeal};
use podmesh_proto::renewal::{RenewalReceipt, RenewalRequest, Renewed};
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{Edition, Held, Statements};

use super::Keys;
use super::world::{DELAY, PLANET, World, address_of};
use crate::output::{PlanetEvent, Received};

struct Session {
    node: usize,
    seal: RelaySeal,
    sent: u64,
    endpoint: Option<SocketAddr>,
}

/// What a planet does for its nodes, without any judgement.
#[derive(Default)]
pub(super) struct PlanetStub {
    sessions: BTreeMap<u32, Session>,
    pub(super) connected: BTreeMap<usize, NodeId>,
    members: BTreeMap<NodeId, Membership>,
    receipts: BTreeMap<NodeId, Signed<AdmissionReceipt>>,
    applications: BTreeMap<NodeId, Application>,
    log: Vec<DirectoryRecord>,
    /// Up to where each node knows the log.
    told: BTreeMap<usize, usize>,
    lives: u64,
    next: u8,
}

impl PlanetStub {
    /// It comes back with nothing.
    pub(super) fn next_life(&self) -> Self {
        Self {
            lives: self.lives + 1,
            ..Self::default()
        }
    }
}

impl World {
    pub(super) fn planet_event(&mut self, node: usize, event: PlanetEvent) {
        let planet = self.authority.planet.planet_id();
        let now = self.now_of(node);
        self.engines[node].handle_planet(planet, event, now);
        self.drain(node);
    }

    pub(crate) fn planet_says(&mut self, node: usize, message: PlanetMessage) {
        self.planet_event(node, PlanetEvent::Message(Box::new(message)));
    }

    pub(super) fn planet_hears(&mut self, node: usize, message: NodeMessage) {
        if !self.planet_alive {
            return;
        }
        let id = self.engines[node].node_id();
        match message {
            NodeMessage::Hello(hello) => {
                self.planet.connected.insert(node, id);
                let cursor = self.cursor();
                let told = hello.cursor.filter(|known| known.epoch == cursor.epoch);
                let told = told.map_or(0, |known| usize::try_from(known.version).unwrap());
                self.planet.told.insert(node, told);
                if let Some(membership) = hello.membership {
                    self.planet.members.insert(id, *membership);
                }
                self.greet(node);
            }
            NodeMessage::Join(application) => self.admit(node, *application),
            NodeMessage::Claim(claim) => self.receipt_claim(node, &claim),
            NodeMessage::Publish(record) => self.tell_all(DirectoryRecord::Endpoints(record)),
            NodeMessage::Introduce { peer, attempt } => self.introduce((node, id), peer, attempt),
            NodeMessage::Statement(statement) => {
                let others: Vec<usize> = self.planet.connected.keys().copied().collect();
                for other in others.into_iter().filter(|other| *other != node) {
                    self.planet_says(other, PlanetMessage::Statement(statement.clone()));
                }
            }
            NodeMessage::Held(held) => {
                let nothing = |held: Held| Held {
                    ids: Vec::new(),
                    ..held
                };
                let held = held.into_iter().filter(|held| !held.ids.is_empty());
                let held = held.map(nothing).collect();
                self.planet_says(node, PlanetMessage::Held(held));
            }
            NodeMessage::Statements(statements) => {
                for statement in statements {
                    self.planet_hears(node, NodeMessage::Statement(Box::new(statement)));
                }
            }
            NodeMessage::Leave(_) if self.busy_to_leave > 0 => {
                self.busy_to_leave -= 1;
                self.refuse(node, RefusalCode::Busy, "no time");
            }
            NodeMessage::Leave(departure) => {
                let gone = departure.unverified().unwrap().node;
                self.notes.push(format!("left {}", gone.short()));
                self.planet.members.remove(&gone);
                self.tell_all(DirectoryRecord::Left(departure));
            }
            NodeMessage::Report { memberships } => {
                self.notes.push(format!("report {}", memberships.len()));
            }
            NodeMessage::Renew(request) => self.renew(node, *request),
            NodeMessage::Membership(membership) if self.planet_learns => {
                self.tell_all(DirectoryRecord::Member(membership));
            }
            NodeMessage::Membership(_) | NodeMessage::Heartbeat => {}
        }
    }

    fn introduce(&mut self, (node, id): (usize, NodeId), peer: NodeId, attempt: u32) {
        let other = self.planet.connected.iter().find(|(_, id)| **id == peer);
        let Some((&other, _)) = other else {
            return;
        };
        let fire_in = DELAY;
        for (at, peer) in [(node, peer), (other, id)] {
            self.planet_says(
                at,
                PlanetMessage::Punch {
                    peer,
                    attempt,
                    fire_in,
                },
            );
        }
    }

    fn renew(&mut self, node: usize, request: RenewalRequest) {
        self.notes.push(format!("renew {node}"));
        if self.planet_silent {
            return;
        }
        let id = self.engines[node].node_id();
        let receipt = RenewalReceipt {
            network: self.authority.network.id,
            planet: self.authority.planet.planet_id(),
            node: id,
            renewal: request.renewal.hash(),
            time: self.now.unix,
        };
        let receipt = Signed::seal(&receipt, &self.authority.planet).unwrap();
        let renewed = Renewed {
            request,
            receipt: receipt.clone(),
        };
        let membership = Membership {
            renewed: Some(Box::new(renewed)),
            ..self.planet.members[&id].clone()
        };
        if let Err(error) = membership.verify(&self.authority.network, self.now.unix) {
            let refusal = Refusal {
                code: RefusalCode::Unproven,
                reason: error.to_string(),
                retry_in: None,
            };
            return self.planet_says(node, PlanetMessage::NotRenewed(refusal));
        }
        self.planet.members.insert(id, membership.clone());
        self.planet_says(node, PlanetMessage::Renewed(receipt));
        self.tell_all(DirectoryRecord::Member(Box::new(membership)));
    }

    /// The planet's books have this.
    pub(crate) fn planet_took(&mut self, membership: Membership) {
        let certificate = membership.application.certificate.unverified();
        let node = certificate.unwrap().node;
        self.planet.members.insert(node, membership);
    }

    /// Node `node` takes the keys of number `to`, as its shell would.
    pub(crate) fn rotate(&mut self, node: usize, to: u8) {
        let number = self.keys[node];
        self.next.insert(number, to);
        let now = self.now;
        let keys = Keys::moved(number, to);
        self.engines[node].handle_rotation(keys, now).unwrap();
        self.drain(node);
    }

    fn greet(&mut self, node: usize) {
        let id = self.engines[node].node_id();
        let member = self.planet.members.contains_key(&id);
        let relay = member.then(|| {
            let session = u32::try_from(self.order).unwrap() + 1;
            self.order += 1;
            let key = [u8::try_from(session % 251).unwrap(); 32];
            let seal = RelaySeal::new(&key);
            self.planet
                .sessions
                .retain(|_, session| session.node != node);
            self.planet.sessions.insert(
                session,
                Session {
                    node,
                    seal,
                    sent: 0,
                    endpoint: None,
                },
            );
            RelayGrant { session, key }
        });
        let cursor = self.cursor();
        self.planet_says(
            node,
            PlanetMessage::Welcome(Welcome {
                planet: self.authority.planet.planet_id(),
                observed: SocketAddr::new(address_of(self.keys[node]), 9_999),
                relay,
                time: self.now.unix,
                cursor,
            }),
        );
        if member {
            let summary = Statements::default().summary(Edition::default());
            self.planet_says(node, PlanetMessage::Summary(summary));
            let told = self.planet.told.get(&node).copied().unwrap_or(0);
            let records = self.planet.log.iter().skip(told).cloned().collect();
            self.planet_says(
                node,
                PlanetMessage::Directory(DirectoryUpdate {
                    cursor,
                    from_start: told == 0,
                    records,
                }),
            );
            self.tell_all(DirectoryRecord::Presence {
                node: id,
                online: true,
            });
        }
    }

    fn cursor(&self) -> DirectoryCursor {
        DirectoryCursor {
            epoch: 7 + self.planet.lives,
            version: u64::try_from(self.planet.log.len()).unwrap(),
        }
    }

    pub(crate) fn tell_all(&mut self, record: DirectoryRecord) {
        self.planet.log.push(record.clone());
        let cursor = self.cursor();
        let nodes: Vec<usize> = self.planet.connected.keys().copied().collect();
        for node in nodes {
            let id = self.engines[node].node_id();
            let own = matches!(&record, DirectoryRecord::Endpoints(signed)
                if signed.unverified().is_ok_and(|said| said.node == id));
            if self.planet.members.contains_key(&id) && !own {
                let update = DirectoryUpdate {
                    cursor,
                    from_start: false,
                    records: vec![record.clone()],
                };
                self.planet_says(node, PlanetMessage::Directory(update));
            }
        }
    }

    fn refuse(&mut self, node: usize, code: RefusalCode, reason: &str) {
        let refusal = Refusal {
            code,
            reason: reason.to_owned(),
            retry_in: None,
        };
        self.planet_says(node, PlanetMessage::Refused(refusal));
    }

    fn admit(&mut self, node: usize, application: Application) {
        let id = self.engines[node].node_id();
        let left = format!("left {}", id.short());
        if self.names_are_held && !self.notes.contains(&left) {
            return self.refuse(node, RefusalCode::Conflict, "a member has the name");
        }
        let (grant, certificate) = application.verify(&self.authority.network).unwrap();
        self.planet.next += 1;
        let number = self.planet.next;
        let receipt = AdmissionReceipt {
            network: grant.network,
            planet: self.authority.planet.planet_id(),
            token: grant.token,
            use_number: u32::from(number),
            node: id,
            name: certificate.name,
            certificate: application.certificate.hash(),
            leases: Leases {
                overlay4: Some(Ipv4Addr::new(10, 77, 0, number)),
                pods4: Some(Ipv4Net::new(Ipv4Addr::new(10, 42, number, 0), 24).unwrap()),
                pods6: Some(pods6(&self.authority.network, number)),
            },
            sequence: u64::from(number) * 2,
            time: self.now.unix,
        };
        let receipt = Signed::seal(&receipt, &self.authority.planet).unwrap();
        self.planet.receipts.insert(id, receipt.clone());
        self.planet.applications.insert(id, application);
        self.planet_says(node, PlanetMessage::Admitted(receipt));
    }

    fn receipt_claim(&mut self, node: usize, claim: &Signed<Claim>) {
        let id = self.engines[node].node_id();
        let sequence = u64::from(self.planet.next) * 2 + 1;
        let receipt = ClaimReceipt {
            network: self.authority.network.id,
            planet: self.authority.planet.planet_id(),
            node: id,
            claim: claim.hash(),
            settles: Vec::new(),
            sequence,
            time: self.now.unix,
        };
        let claim_receipt = Signed::seal(&receipt, &self.authority.planet).unwrap();
        let membership = Membership {
            application: self.planet.applications[&id].clone(),
            receipt: self.planet.receipts[&id].clone(),
            claim: claim.clone(),
            claim_receipt: claim_receipt.clone(),
            renewed: None,
        };
        self.planet.members.insert(id, membership.clone());
        self.planet_says(node, PlanetMessage::Claimed(claim_receipt));
        self.tell_all(DirectoryRecord::Member(Box::new(membership)));
        self.greet(node);
    }

    pub(super) fn planet_receives(&mut self, received: &Received) {
        if !self.planet_alive {
            return;
        }
        let header = RelayHeader::parse(&received.bytes).unwrap();
        let Some(session) = self.planet.sessions.get_mut(&header.session) else {
            return;
        };
        let payload = session.seal.open(&header, &received.bytes).unwrap();
        session.endpoint = Some(received.from);
        let (from, mut bytes) = (session.node, Vec::new());
        if header.kind == RelayKind::Observe {
            let (id, counter) = (header.session, header.counter);
            session
                .seal
                .formerly_observed(id, counter, received.from, &mut bytes);
            self.send(received.from, PLANET.parse().unwrap(), bytes);
            return;
        }
        let peer: RelayAddress = self.engines[from].node_id().relay_address();
        let ids: Vec<RelayAddress> = self
            .engines
            .iter()
            .map(|engine| engine.node_id().relay_address())
            .collect();
        let target =
            self.planet.sessions.iter_mut().find(|(_, session)| {
                ids[session.node] == header.peer && session.endpoint.is_some()
            });
        if let Some((id, session)) = target {
            let (kind, counter) = (RelayKind::Down, session.sent);
            session.sent += 1;
            let down = RelayHeader {
                kind,
                session: *id,
                counter,
                peer,
            };
            session.seal.seal(&down, payload, &mut bytes);
            let to = session.endpoint.unwrap();
            self.send(to, PLANET.parse().unwrap(), bytes);
        }
    }
}

fn pods6(network: &Network, number: u8) -> Ipv6Net {
    let mut octets = network.ranges.pods6.network().octets();
    octets[7] = number;
    Ipv6Net::new(octets.into(), 64).unwrap()
}
