//! From configuration and disk to a running node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podmesh_engine::config::{EngineConfig, Thresholds};
use podmesh_engine::drops::Drops;
use podmesh_engine::engine::Engine;
use podmesh_engine::error::StartError;
use podmesh_engine::forwarding::ForwardingTable;
use podmesh_engine::stored::{STORED_VERSION, StoredState};
use podmesh_kernel::descriptors::Descriptors;
use podmesh_kernel::tun::{TunDevice, TunError, TunQueue};
use podmesh_kernel::udp::BindError;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::{Inputs, Node};
use crate::cli::Cli;
use crate::config::Config;
use crate::doors::Doors;
use crate::handover::{self, Inheritance, Terms};
use crate::host::{Host, HostConfig, HostReport};
use crate::identity::{self, Identity};
use crate::node_file::NodeFiles;
use crate::planet_link::{LastGood, PlanetLinks};
use crate::regency::{self, Regent};
use crate::service::Service;
use crate::shard::{Shards, Shared, lanes};
use crate::sockets::{Outbox, Sockets, is_taken};
use crate::state::{Document, Loaded, StateDir, StateError, Writer};
use crate::{clock, random};

const FILE: &str = "state";
const KIND: &str = "podmesh state file";
/// However few processors there are: the system deals them out, and a little flow doesn't wait for the bulk
/// of a peer that another thread is busy with.
const SHARDS: usize = 8;
/// Ports that are tried when the kept one is taken.
const PORT_TRIES: usize = 8;
/// Bytes that a control datagram can have at most, generously.
const LONGEST_CONTROL: usize = 2_048;
const EVENTS: usize = 256;
const REQUESTS: usize = 64;
/// For another meshd to end once it has given everything away.
const LAST_MOMENTS: Duration = Duration::from_secs(3);
/// For the sockets of one that was killed to be closed.
const CLOSING: Duration = Duration::from_millis(250);

/// Opens everything that a node needs; its shards are to be started. Nothing of the host is touched
/// before the state folder's lock is held. `mtu` is the interface's, bytes.
///
/// # Errors
/// One sentence.
pub(crate) async fn prepare(
    cli: &Cli,
    config: &Config,
    mtu: u32,
    (mut inherited, service): (Descriptors, &Service),
) -> Result<(Node, Inputs), StartFailure> {
    let dir = open_state(cli).await?;
    let (document, stored, mut identity) = load_kept(&dir)?;
    let regent = inherited.take(regency::NAME).map(Regent::new);
    let (sockets, queues) = open_network(cli, config, &mut identity, (inherited, service)).await?;
    let sockets = Arc::new(sockets);
    let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
    let ports = sockets.ports();
    let engine = engine((config, mtu), &identity, stored, ports)?;
    // Last of what can fail for a reason of the machine's: who finds the socket finds a node.
    let terms = Terms::new(Some(queues.len()), &config.device, ports.first().copied());
    let (requests, request_queue) = mpsc::channel(REQUESTS);
    let (heirs, heir_queue) = mpsc::channel(1);
    let terms = (terms, service.is_there());
    let doors = Doors::open(&cli.runtime_dir, terms, requests, heirs)?;
    let (items, item_queues) = lanes();
    let (events, link_queue) = mpsc::channel(EVENTS);
    let (reports, report_queue) = mpsc::channel::<HostReport>(1);
    let (checked, checked_queue) = mpsc::channel(1);
    let table = Arc::new(ForwardingTable::empty(Arc::new(Drops::default())));
    let longest = usize::try_from(mtu).unwrap_or(usize::MAX);
    let shared = Arc::new(Shared::new(table, sockets, items, (longest, regent)));
    let files = NodeFiles::new(&cli.runtime_dir, dir.path(), config.subnet_env.clone());
    let writer = Writer::start(document)?;
    let inputs = Inputs {
        items: item_queues,
        links: link_queue,
        requests: request_queue,
        reports: report_queue,
        checked: checked_queue,
        progress: writer.progress(),
        heirs: heir_queue,
    };
    let node = Node {
        engine,
        shards: Shards::start(shared, &queues)?,
        queues,
        outbox: Outbox::new(0, LONGEST_CONTROL.max(longest)),
        links: PlanetLinks::new(events, LastGood::load(&dir), config.mark.value()),
        host: Host::start(host_config(config, ports), files, reports)?,
        report: HostReport::default(),
        writer,
        held: super::Held::default(),
        waiting: super::Waiting::default(),
        checked,
        join_trouble: None,
        ledger: super::LedgerNews::default(),
        join_waits: None,
        next_try: clock::now().moment,
        vanished: super::Vanished::default(),
        identity,
        mtu,
        config: config.clone(),
        doors,
        helpers: Handle::current(),
        remade: false,
        device_trouble: None,
        dir,
    };
    Ok((node, inputs))
}

/// What another meshd had open: one that runs and is to end, if the command line says so, or the one
/// before, which the service manager has `kept`.
///
/// # Errors
/// The one that runs gives nothing away, or no descriptor is left.
pub(crate) fn inherit(
    cli: &Cli,
    config: &Config,
    kept: &Descriptors,
) -> Result<Inheritance, StartFailure> {
    let kept = Inheritance {
        descriptors: kept.try_clone()?,
        predecessor: None,
    };
    if !cli.replace {
        return Ok(kept);
    }
    let terms = Terms::new(config.shards, &config.device, config.port);
    match handover::ask(&cli.runtime_dir, &terms) {
        Ok(Some(inheritance)) => Ok(inheritance),
        Ok(None) => {
            tracing::info!("no meshd runs here that could be replaced");
            Ok(kept)
        }
        Err(error) => Err(StartFailure::Refused(error.to_string())),
    }
}

fn host_config(config: &Config, ports: [u16; 2]) -> HostConfig {
    HostConfig {
        device: config.device.clone(),
        exclude_interfaces: config.exclude_interfaces.clone(),
        local_devices: config.local_devices.clone(),
        mark: config.mark,
        ports,
    }
}

/// A meshd that has just given everything away needs a moment to end.
async fn open_state(cli: &Cli) -> Result<StateDir, StartFailure> {
    let patience = if cli.replace {
        LAST_MOMENTS
    } else {
        Duration::ZERO
    };
    let begin = Instant::now();
    loop {
        match StateDir::open(&cli.state_dir) {
            Err(StateError::InUse { .. }) if begin.elapsed() < patience => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(StateError::InUse { .. }) if cli.replace => {
                let words =
                    "it is just being replaced by another one; see `meshctl status`, and try again";
                return Err(StartFailure::Refused(words.to_owned()));
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// Takes over what it can, and opens the rest. Whoever is content with any number of shards has as many
/// as there were; and who replaces a meshd that runs, its port.
async fn open_network(
    cli: &Cli,
    config: &Config,
    identity: &mut Identity,
    (mut inherited, service): (Descriptors, &Service),
) -> Result<(Sockets, Vec<TunQueue>), StartFailure> {
    let names: Vec<String> = inherited.names().map(str::to_owned).collect();
    let queues = adopt_queues(config, &mut inherited);
    let shards = queues
        .as_ref()
        .map_or(config.shards.unwrap_or(SHARDS), Vec::len);
    let kept = (!cli.replace).then_some(identity.port);
    let sockets = Sockets::adopt(config.port.or(kept), shards, config, inherited);
    if queues.is_none() || sockets.is_none() {
        service.let_go(names.iter().cloned());
    }
    let sockets = match sockets {
        Some(sockets) => sockets,
        None => {
            let was_ours = cli.replace || !names.is_empty();
            bind(config, identity, (shards, was_ours)).await?
        }
    };
    let queues = match queues {
        Some(queues) => queues,
        None => TunDevice::open(&config.device, shards, config.offloads.tun())?.into_queues(),
    };
    if let (false, None, Some(port)) = (identity.is_kept(), config.port, sockets.ports().first()) {
        // Taken over, perhaps: the join keeps it.
        identity.change_port(*port);
    }
    Ok((sockets, queues))
}

/// The interface's queues that another meshd had, if they are as many as are wanted. Where any number will
/// do, it must be that of the sockets: some may be missing.
fn adopt_queues(config: &Config, inherited: &mut Descriptors) -> Option<Vec<TunQueue>> {
    let wanted = config.shards.unwrap_or_else(|| Sockets::shards(inherited));
    let queues = handover::take_queues(inherited);
    if queues.is_empty() || queues.len() != wanted {
        return None;
    }
    let device = TunDevice::adopt(&config.device, queues, config.offloads.tun());
    device
        .inspect_err(|error| tracing::warn!(reason = %error, "the interface is opened anew"))
        .map(TunDevice::into_queues)
        .ok()
}

/// Why meshd doesn't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartFailure {
    /// The state folder or a file in it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The UDP port.
    #[error(transparent)]
    Port(#[from] BindError),
    /// The interface.
    #[error(transparent)]
    Device(#[from] TunError),
    /// What was stored.
    #[error(transparent)]
    Stored(#[from] StartError),
    /// The meshd that runs doesn't hand over.
    #[error("the meshd that runs here can't be replaced: {0}")]
    Refused(String),
    /// A socket, thread or descriptor.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl StartFailure {
    /// Exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        let is_permission = match self {
            Self::State(StateError::Owner { .. } | StateError::Mode { .. }) => true,
            Self::State(StateError::Unusable { cause, .. }) | Self::System(cause) => {
                cause.kind() == std::io::ErrorKind::PermissionDenied
            }
            Self::Port(error) => error.source.kind() == std::io::ErrorKind::PermissionDenied,
            Self::Device(error) => matches!(error, TunError::Permission),
            Self::State(_) | Self::Stored(_) | Self::Refused(_) => false,
        };
        if is_permission { 5 } else { 1 }
    }
}

/// State and identity. Which keys count depends on what the state knows.
fn load_kept(dir: &StateDir) -> Result<(Document, Option<Box<StoredState>>, Identity), StateError> {
    let (document, stored) = load_state(dir)?;
    let has_history = stored.as_deref().is_some_and(knows_a_network);
    let identity = Identity::load(dir, identity::machine(), has_history)?;
    Ok((document, stored, identity))
}

fn load_state(dir: &StateDir) -> Result<(Document, Option<Box<StoredState>>), StateError> {
    let mut document = Document::new(dir, FILE, KIND, STORED_VERSION);
    let content = match document.load()? {
        Loaded::Nothing => return Ok((document, None)),
        Loaded::Current(content) => content,
        Loaded::Previous(content, damage) => {
            tracing::warn!(
                reason = damage,
                "the state file is damaged, its previous generation is used"
            );
            content
        }
    };
    let stored = StoredState::read(&content).map_err(|_| StateError::Damaged {
        path: dir.path().join(FILE),
        damage: "its content is unreadable".to_owned(),
    })?;
    Ok((document, Some(Box::new(stored))))
}

/// Whether the node is, was, or is about to be a member.
fn knows_a_network(state: &StoredState) -> bool {
    state.membership.is_some() || state.joining.is_some() || !state.departures.is_empty()
}

/// Binds the configured or kept port; a kept one that another program has is left for a new one, behind
/// which no peer looks for this node. So a port is waited for: a meshd that ends gives its state's lock
/// back before its sockets, and whoever keeps descriptors needs a moment to let them go.
async fn bind(
    config: &Config,
    identity: &mut Identity,
    (shards, was_ours): (usize, bool),
) -> Result<Sockets, StartFailure> {
    let patience = if was_ours { LAST_MOMENTS } else { CLOSING };
    let begin = Instant::now();
    let mut tries = 0..PORT_TRIES;
    loop {
        let port = config.port.unwrap_or(identity.port);
        match Sockets::bind(port, shards, config) {
            Err(error) if is_taken(&error) && begin.elapsed() < patience => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) if is_taken(&error) && config.port.is_none() && tries.next().is_some() => {
                tracing::warn!(port, "another program has the UDP port; taking a new one");
                identity.change_port(Identity::another_port());
            }
            outcome => return Ok(outcome?),
        }
    }
}

fn engine(
    (config, mtu): (&Config, u32),
    identity: &Identity,
    stored: Option<Box<StoredState>>,
    ports: [u16; 2],
) -> Result<Engine, StartFailure> {
    let config = EngineConfig {
        keys: identity.keys(),
        next: identity.next(),
        stored,
        ports,
        configured: config.endpoints.clone(),
        pod_cidrs: Vec::new(),
        mtu,
        device: config.device.clone(),
        tunnel: config.tunnel,
        thresholds: Thresholds::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(Engine::new(config, random::bytes()?, clock::now())?)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::thread;

    use super::*;
    use crate::scratch::Scratch;

    /// The port that is found where another socket has the kept one for so long.
    async fn found(held: Duration, was_ours: bool) -> (u16, u16, Duration) {
        let scratch = Scratch::new();
        let dir = StateDir::open(&scratch.path("state")).unwrap();
        let mut identity = Identity::load(&dir, None, false).unwrap();
        identity.keep().unwrap();
        let kept = identity.port;
        let other = UdpSocket::bind(("0.0.0.0", kept)).unwrap();
        let holder = thread::spawn(move || {
            thread::sleep(held);
            drop(other);
        });
        let begin = Instant::now();
        let sockets = bind(&Config::default(), &mut identity, (1, was_ours)).await;
        let taken = begin.elapsed();
        let port = sockets.unwrap().ports()[0];
        assert_eq!(port, identity.port);
        holder.join().unwrap();
        (kept, port, taken)
    }

    #[tokio::test]
    async fn a_port_whose_holder_ends_is_waited_for() {
        let (kept, port, _) = found(Duration::from_millis(20), false).await;
        assert_eq!(port, kept);
        let (kept, port, _) = found(CLOSING * 2, true).await;
        assert_eq!(port, kept);
    }

    #[tokio::test]
    async fn a_port_that_another_program_keeps_is_left_to_it() {
        let (kept, port, taken) = found(CLOSING * 2, false).await;
        assert_ne!(port, kept);
        assert!(taken >= CLOSING, "{taken:?}");
    }
}
