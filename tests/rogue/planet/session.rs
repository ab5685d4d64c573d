//! The conversation with one node, as an honest planet would lead it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podmesh_proto::frame::{self, FrameDecoder};
use podmesh_proto::id::NodeId;
use podmesh_proto::planet_api::{Hello, NodeMessage, PlanetMessage, Refusal, RefusalCode, Welcome};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::interval;

use super::StolenPlanet;
use crate::clock;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Talks until the node goes away.
pub(super) async fn converse(planet: Arc<StolenPlanet>, connection: Connection) -> Result<()> {
    let (sending, mut receiving) = connection.accept_bi().await?;
    let mut decoder = FrameDecoder::default();
    let Some(NodeMessage::Hello(hello)) = next(&mut receiving, &mut decoder).await? else {
        bail!("the node did not say hello");
    };
    let node = hello.node;
    let (listener, outgoing) = unbounded_channel();
    listener.send(PlanetMessage::Welcome(welcome(
        &planet,
        &hello,
        &connection,
    )?))?;
    {
        let mut books = planet.books();
        books.sequence = books.sequence.max(hello.sequence);
        if let Some(membership) = &hello.membership {
            books.harvest(membership);
        }
        books.connected(node, listener.clone());
    }
    let spoken = tokio::spawn(speak(sending, outgoing, Arc::clone(&planet)));
    let heard = listen(&planet, node, (&mut receiving, &mut decoder)).await;
    planet.books().disconnected(node, &listener);
    spoken.abort();
    heard
}

fn welcome(planet: &StolenPlanet, hello: &Hello, connection: &Connection) -> Result<Welcome> {
    let member = hello.membership.is_some();
    Ok(Welcome {
        planet: planet.key.planet_id(),
        observed: connection.remote_address(),
        relay: member.then(|| planet.relay.open(hello.node)).transpose()?,
        time: clock::now(),
        cursor: planet.books().cursor(),
    })
}

async fn speak(
    mut stream: SendStream,
    mut outgoing: UnboundedReceiver<PlanetMessage>,
    planet: Arc<StolenPlanet>,
) -> Result<()> {
    let mut beats = interval(HEARTBEAT);
    beats.tick().await;
    loop {
        let message = tokio::select! {
            message = outgoing.recv() => message.context("nobody speaks any more")?,
            _ = beats.tick() => PlanetMessage::Heartbeat { cursor: planet.books().cursor() },
        };
        let bytes = frame::encode(&message, "message of a planet")?;
        stream.write_all(&bytes).await?;
    }
}

async fn listen(
    planet: &StolenPlanet,
    node: NodeId,
    (stream, decoder): (&mut RecvStream, &mut FrameDecoder),
) -> Result<()> {
    while let Some(message) = next(stream, decoder).await? {
        hear(planet, node, message)?;
    }
    Ok(())
}

fn hear(planet: &StolenPlanet, node: NodeId, message: NodeMessage) -> Result<()> {
    let mut books = planet.books();
    match message {
        NodeMessage::Publish(record) => books.published(node, record),
        NodeMessage::Introduce { peer, attempt } => books.introduce(node, peer, attempt),
        NodeMessage::Report { memberships } => {
            for membership in &memberships {
                books.harvest(membership);
            }
        }
        NodeMessage::Statement(statement) => books.withheld.push(*statement),
        NodeMessage::Claim(claim) => {
            let receipt = planet.forger(&mut books).claimed(&claim, node)?;
            books.say(&node, PlanetMessage::Claimed(receipt));
        }
        NodeMessage::Join(_) => {
            let refusal = Refusal {
                code: RefusalCode::Busy,
                reason: "come back later".to_owned(),
                retry_in: Some(Duration::from_secs(5)),
            };
            books.say(&node, PlanetMessage::Refused(refusal));
        }
        NodeMessage::Hello(_) | NodeMessage::Leave(_) | NodeMessage::Heartbeat => {}
    }
    Ok(())
}

async fn next(stream: &mut RecvStream, decoder: &mut FrameDecoder) -> Result<Option<NodeMessage>> {
    loop {
        if let Some(message) = decoder.next("message of a node")? {
            return Ok(Some(message));
        }
        match stream.read_chunk(64 * 1024, true).await? {
            Some(chunk) => decoder.push(&chunk.bytes),
            None => return Ok(None),
        }
    }
}

impl StolenPlanet {
    /// The books, held for a moment.
    pub(super) fn books(&self) -> std::sync::MutexGuard<'_, super::books::Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
