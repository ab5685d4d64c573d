//! Storms at another member: words in its tunnel, probes, handshakes.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::key::SecretKey;
use podmesh_proto::network::RootStatement;
use podmesh_proto::signed::Signed;
use podmesh_proto::statements::{BUCKETS, Edition, Held, Statements};
use serde::Deserialize;

use super::super::RogueMember;
use super::super::orders::{Message, encode};
use super::source::Sources;
use super::{Pace, Storm};
use crate::{clock, packet, random};

/// Packets that are made beforehand.
const STOCK: u64 = 256;
/// Bytes. The longest handshake message.
const HANDSHAKE: usize = 148;

/// One of the tunnels' own messages.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Word {
    /// A revocation that the root never said.
    Statement,
    /// Where the peer itself is.
    Endpoints,
    /// The departure of a node that never was.
    Left,
    /// Asks for an answer.
    Echo,
    /// An answer that nobody asked for.
    Reply,
    /// Asks whether a long packet has arrived.
    Size,
    /// Has heard something newer of the root.
    Summary,
    /// Has heard nothing of the root.
    Lacking,
}

impl RogueMember {
    pub(super) async fn bother_member(&self, storm: &Storm, rate: u32) -> Result<()> {
        let (to, from) = match storm {
            Storm::Words { to, from, .. }
            | Storm::Probes { to, from }
            | Storm::Handshakes { to, from }
            | Storm::Strangers { to, from } => (to, *from),
            _ => return Ok(()),
        };
        let mut sources = Sources::open(from).await?;
        let stock = match storm {
            Storm::Words { word, .. } => self.words(to, *word)?,
            Storm::Strangers { .. } => self.initiations_of_nobody(to)?,
            _ => Vec::new(),
        };
        let (mut pace, mut number) = (Pace::new(rate), 0);
        loop {
            for _ in 0..pace.due().await {
                number += 1;
                let made = stock.get(number % stock.len().max(1));
                let (at, datagram) = self.datagram(storm, to, made)?;
                sources.send(&datagram, at);
                self.storms.count("sent", 1);
            }
            let (datagrams, bytes) = sources.drain();
            self.storms.count("came back", datagrams);
            self.storms.count("bytes back", bytes);
        }
    }

    fn datagram(
        &self,
        storm: &Storm,
        to: &Name,
        made: Option<&Vec<u8>>,
    ) -> Result<(SocketAddr, Vec<u8>)> {
        let mut crowd = self.crowd();
        match (storm, made) {
            (Storm::Words { .. }, Some(packet)) => crowd.seal(to, packet),
            (Storm::Strangers { .. }, Some(message)) => {
                let at = crowd.named(to)?.1.at.context("that peer was never heard")?;
                Ok((at, message.clone()))
            }
            (Storm::Handshakes { .. }, _) => {
                let at = crowd.named(to)?.1.at.context("that peer was never heard")?;
                let key = crowd.named(to)?.1.wireguard;
                let mine = self.keys.wireguard.to_dalek();
                Ok((at, initiation(mine, key.0)?))
            }
            _ => crowd.ping(to),
        }
    }

    /// Packets for the tunnel, with such messages inside.
    fn words(&self, to: &Name, word: Word) -> Result<Vec<Vec<u8>>> {
        let mut crowd = self.crowd();
        let mine = crowd.me.overlay6;
        let (node, theirs) = crowd.named(to).map(|(node, peer)| (node, peer.overlay6))?;
        let packets = (0..STOCK).map(|number| {
            let message = self.message(node, word, number)?;
            packet::control(mine, theirs, &encode(&message)?)
        });
        packets.collect()
    }

    fn message(&self, peer: NodeId, word: Word, number: u64) -> Result<Message> {
        let (network, identity) = (self.network.id, &self.keys.identity);
        Ok(match word {
            Word::Echo => Message::EchoRequest(number),
            Word::Reply => Message::EchoReply(number),
            Word::Size => Message::SizeRequest(number),
            Word::Left => Message::Left(Box::new(self.departure_of_nobody()?)),
            Word::Statement => {
                let revocation = RootStatement::RevokeNode {
                    network,
                    node: NodeId(random::bytes()?),
                    issued: clock::now(),
                };
                Message::Statement(Box::new(Signed::seal(&revocation, identity)?))
            }
            Word::Endpoints => {
                let record = EndpointRecord {
                    network,
                    node: peer,
                    incarnation: u64::MAX,
                    sequence: number,
                    candidates: Vec::new(),
                    planets: Vec::new(),
                };
                Message::Endpoints(Box::new(Signed::seal(&record, identity)?))
            }
            Word::Summary => {
                let edition = Edition {
                    version: self.network.version + 1 + number,
                    document: random::bytes()?,
                };
                Message::Summary(Box::new(Statements::default().summary(edition)))
            }
            Word::Lacking => {
                let bucket = u8::try_from(number % u64::from(BUCKETS))?;
                let ids = Vec::new();
                Message::Held(Box::new(Held { bucket, ids }))
            }
        })
    }

    /// Handshakes of keys that the peer has never heard of; their first check holds.
    fn initiations_of_nobody(&self, to: &Name) -> Result<Vec<Vec<u8>>> {
        let key = self.crowd().named(to)?.1.wireguard;
        let made = (0..STOCK).map(|_| {
            let nobody = SecretKey::from_bytes(random::bytes()?);
            initiation(nobody.to_dalek(), key.0)
        });
        made.collect()
    }
}

fn initiation(mine: x25519::StaticSecret, theirs: [u8; 32]) -> Result<Vec<u8>> {
    let theirs = x25519::PublicKey::from(theirs);
    let mut tunnel = Tunn::new(mine, theirs, None, None, 1, None);
    let mut buffer = [0; HANDSHAKE];
    match tunnel.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(message) => Ok(message.to_vec()),
        _ => anyhow::bail!("no handshake"),
    }
}
