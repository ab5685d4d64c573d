//! Storms at the planet's relay.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use podmesh_proto::id::RelayAddress;
use podmesh_proto::relayed::{RelayGrant, RelayHeader, RelayKind, RelaySeal, Token};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use super::super::RogueMember;
use super::super::link::Link;
use super::Pace;
use super::source::Sources;

/// Bytes of what is relayed; the first byte is that of a tunnel's data.
const PAYLOAD: [u8; 1_100] = {
    let mut payload = [0x55; 1_100];
    (payload[0], payload[1], payload[2], payload[3]) = (4, 0, 0, 0);
    payload
};
/// For the relay to say where it sees a socket.
const PATIENCE: Duration = Duration::from_millis(500);
/// A session whose connection is gone ends after a minute; a storm asks for others before.
const SPELL: Duration = Duration::from_secs(20);
/// Frames to the relay between two that say where the member is.
const REMINDER: u64 = 100;

/// A session at the relay.
struct Session {
    grant: RelayGrant,
    seal: RelaySeal,
    counter: u64,
}

impl Session {
    fn new(grant: RelayGrant) -> Self {
        Self {
            seal: RelaySeal::new(&grant.key),
            grant,
            counter: 0,
        }
    }

    fn observe(&mut self, token: Token) -> Vec<u8> {
        let mut frame = Vec::new();
        let (session, counter) = (self.grant.session, self.next());
        self.seal.observe(session, counter, token, &mut frame);
        frame
    }

    fn up(&mut self, peer: RelayAddress) -> Vec<u8> {
        let header = RelayHeader {
            kind: RelayKind::Up,
            session: self.grant.session,
            counter: self.next(),
            peer,
        };
        let mut frame = Vec::new();
        self.seal.seal(&header, &PAYLOAD, &mut frame);
        frame
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Proves that it is where `socket` is.
    async fn settle(&mut self, socket: &UdpSocket, planet: SocketAddr) -> Result<()> {
        let mut token = Token::default();
        for _ in 0..4 {
            socket.send_to(&self.observe(token), planet).await?;
            let mut answer = [0; 2_048];
            let Ok(heard) = timeout(PATIENCE, socket.recv(&mut answer)).await else {
                continue;
            };
            let answer = answer.get(..heard?).unwrap_or_default();
            let header = RelayHeader::parse(answer)?;
            let body = self.seal.open(&header, answer)?;
            token = RelaySeal::token(body).unwrap_or_default();
            if header.kind == RelayKind::Observed && token == Token::default() {
                return Ok(());
            }
        }
        bail!("the relay doesn't believe where this is")
    }
}

impl RogueMember {
    /// Frames to itself, by all sessions that `count` connections get.
    pub(super) async fn use_sessions(&self, count: usize, rate: u32) -> Result<()> {
        let planet = self.relay()?;
        let sources = Sources::open(None).await?;
        let socket = sources.first()?;
        let (mut links, mut sessions) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (link, grant) = self.another_session().await?;
            links.push(link);
            sessions.push(Session::new(grant));
        }
        if let Some(last) = sessions.last_mut() {
            last.settle(socket, planet).await?;
        }
        let own = self.keys.identity.node_id().relay_address();
        let (mut pace, mut number) = (Pace::new(rate), 0);
        let begin = Instant::now();
        while begin.elapsed() < SPELL {
            for _ in 0..pace.due().await {
                number = (number + 1) % sessions.len().max(1);
                let frame = sessions.get_mut(number).map(|session| session.up(own));
                let frame = frame.context("no session")?;
                // What doesn't fit the socket is lost.
                let _ = socket.try_send_to(&frame, planet);
                self.storms.count("bytes sent", frame.len() as u64);
            }
            let (_, bytes) = sources.drain();
            self.storms.count("bytes back", bytes);
        }
        Ok(())
    }

    /// Says to the relay that it is at `victim`, and sends to itself.
    pub(super) async fn be_elsewhere(&self, victim: SocketAddr, rate: u32) -> Result<()> {
        let planet = self.relay()?;
        let socket = UdpSocket::bind("0.0.0.0:0").await?;
        let false_socket = UdpSocket::bind(victim).await?;
        let (_link, grant) = self.another_session().await?;
        let mut session = Session::new(grant);
        let own = self.keys.identity.node_id().relay_address();
        let (mut pace, mut number) = (Pace::new(rate), 0);
        let begin = Instant::now();
        while begin.elapsed() < SPELL {
            for _ in 0..pace.due().await {
                number += 1;
                if number % REMINDER == 1 {
                    let question = session.observe(Token::default());
                    let _ = false_socket.try_send_to(&question, planet);
                    let frame = session.up(own);
                    let _ = false_socket.try_send_to(&frame, planet);
                }
                let frame = session.up(own);
                let _ = socket.try_send_to(&frame, planet);
                self.storms.count("bytes sent", frame.len() as u64);
            }
        }
        Ok(())
    }

    /// Asks the relay where it is, from somewhere else.
    pub(super) async fn ask_where(&self, from: Option<IpNet>, rate: u32) -> Result<()> {
        let planet = self.relay()?;
        let mut sources = Sources::open(from).await?;
        let (_link, grant) = self.another_session().await?;
        let mut session = Session::new(grant);
        let mut pace = Pace::new(rate);
        let begin = Instant::now();
        while begin.elapsed() < SPELL {
            for _ in 0..pace.due().await {
                let question = session.observe(Token::default());
                sources.send(&question, planet);
                self.storms.count("sent", 1);
            }
            let (datagrams, bytes) = sources.drain();
            self.storms.count("came back", datagrams);
            self.storms.count("bytes back", bytes);
        }
        Ok(())
    }

    fn relay(&self) -> Result<SocketAddr> {
        let planet = self.network.planets.first().context("no planet")?;
        planet.address.parse().context("the planet has a name")
    }

    async fn another_session(&self) -> Result<(Link, RelayGrant)> {
        let planet = self.network.planets.first().context("no planet")?;
        let mut link = Link::connect(planet).await?;
        let membership = Some(&self.membership);
        let welcome = link.hello(&self.keys, &self.network, membership).await?;
        let grant = welcome.relay.context("no session at the relay")?;
        Ok((link, grant))
    }
}
