//! A planet whose key was stolen: it serves nodes as the honest one did, until it is told to lie.

mod books;
mod lies;
mod relay;
mod session;
mod socket;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use clap::Args;
use podmesh_proto::armor;
use podmesh_proto::id::NodeId;
use podmesh_proto::key::SigningKey;
use podmesh_proto::network::Network;
use quinn::{Endpoint, TokioRuntime};
use serde_json::json;
use tokio::net::UdpSocket;

use self::books::Books;
use self::relay::Relay;
use self::socket::Shared;
use crate::control;
use crate::forge::Forger;
use crate::loot::Loot;
use crate::random;
use crate::tls;

/// Arguments of `rogue planet`.
#[derive(Debug, Args)]
pub(crate) struct Planet {
    /// The planet's key file, as it was in its state folder
    #[arg(long)]
    key: PathBuf,
    /// The network document, which is public
    #[arg(long)]
    network: PathBuf,
    /// Where the honest planet listened
    #[arg(long)]
    listen: SocketAddr,
    /// Takes orders at this socket
    #[arg(long)]
    control: PathBuf,
    /// What an accomplice among the members holds
    #[arg(long)]
    accomplice: Option<PathBuf>,
    /// Promises each node more of its directory than it will ever tell
    #[arg(long)]
    endless: bool,
}

/// The thief.
pub(crate) struct StolenPlanet {
    key: SigningKey,
    relay: Arc<Relay>,
    books: Mutex<Books>,
    accomplice: Option<Loot>,
    endless: bool,
}

impl Planet {
    /// Serves until the process ends.
    pub(crate) async fn run(self) -> Result<()> {
        let key = read_key(&self.key)?;
        let document = armor::decode_statement(&fs::read_to_string(&self.network)?)?;
        let network = Network::from_statement(&document)?;
        let accomplice = self.accomplice.as_deref().map(Loot::read).transpose()?;
        let mut books = Books::new(network, random::number()?);
        for membership in accomplice.iter().flat_map(|loot| &loot.seen) {
            books.harvest(membership);
        }
        if let Some(loot) = &accomplice {
            books.harvest(&loot.membership);
        }
        let planet = Arc::new(StolenPlanet {
            relay: Arc::new(Relay::default()),
            books: Mutex::new(books),
            accomplice,
            endless: self.endless,
            key,
        });
        let socket = UdpSocket::bind(self.listen).await?;
        let shared = Arc::new(Shared::new(socket, Arc::clone(&planet.relay)));
        let endpoint = Endpoint::new_with_abstract_socket(
            tls::beside_others(),
            Some(tls::as_planet(&planet.key)?),
            shared,
            Arc::new(TokioRuntime),
        )?;
        control::say(&json!({ "listening": self.listen, "planet": planet.key.planet_id() }));
        let orders = control::serve(Arc::clone(&planet), &self.control);
        tokio::select! {
            ended = orders => ended,
            () = accept(&endpoint, &planet) => Ok(()),
        }
    }
}

async fn accept(endpoint: &Endpoint, planet: &Arc<StolenPlanet>) {
    while let Some(incoming) = endpoint.accept().await {
        let planet = Arc::clone(planet);
        tokio::spawn(async move {
            let from = incoming.remote_address();
            let talked = async { session::converse(planet, incoming.await?).await };
            if let Err(error) = talked.await {
                control::say(&json!({ "ended": from, "reason": format!("{error:#}") }));
            }
        });
    }
}

impl StolenPlanet {
    /// The workshop, with a receipt number that was never used.
    fn forger<'a>(&'a self, books: &'a mut Books) -> Forger<'a> {
        books.sequence += 1;
        Forger {
            sequence: books.sequence,
            network: &books.network,
            planet: &self.key,
        }
    }

    fn accomplice_id(&self) -> Option<NodeId> {
        let loot = self.accomplice.as_ref();
        loot.map(|loot| loot.keys().identity.node_id())
    }

    fn accomplice(&self) -> Result<&Loot> {
        self.accomplice
            .as_ref()
            .context("there is no accomplice; name one with --accomplice")
    }
}

/// The key in a planet's key file: its seed in hex digits.
fn read_key(path: &Path) -> Result<SigningKey> {
    let text = fs::read_to_string(path).with_context(|| format!("no {}", path.display()))?;
    // Any of the ids has the same 32 bytes in the same digits.
    let seed: NodeId = text
        .trim()
        .parse()
        .with_context(|| format!("{} is no planet's key", path.display()))?;
    Ok(SigningKey::from_seed(seed.0))
}
