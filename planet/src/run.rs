//! `planet run`: from the state directory to a serving planet, and back to rest.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use podmesh_proto::armor;
use podmesh_proto::error::CertificateError;
use podmesh_proto::id::PlanetId;
use podmesh_proto::key::SigningKey;
use podmesh_proto::local_api::RegistryView;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::admin::{AdminSocket, Asked, Request, Response};
use crate::config::{Config, Service};
use crate::identity;
use crate::memory;
use crate::problem::Problem;
use crate::rules::Planet;
use crate::rules::books::Books;
use crate::rules::records::{Origin, Record, edition};
use crate::rules::view::{PlanetStatus, SCHEMA};
use crate::server::clock::Clock;
use crate::server::keeping::Kept;
use crate::server::mind::{Message, Question};
use crate::server::{Server, bind};
use crate::store::{DiskStore, Store as _, StoreError};

/// Questions of operators that may wait.
const QUESTIONS: usize = 16;
/// The mind answers within this, or it is stuck.
const STUCK: Duration = Duration::from_secs(5);

/// Runs until the service manager, or a person, says to stop.
///
/// # Errors
/// What keeps the planet from serving.
pub async fn run(config: Config, service: &Service) -> Result<(), Problem> {
    let key = identity::read(&config.state_dir)?;
    let store = open_store(&config.state_dir)?;
    let socket = bind(config.listen).map_err(|error| Problem::listening(config.listen, &error))?;
    let admin = AdminSocket::open(&config.runtime_dir)
        .map_err(|error| Problem::runtime(&config.runtime_dir, &error))?;
    let (asking, mut questions) = mpsc::channel(QUESTIONS);
    let admin = tokio::spawn(admin.serve(asking));
    let mut stop = Stop::new()?;
    service.ready();
    let clock = Clock::start();
    let Some((books, store)) = network(store, &key, (&mut questions, &mut stop, service)).await?
    else {
        return Ok(());
    };
    warn_if_unnamed(&books.network, &key.planet_id());
    let planet = Planet::new(key_again(&key), books, identity::random()?, clock.now());
    let kept = Kept {
        store,
        key: key_again(&key),
        folder: config.state_dir.clone(),
    };
    let mind = (planet, Box::new(kept) as _);
    let server = Server::start(socket, &key, mind, config.limits(), clock)
        .map_err(|error| Problem::listening(config.listen, &error))?;
    let address = server.local_addr().unwrap_or(config.listen);
    tracing::info!(planet = %key.planet_id(), %address, "the planet serves");
    let small = tokio::spawn(memory::keep_small());
    let served = serve(
        server,
        key.planet_id(),
        (&mut questions, &mut stop, service),
    )
    .await;
    service.say("STOPPING=1");
    small.abort();
    admin.abort();
    // The socket's file goes with the task.
    let _ = admin.await;
    served
}

/// The books, as soon as there is a network; nothing if the planet has to stop before.
async fn network(
    mut store: DiskStore,
    key: &SigningKey,
    (questions, stop, service): (&mut mpsc::Receiver<Asked>, &mut Stop, &Service),
) -> Result<Option<(Books, DiskStore)>, Problem> {
    let mut records = store.load()?;
    let adopted = |records: &[Record]| records.iter().any(|one| matches!(one, Record::Network(_)));
    if !adopted(&records) {
        tracing::warn!("this planet serves no network yet; give it one with `planet adopt FILE`");
    }
    let mut alive = Alive::new(service);
    while !adopted(&records) {
        let asked = tokio::select! {
            asked = questions.recv() => asked,
            () = stop.requested() => None,
            () = alive.due() => {
                service.say("WATCHDOG=1");
                continue;
            }
        };
        let Some((request, answer)) = asked else {
            return Ok(None);
        };
        let response = before_adoption(&mut store, &key.planet_id(), request);
        let _ = answer.send(response);
        records = store.load()?;
    }
    let books = Books::from_records(records).map_err(|error| Problem::damaged(&error))?;
    Ok(Some((books, store)))
}

fn before_adoption(store: &mut DiskStore, planet: &PlanetId, request: Request) -> Response {
    match request {
        Request::Status => Response::Status(Box::new(unadopted(*planet))),
        Request::Statement {
            planet: meant,
            statement,
        } if meant.is_none_or(|meant| meant == *planet) => match adopt(store, &statement) {
            Ok(message) => Response::Done { message },
            Err(problem) => Response::failed(problem.to_string()),
        },
        Request::Statement { .. } => Response::failed("another planet runs there"),
        Request::TrustEmpty | Request::Backup { .. } | Request::Network | Request::Registry => {
            Response::failed("this planet serves no network yet; run `planet adopt FILE` first")
        }
    }
}

/// Puts a first or a newer edition of the network into a store that no planet has open.
///
/// # Errors
/// The text is no network document, of another network, or older than what is there.
pub fn adopt(store: &mut DiskStore, text: &str) -> Result<String, Problem> {
    let statement: Signed<RootStatement> = armor::Armor::Network
        .decode(text)
        .map_err(|error| Problem::document(&error))?;
    let network = Network::from_statement(&statement).map_err(|error| Problem::document(&error))?;
    let records = store.load()?;
    let known = records.iter().find_map(|record| match record {
        Record::Network(known) => Some(Network::from_statement(known)),
        _ => None,
    });
    let unknown = records.iter().find_map(|record| match record {
        Record::UnknownUses(until) => Some(*until),
        _ => None,
    });
    let known = known
        .transpose()
        .map_err(|error| Problem::damaged(&error))?;
    if let Some(known) = &known {
        Problem::if_other_network(known, &network)?;
        if network.version <= known.version {
            let message = format!(
                "the planet serves version {} of network {} already",
                known.version, known.name
            );
            return Ok(message);
        }
    }
    let changes = edition((known.as_ref(), unknown), &statement)
        .map_err(|error| Problem::document(&error))?;
    store.commit(&changes)?;
    Ok(format!(
        "the planet serves network {} ({}), version {}",
        network.name, network.id, network.version
    ))
}

/// Opens the store of a planet that has a key. If it is gone, so is what it held: the new one says so.
fn open_store(state_dir: &Path) -> Result<DiskStore, Problem> {
    match DiskStore::open(state_dir) {
        Err(StoreError::Missing { .. }) => {
            tracing::warn!(
                "the planet's books are gone; it asks its members before it grants again"
            );
            Ok(DiskStore::create(state_dir, Origin::Lost)?)
        }
        opened => Ok(opened?),
    }
}

async fn serve(
    mut server: Server,
    planet: PlanetId,
    (questions, stop, service): (&mut mpsc::Receiver<Asked>, &mut Stop, &Service),
) -> Result<(), Problem> {
    let mind = server.mind();
    let mut alive = Alive::new(service);
    loop {
        tokio::select! {
            () = stop.requested() => {
                tracing::info!("the planet stops; its nodes go on and come back");
                server.stop().await;
                return Ok(());
            }
            () = server.ended() => return Err(Problem::failed("the planet has stopped thinking")),
            asked = questions.recv() => {
                if let Some((request, answer)) = asked {
                    tokio::spawn(relay_question(mind.clone(), planet, request, answer));
                }
            }
            () = alive.due() => {
                if responds(&mind).await {
                    service.say("WATCHDOG=1");
                }
            }
        }
    }
}

async fn responds(mind: &mpsc::Sender<Message>) -> bool {
    let (asker, answered) = oneshot::channel();
    let ask =
        async { mind.send(Message::AreYouThere(asker)).await.is_ok() && answered.await.is_ok() };
    timeout(STUCK, ask).await.unwrap_or(false)
}

async fn relay_question(
    mind: mpsc::Sender<Message>,
    planet: PlanetId,
    request: Request,
    answer: oneshot::Sender<Response>,
) {
    let done = |result: Result<String, String>| match result {
        Ok(message) => Response::Done { message },
        Err(message) => Response::failed(message),
    };
    let response = match request {
        Request::Status => ask(&mind, Question::Status)
            .await
            .map(|status| Response::Status(Box::new(status))),
        Request::Registry => ask(&mind, Question::Registry)
            .await
            .map(|registry| match registry {
                Ok(registry) => Response::Registry(Box::new(registry)),
                Err(message) => Response::failed(message),
            }),
        Request::Network => ask(&mind, Question::Registry).await.map(document),
        Request::TrustEmpty => ask(&mind, Question::TrustEmpty).await.map(done),
        Request::Statement {
            planet: Some(meant),
            ..
        }
        | Request::Backup { planet: meant }
            if meant != planet =>
        {
            Some(Response::failed("another planet runs there"))
        }
        Request::Backup { .. } => ask(&mind, Question::Backup)
            .await
            .map(|backup| match backup {
                Ok(content) => Response::Backup {
                    content: STANDARD.encode(content),
                },
                Err(message) => Response::failed(message),
            }),
        Request::Statement { statement, .. } => match armor::decode_statement(&statement) {
            Ok(statement) => {
                let question = |asker| Question::Statement(Box::new(statement), asker);
                ask(&mind, question).await.map(done)
            }
            Err(error) => Some(Response::failed(error.to_string())),
        },
    };
    let response = response.unwrap_or_else(|| Response::failed("the planet is stopping"));
    let _ = answer.send(response);
}

/// The document in a registry, with what names it.
fn document(registry: Result<RegistryView, String>) -> Response {
    let read = registry.and_then(|registry| {
        let read = Signed::<RootStatement>::from_base64(&registry.statement)
            .map_err(CertificateError::from)
            .and_then(|statement| Network::from_statement(&statement));
        let network = read.map_err(|error| error.to_string())?;
        Ok((registry.statement, network))
    });
    match read {
        Ok((statement, network)) => Response::Network {
            statement,
            id: network.id,
            version: network.version,
        },
        Err(message) => Response::failed(message),
    }
}

async fn ask<T>(
    mind: &mpsc::Sender<Message>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (asker, answered) = oneshot::channel();
    mind.send(Message::Operator(question(asker))).await.ok()?;
    answered.await.ok()
}

fn warn_if_unnamed(network: &Network, planet: &PlanetId) {
    if !network.planets.iter().any(|entry| entry.id == *planet) {
        tracing::warn!(
            network = %network.name,
            "the network's document doesn't name this planet, so no node comes here; add it with `meshctl network`"
        );
    }
}

fn key_again(key: &SigningKey) -> SigningKey {
    SigningKey::from_seed(*key.seed())
}

fn unadopted(planet: PlanetId) -> PlanetStatus {
    PlanetStatus {
        schema: SCHEMA.to_owned(),
        planet,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        network: None,
        network_name: None,
        network_version: 0,
        arbiter: false,
        not_granting: Some("this planet serves no network yet; run `planet adopt FILE`".to_owned()),
        write_error: None,
        remarks: Vec::new(),
        sequence: 0,
        members: Vec::new(),
        pending: 0,
        relay_sessions: 0,
        relay: Default::default(),
    }
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self, Problem> {
        let listen = |kind| signal(kind).map_err(|error| Problem::failed(error.to_string()));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// When the service manager wants a sign of life.
struct Alive {
    ticks: Option<tokio::time::Interval>,
}

impl Alive {
    fn new(service: &Service) -> Self {
        let ticks = service.watchdog().map(|period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { ticks }
    }

    async fn due(&mut self) {
        match &mut self.ticks {
            Some(ticks) => {
                ticks.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}
