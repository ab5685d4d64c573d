//! What a rogue member can be told to do.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::certificate::Departure;
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{Held, Summary};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::RogueMember;
use super::raw_session::RawSession;
use super::storms::Storm;
use crate::clock;
use crate::control::Puppet;
use crate::packet;

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Between two packets of a volley.
const GAP: Duration = Duration::from_millis(2);

/// One order.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Order {
    /// Says who it is and what came out of its tunnels.
    Look,
    /// Makes a new session with a peer.
    Handshake {
        /// With whom.
        to: Name,
    },
    /// Sends UDP packets with any source through the tunnel.
    Send {
        /// Through whose tunnel.
        to: Name,
        /// Inner source.
        source: IpAddr,
        /// Inner destination.
        destination: IpAddr,
        /// Inner ports.
        port: u16,
        /// What is inside.
        text: String,
        /// How many.
        count: u32,
        /// How often each sealed message is sent.
        copies: u32,
    },
    /// Sends UDP packets with chosen counters in a session that is made for it.
    Count {
        /// To whom.
        to: Name,
        /// Inner destination.
        destination: IpAddr,
        /// Inner ports.
        port: u16,
        /// What is inside.
        text: String,
        /// The counters, as decimal text: JSON's numbers are not exact this far up.
        counters: Vec<String>,
    },
    /// Sends echoes of the tunnel's own kind.
    Echo {
        /// Through whose tunnel.
        to: Name,
        /// Inner source; its own if absent.
        source: Option<Ipv6Addr>,
        /// Inner destination; the peer's if absent.
        destination: Option<Ipv6Addr>,
        /// How many.
        count: u32,
    },
    /// Tells things about a third node in the tunnel, signed by itself.
    Gossip {
        /// Through whose tunnel.
        to: Name,
        /// About whom.
        victim: Name,
    },
    /// Sends one probe often.
    ReplayProbe {
        /// To whom.
        to: Name,
        /// How often.
        copies: u32,
    },
    /// Says that it is somewhere.
    Publish {
        /// There.
        candidates: Vec<SocketAddr>,
    },
    /// Does something without end, besides everything else.
    Storm {
        /// What.
        storm: Storm,
        /// How often in a second.
        rate: u32,
    },
    /// Ends all that has no end; says how often what was done.
    Calm,
}

/// The tunnels' own messages, as far as they are forged here; the order is part of the format.
#[derive(Serialize)]
pub(super) enum Message {
    EchoRequest(u64),
    EchoReply(u64),
    Endpoints(Box<Signed<EndpointRecord>>),
    Statement(Box<Signed<RootStatement>>),
    Left(Box<Signed<Departure>>),
    #[allow(dead_code, reason = "keeps the numbers of the others")]
    Renewed,
    SizeRequest(u64),
    #[allow(dead_code, reason = "keeps the numbers of the others")]
    SizeReply(u64),
    Summary(Box<Summary>),
    Held(Box<Held>),
}

impl Puppet for RogueMember {
    type Order = Order;

    async fn obey(&self, order: Order) -> Result<Value> {
        match order {
            Order::Look => Ok(self.look()),
            Order::Handshake { to } => self.handshake(&to).await,
            Order::Send {
                to,
                source,
                destination,
                port,
                text,
                count,
                copies,
            } => {
                let packet = packet::udp(source, destination, port, text.as_bytes())?;
                self.volley(&to, &packet, (count, copies)).await
            }
            Order::Count {
                to,
                destination,
                port,
                text,
                counters,
            } => {
                let own = IpAddr::from(self.crowd().me.overlay4.context("no overlay address")?);
                let packet = packet::udp(own, destination, port, text.as_bytes())?;
                self.count(&to, &packet, &counters).await
            }
            Order::Echo {
                to,
                source,
                destination,
                count,
            } => {
                let theirs = self.crowd().named(&to)?.1.overlay6;
                let (source, destination) = (source, destination.unwrap_or(theirs));
                let source = source.unwrap_or(self.crowd().me.overlay6);
                let message = encode(&Message::EchoRequest(7))?;
                let packet = packet::control(source, destination, &message)?;
                let before = self.crowd().named(&to)?.1.tally.echoes;
                self.volley(&to, &packet, (count, 1)).await?;
                sleep(PATIENCE).await;
                let echoes = self.crowd().named(&to)?.1.tally.echoes;
                Ok(json!({ "sent": count, "echoes": echoes - before }))
            }
            Order::Gossip { to, victim } => self.gossip(&to, &victim).await,
            Order::ReplayProbe { to, copies } => self.replay_probe(&to, copies).await,
            Order::Publish { candidates } => {
                let mut whereabouts = self.whereabouts();
                whereabouts.edition += 1;
                whereabouts.candidates = candidates;
                Ok(json!({ "candidates": whereabouts.candidates }))
            }
            Order::Storm { storm, rate } => {
                let me = self.myself.upgrade().context("the member is gone")?;
                self.storms.begin(me, storm, rate);
                Ok(json!({ "rate": rate }))
            }
            Order::Calm => Ok(self.storms.calm()),
        }
    }
}

impl RogueMember {
    fn look(&self) -> Value {
        let crowd = self.crowd();
        let peers: serde_json::Map<String, Value> = crowd
            .peers()
            .map(|peer| {
                let seen = json!({ "session": peer.session_age().is_some(), "tally": peer.tally });
                (peer.name.to_string(), seen)
            })
            .collect();
        json!({
            "name": crowd.me.name, "node": crowd.me.node, "overlay4": crowd.me.overlay4,
            "overlay6": crowd.me.overlay6, "pod_cidrs": crowd.me.pod_cidrs, "peers": peers,
        })
    }

    async fn handshake(&self, to: &Name) -> Result<Value> {
        for _ in 0..5 {
            let messages = self.crowd().initiate(to)?;
            self.send_all(messages).await;
            sleep(PATIENCE).await;
            let age = self.crowd().named(to)?.1.session_age();
            if age.is_some_and(|age| age <= 2 * PATIENCE) {
                return Ok(json!({ "session": true }));
            }
        }
        Ok(json!({ "session": false }))
    }

    async fn volley(&self, to: &Name, packet: &[u8], (count, copies): (u32, u32)) -> Result<Value> {
        for _ in 0..count {
            let (at, message) = self.crowd().seal(to, packet)?;
            for _ in 0..copies {
                self.socket.send_to(&message, at).await?;
            }
            sleep(GAP).await;
        }
        Ok(json!({ "sent": count, "copies": copies }))
    }

    async fn count(&self, to: &Name, packet: &[u8], counters: &[String]) -> Result<Value> {
        let (key, at) = {
            let mut crowd = self.crowd();
            let (_, peer) = crowd.named(to)?;
            (
                peer.wireguard,
                peer.at.context("that peer was never heard")?,
            )
        };
        let session = RawSession::open(&self.keys.wireguard, &key, at).await?;
        for counter in counters {
            session.send(counter.parse()?, packet).await?;
            sleep(GAP).await;
        }
        Ok(json!({ "sent": counters.len() }))
    }

    async fn gossip(&self, to: &Name, victim: &Name) -> Result<Value> {
        let (theirs, mine) = {
            let mut crowd = self.crowd();
            (crowd.named(to)?.1.overlay6, crowd.me.overlay6)
        };
        let node: NodeId = self.crowd().named(victim)?.0;
        let record = EndpointRecord {
            network: self.network.id,
            node,
            incarnation: clock::now().0 + 3_600,
            sequence: 1,
            candidates: vec![Candidate {
                kind: CandidateKind::Host,
                endpoint: self.socket.local_addr()?,
            }],
            planets: Vec::new(),
        };
        let revocation = RootStatement::RevokeNode {
            network: self.network.id,
            node,
            issued: clock::now(),
        };
        let identity = &self.keys.identity;
        for message in [
            Message::Endpoints(Box::new(Signed::seal(&record, identity)?)),
            Message::Statement(Box::new(Signed::seal(&revocation, identity)?)),
        ] {
            let packet = packet::control(mine, theirs, &encode(&message)?)?;
            self.volley(to, &packet, (1, 1)).await?;
        }
        Ok(json!({ "told": [to], "name": victim }))
    }

    async fn replay_probe(&self, to: &Name, copies: u32) -> Result<Value> {
        let before = self.crowd().named(to)?.1.tally.pongs;
        let (at, probe) = self.crowd().ping(to)?;
        for _ in 0..copies {
            self.socket.send_to(&probe, at).await?;
            sleep(GAP).await;
        }
        sleep(PATIENCE).await;
        let pongs = self.crowd().named(to)?.1.tally.pongs;
        Ok(json!({ "copies": copies, "pongs": pongs - before }))
    }
}

pub(super) fn encode(message: &Message) -> Result<Vec<u8>> {
    match postcard::to_allocvec(message) {
        Ok(body) => Ok([&[1], body.as_slice()].concat()),
        Err(_) => bail!("the message can't be encoded"),
    }
}
