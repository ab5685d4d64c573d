//! News that members tell each other through their tunnels, for the time when planets can't.

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::NodeId;
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Now;

use crate::control::ControlMessage;
use crate::engine::Engine;
use crate::limits;
use crate::membership::Members;
use crate::membership::lies::Source;
use crate::mutation::{self, Mutant};

impl Engine {
    /// Tells a peer, whose path has just come up, what it may have missed.
    pub(super) fn greet_peer(&mut self, node: &NodeId, now: Now) {
        // Who missed the renewal would let this node go at the end of its former life.
        if let Some(message) = self.own_renewal() {
            self.send_control(node, &message, now);
        }
        if let Some((_, signed)) = self.record.clone() {
            let message = ControlMessage::Endpoints(Box::new(signed));
            self.send_control(node, &message, now);
        }
        let Some(members) = &self.members else {
            return;
        };
        let few = limits::GOSSIP_FANOUT;
        let statements = members
            .pressing_statements(limits::MAX_GREETING)
            .into_iter();
        let statements = statements.map(|one| ControlMessage::Statement(Box::new(one)));
        let departures = members.last_departures(few, None).into_iter();
        let departures = departures.map(|one| ControlMessage::Left(Box::new(one)));
        let many = members.statements().len() > limits::MAX_GREETING;
        let summary = self.own_summary().filter(|_| many);
        let news: Vec<ControlMessage> = statements.chain(departures).chain(summary).collect();
        for message in news {
            self.send_control(node, &message, now);
        }
    }

    pub(super) fn gossip_own_record(&mut self, now: Now) {
        let own = self.members.as_ref().and_then(Members::own);
        // Who doesn't know the identity that signs it takes nobody's word for it.
        if own.is_some_and(|own| own.member.identities.len() > 1)
            && let Some(message) = self.own_renewal()
        {
            self.gossip(&message, None, now);
        }
        if let Some((_, signed)) = self.record.clone() {
            let message = ControlMessage::Endpoints(Box::new(signed));
            self.gossip(&message, None, now);
        }
    }

    pub(super) fn gossip_statement(
        &mut self,
        statement: &Signed<RootStatement>,
        source: Source,
        now: Now,
    ) {
        let from = match source {
            Source::Member(node) => Some(node),
            _ => None,
        };
        let message = ControlMessage::Statement(Box::new(statement.clone()));
        self.gossip(&message, from, now);
    }

    /// Tells it to peers whose path is up, but not to `except`; where there are very many, to some:
    /// each of them tells it on.
    pub(super) fn gossip(&mut self, message: &ControlMessage, except: Option<NodeId>, now: Now) {
        let mut reachable: Vec<NodeId> = self
            .peers
            .nodes()
            .filter(|peer| Some(peer.member.node) != except)
            .filter(|peer| peer.session && peer.link.lock().path.is_some())
            .map(|peer| peer.member.node)
            .collect();
        while reachable.len() > limits::GOSSIP_FANOUT {
            let length = u64::try_from(reachable.len()).unwrap_or(u64::MAX);
            let victim = usize::try_from(self.random.number() % length).unwrap_or(0);
            reachable.swap_remove(victim);
        }
        for node in reachable {
            self.send_control(&node, message, now);
        }
    }

    /// News from a member.
    pub(super) fn heard_news(&mut self, from: NodeId, message: ControlMessage, now: Now) {
        match message {
            ControlMessage::Endpoints(signed) if self.has_record(&signed) => {}
            ControlMessage::Endpoints(signed) => {
                let Some(members) = &mut self.members else {
                    return;
                };
                match members.verify_record(&signed) {
                    Ok(record) => self.heard_record(from, record, *signed, now),
                    Err(_) if members.former_record(&signed).is_some() => {
                        self.heard_former(&signed, Source::Member(from), now);
                    }
                    Err(error) => {
                        members.doubt_record(Source::Member(from), &signed, &error, now.unix);
                    }
                }
            }
            ControlMessage::Statement(statement) => {
                self.take_statement(&statement, (Source::Member(from), true), now);
            }
            ControlMessage::Summary(summary) => self.member_summarized(from, *summary, now),
            ControlMessage::Held(held) => self.member_holds(from, &held, now),
            ControlMessage::Statements(told) => {
                for statement in &told {
                    self.take_statement(statement, (Source::Member(from), false), now);
                }
            }
            ControlMessage::Left(departure) => {
                self.take_departure(&departure, Source::Member(from), now);
            }
            ControlMessage::Renewed { node, renewed } => {
                self.heard_renewal(from, (node, renewed), now);
            }
            ControlMessage::LaterLife { incarnation } => self.outlived_for(&from, incarnation, now),
            ControlMessage::EchoRequest { .. }
            | ControlMessage::EchoReply { .. }
            | ControlMessage::SizeRequest { .. }
            | ControlMessage::SizeReply { .. } => {}
        }
    }

    fn heard_record(
        &mut self,
        from: NodeId,
        record: EndpointRecord,
        signed: Signed<EndpointRecord>,
        now: Now,
    ) {
        let node = record.node;
        if node == self.node {
            return self.heard_own(&record, now);
        }
        if self.peers.known(&node).is_none() {
            return;
        }
        if let Some(known) = self.record_against(&record) {
            // It may be behind another machine in one and the same life; if what is known is its own, it sees that.
            let overtaken = known.is_newer_edition(&record);
            if from == node && !(overtaken && mutation::is(Mutant::SameLifeUnshown)) {
                self.show_later_life(&node, now);
            }
            return;
        }
        self.take_record(record, signed.clone(), now);
        // What comes by other ways may be a copy's, that was said before it was gone.
        if let Some(peer) = self.peers.get_mut(&node).filter(|_| from == node) {
            peer.showing.end();
            peer.passing.end();
        }
        // Planets spread records by themselves, while there are any.
        if self.planets.legs().next().is_none() {
            let message = ControlMessage::Endpoints(Box::new(signed));
            self.gossip(&message, Some(from), now);
        }
    }

    /// Records that came ahead of the renewal which explains them count from now on.
    pub(super) fn hear_explained(&mut self, now: Now) {
        let Some(members) = &mut self.members else {
            return;
        };
        for (source, signed) in members.take_explained() {
            let Some(members) = &self.members else {
                return;
            };
            let Ok(record) = members.verify_record(&signed) else {
                continue;
            };
            match source {
                Source::Member(from) => self.heard_record(from, record, signed, now),
                _ if record.node == self.node => self.heard_own(&record, now),
                _ => self.take_record(record, signed, now),
            }
        }
    }

    /// Whether a planet wants to be told something that members said.
    pub(super) fn introduce(&mut self, node: NodeId, attempt: u32) {
        let planet = self.relays_to(&node).into_iter().next();
        if let Some(planet) = planet {
            self.say(
                planet,
                NodeMessage::Introduce {
                    peer: node,
                    attempt,
                },
            );
        }
    }
}
