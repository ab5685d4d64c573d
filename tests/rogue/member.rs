//! A rogue member: it joins by a real token, answers as a node must, and misbehaves on order.

mod crowd;
mod greeter;
mod link;
mod orders;
mod raw_session;
mod storms;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use podmesh_proto::candidate::{Candidate, CandidateKind, EndpointRecord};
use podmesh_proto::certificate::Membership;
use podmesh_proto::id::Name;
use podmesh_proto::network::{Network, PlanetEntry};
use podmesh_proto::planet_api::{DirectoryRecord, NodeMessage, PlanetMessage};
use podmesh_proto::signed::Signed;
use podmesh_proto::token::JoinToken;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};

use self::crowd::Crowd;
pub(crate) use self::greeter::Greeter;
use self::link::Link;
use self::storms::Storms;
use crate::clock;
use crate::control;
use crate::loot::{Keys, Loot};

/// Between two tries to reach the planet.
const RETRY: Duration = Duration::from_millis(500);
/// Tunnels look at their timers this often.
const TICK: Duration = Duration::from_millis(250);
/// Messages of storms that wait for the connection to the planet.
const WAITING: usize = 1_024;
/// Between two heartbeats to the planet.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Arguments of `rogue member`.
#[derive(Debug, Args)]
pub(crate) struct Member {
    /// The file with a join token
    #[arg(long)]
    token: PathBuf,
    /// Name to join as
    #[arg(long)]
    name: Name,
    /// Address and port of tunnels and probes
    #[arg(long)]
    listen: SocketAddr,
    /// Answers nobody but the planet
    #[arg(long)]
    mute: bool,
    /// Takes orders at this socket
    #[arg(long)]
    control: PathBuf,
    /// Writes keys and everything it sees into this file, for an accomplice
    #[arg(long)]
    save: PathBuf,
}

/// Arguments of `rogue crowd`.
#[derive(Debug, Args)]
pub(crate) struct Absentees {
    /// The file with a join token of enough uses
    #[arg(long)]
    token: PathBuf,
    /// How many join
    #[arg(long)]
    count: usize,
}

impl Absentees {
    /// Joins one after the other.
    pub(crate) async fn run(self) -> Result<()> {
        let token: JoinToken = fs::read_to_string(&self.token)?.parse()?;
        let (network, _) = token.verify()?;
        let planet = network
            .planets
            .first()
            .context("the network has no planet")?;
        for number in 0..self.count {
            let name: Name = format!("absent-{number}").parse()?;
            let keys = Keys::new()?;
            link::join(planet, &network, &token, (&keys, name)).await?;
        }
        control::say(&json!({ "joined": self.count }));
        Ok(())
    }
}

/// The member, once it is one.
pub(crate) struct RogueMember {
    keys: Keys,
    network: Network,
    membership: Membership,
    save: PathBuf,
    socket: UdpSocket,
    crowd: Mutex<Crowd>,
    whereabouts: Mutex<Whereabouts>,
    incarnation: u64,
    /// Answers nobody but the planet.
    mute: bool,
    /// For what goes on besides what it does itself.
    myself: Weak<Self>,
    storms: Storms,
    /// What storms say to the planet, and where that is taken from.
    says: mpsc::Sender<NodeMessage>,
    to_say: tokio::sync::Mutex<mpsc::Receiver<NodeMessage>>,
}

/// What it says about where it is.
struct Whereabouts {
    /// Grows with each order to say something else.
    edition: u64,
    /// Of the last record.
    sequence: u64,
    candidates: Vec<SocketAddr>,
}

impl Member {
    /// Joins, and stays until the process ends.
    pub(crate) async fn run(self) -> Result<()> {
        let token: JoinToken = fs::read_to_string(&self.token)?.parse()?;
        let (network, _) = token.verify()?;
        let planet = network
            .planets
            .first()
            .context("the network has no planet")?;
        let keys = Keys::new()?;
        let membership = link::join(planet, &network, &token, (&keys, self.name)).await?;
        let me = membership.verify(&network, clock::now())?;
        control::say(&json!({ "joined": me.name, "node": me.node, "prefixes": me.prefixes() }));
        let socket = UdpSocket::bind(self.listen).await?;
        let (says, to_say) = mpsc::channel(WAITING);
        let member = Arc::new_cyclic(|myself| RogueMember {
            myself: Weak::clone(myself),
            mute: self.mute,
            storms: Storms::default(),
            says,
            to_say: to_say.into(),
            crowd: Mutex::new(Crowd::new(me, network.clone())),
            socket,
            whereabouts: Mutex::new(Whereabouts {
                edition: 1,
                sequence: 0,
                candidates: vec![self.listen],
            }),
            incarnation: clock::now().0,
            save: self.save,
            keys,
            membership,
            network,
        });
        member.save()?;
        let orders = control::serve(Arc::clone(&member), &self.control);
        tokio::select! {
            ended = orders => ended,
            ended = member.receive() => ended,
            ended = member.tick() => ended,
            ended = member.stay_connected() => ended,
        }
    }
}

impl RogueMember {
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) -> Result<()> {
        let seen = {
            let crowd = self.crowd();
            (crowd.seen.clone(), crowd.departures.clone())
        };
        Loot::new(&self.keys, self.membership.clone(), seen).write(&self.save)
    }

    async fn receive(&self) -> Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).await?;
            if self.mute {
                continue;
            }
            let datagram = buffer.get(..length).unwrap_or_default();
            let answers = self.crowd().handle(datagram, from)?;
            self.send_all(answers).await;
        }
    }

    async fn tick(&self) -> Result<()> {
        let mut ticks = interval(TICK);
        loop {
            ticks.tick().await;
            let due = self.crowd().tick();
            self.send_all(due).await;
        }
    }

    async fn send_all(&self, datagrams: Vec<(SocketAddr, Vec<u8>)>) {
        for (to, datagram) in datagrams {
            // Not every candidate can be reached from here.
            let _ = self.socket.send_to(&datagram, to).await;
        }
    }

    fn whereabouts(&self) -> MutexGuard<'_, Whereabouts> {
        let locked = self.whereabouts.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it says that it is, with the next number, and the edition of that.
    fn endpoints(&self) -> Result<(u64, Signed<EndpointRecord>)> {
        let mut whereabouts = self.whereabouts();
        whereabouts.sequence += 1;
        let candidates = whereabouts.candidates.iter();
        let candidates = candidates.map(|endpoint| Candidate {
            kind: CandidateKind::Host,
            endpoint: *endpoint,
        });
        let record = EndpointRecord {
            network: self.network.id,
            node: self.keys.identity.node_id(),
            incarnation: self.incarnation,
            sequence: whereabouts.sequence,
            candidates: candidates.collect(),
            planets: self.network.planets.iter().map(|entry| entry.id).collect(),
        };
        let record = Signed::seal(&record, &self.keys.identity)?;
        Ok((whereabouts.edition, record))
    }

    async fn stay_connected(&self) -> Result<()> {
        let Some(planet) = self.network.planets.first() else {
            bail!("the network has no planet");
        };
        loop {
            let ended = self.talk_with(planet).await;
            let reason = ended.err().map(|error| format!("{error:#}"));
            control::say(&json!({ "planet": "gone", "reason": reason }));
            sleep(RETRY).await;
        }
    }

    async fn talk_with(&self, planet: &PlanetEntry) -> Result<()> {
        let mut link = Link::connect(planet).await?;
        link.hello(&self.keys, &self.network, Some(&self.membership))
            .await?;
        let mut published = 0;
        let mut beats = interval(HEARTBEAT);
        let mut looks = interval(TICK);
        let mut to_say = self.to_say.lock().await;
        loop {
            tokio::select! {
                message = link.next() => self.hear(message?)?,
                Some(message) = to_say.recv() => link.say(&message).await?,
                _ = beats.tick() => link.say(&NodeMessage::Heartbeat).await?,
                _ = looks.tick() => {
                    if published != self.whereabouts().edition {
                        let (edition, record) = self.endpoints()?;
                        link.say(&NodeMessage::Publish(record)).await?;
                        published = edition;
                    }
                }
            }
        }
    }

    fn hear(&self, message: PlanetMessage) -> Result<()> {
        self.tally(&message);
        let PlanetMessage::Directory(update) = message else {
            return Ok(());
        };
        for record in &update.records {
            match record {
                DirectoryRecord::Member(membership) => {
                    self.crowd().meet(&self.keys, membership);
                    self.save()?;
                }
                DirectoryRecord::Endpoints(record) => self.crowd().locate(record),
                DirectoryRecord::Left(departure) => {
                    self.crowd().departures.push(departure.clone());
                    self.save()?;
                }
                DirectoryRecord::Presence { .. } => {}
            }
        }
        Ok(())
    }
}
