//! The conversation with one node, as an honest planet would lead it.

use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podmesh_proto::certificate::{Application, Claim};
use podmesh_proto::frame::{self, FrameDecoder};
use podmesh_proto::id::NodeId;
use podmesh_proto::planet_api::{NodeMessage, PlanetMessage, Welcome};
use podmesh_proto::signed::Signed;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::interval;

use super::StolenPlanet;
use super::books::Books;
use crate::clock;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// One node that is connected.
struct Session {
    planet: Arc<StolenPlanet>,
    node: NodeId,
    remote: SocketAddr,
    listener: UnboundedSender<PlanetMessage>,
}

/// Talks until the node goes away.
pub(super) async fn converse(planet: Arc<StolenPlanet>, connection: Connection) -> Result<()> {
    let (sending, mut receiving) = connection.accept_bi().await?;
    let mut decoder = FrameDecoder::default();
    let Some(NodeMessage::Hello(hello)) = next(&mut receiving, &mut decoder).await? else {
        bail!("the node did not say hello");
    };
    let (listener, outgoing) = unbounded_channel();
    let session = Session {
        node: hello.node,
        remote: connection.remote_address(),
        listener,
        planet: Arc::clone(&planet),
    };
    {
        let mut books = planet.books();
        books.sequence = books.sequence.max(hello.sequence);
        if let Some(membership) = &hello.membership {
            books.harvest(membership);
        }
        session.greet(&mut books)?;
    }
    let spoken = tokio::spawn(speak(sending, outgoing, Arc::clone(&planet)));
    let heard = session.listen(&mut receiving, &mut decoder).await;
    planet.books().disconnected(session.node, &session.listener);
    spoken.abort();
    heard
}

impl Session {
    /// Welcomes the node; a member also gets a relay session and the directory.
    fn greet(&self, books: &mut Books) -> Result<()> {
        let member = books.members.contains_key(&self.node);
        let relay = &self.planet.relay;
        let mut cursor = books.cursor();
        if self.planet.endless {
            cursor.version = u64::MAX;
        }
        let welcome = Welcome {
            planet: self.planet.key.planet_id(),
            observed: self.remote,
            relay: member.then(|| relay.open(self.node)).transpose()?,
            time: clock::now(),
            cursor,
        };
        self.listener.send(PlanetMessage::Welcome(welcome))?;
        books.connected(self.node, self.listener.clone());
        Ok(())
    }

    async fn listen(&self, stream: &mut RecvStream, decoder: &mut FrameDecoder) -> Result<()> {
        while let Some(message) = next(stream, decoder).await? {
            self.hear(message)?;
        }
        Ok(())
    }

    fn hear(&self, message: NodeMessage) -> Result<()> {
        let mut books = self.planet.books();
        match message {
            NodeMessage::Publish(record) => books.published(self.node, record),
            NodeMessage::Introduce { peer, attempt } => books.introduce(self.node, peer, attempt),
            NodeMessage::Report { memberships } => {
                for membership in &memberships {
                    books.harvest(membership);
                }
            }
            NodeMessage::Statement(statement) => books.withheld.push(*statement),
            NodeMessage::Statements(statements) => books.withheld.extend(statements),
            NodeMessage::Join(application) => self.admit(&mut books, &application)?,
            NodeMessage::Claim(claim) => self.receipt(&mut books, claim)?,
            NodeMessage::Membership(membership) => books.harvest(&membership),
            NodeMessage::Hello(_)
            | NodeMessage::Leave(_)
            | NodeMessage::Renew(_)
            | NodeMessage::Held(_)
            | NodeMessage::Heartbeat => {}
        }
        Ok(())
    }

    /// Lets a node with a real token in, as an honest planet would.
    fn admit(&self, books: &mut Books, application: &Application) -> Result<()> {
        let (_, certificate) = application.verify(&books.network)?;
        let receipt = self.planet.forger(books).admit(application, &certificate)?;
        books.admitted(self.node, application.clone(), receipt.clone());
        books.say(&self.node, PlanetMessage::Admitted(receipt));
        Ok(())
    }

    fn receipt(&self, books: &mut Books, claim: Signed<Claim>) -> Result<()> {
        let receipt = self.planet.forger(books).claimed(&claim, self.node)?;
        books.say(&self.node, PlanetMessage::Claimed(receipt.clone()));
        books.claimed(self.node, claim, receipt);
        self.greet(books)
    }
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
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
