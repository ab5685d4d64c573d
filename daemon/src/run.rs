//! The slow half: one loop that owns the engine.
//!
//! Everything that happens comes in by a queue of its own (datagrams and packets that the shards can't
//! deal with, planets, local requests, the host, timers) and is told to the engine, a bounded number of
//! each kind per turn. After each turn everything that the engine wants is done.

mod durable;
mod ending;
mod join;
mod ledger;
mod requests;
mod rotation;
mod start;
mod vanished;
mod views;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use podmesh_engine::engine::Engine;
use podmesh_engine::host_plan::HostPlan;
use podmesh_engine::output::{Output, PlanetEvent, SlowItem, Transmit};
use podmesh_engine::reach::Passage;
use podmesh_kernel::alarm::Alarm;
use podmesh_kernel::descriptors::Descriptors;
use podmesh_kernel::process;
use podmesh_kernel::tun::{TunDevice, TunQueue};
use podmesh_proto::id::PlanetId;
use podmesh_proto::local_api::{Failure, NodeState};
use podmesh_proto::time::{Moment, Now};
use tokio::runtime::{self, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::durable::{Effect, Held};
use self::join::Checked;
use self::ledger::LedgerNews;
use self::requests::Waiting;
use self::start::StartFailure;
use self::vanished::Vanished;
use crate::cli::Cli;
use crate::clock;
use crate::config::Config;
use crate::device_mtu;
use crate::doors::Doors;
use crate::handover::{self, Heir, Inheritance, Predecessor};
use crate::host::{Host, HostReport};
use crate::identity::Identity;
use crate::kept::Kept;
use crate::local_socket::Asked;
use crate::planet_link::{LinkEvent, LinkNews, PlanetLinks};
use crate::random;
use crate::service::Service;
use crate::shard::{Queues, Shards};
use crate::sockets::Outbox;
use crate::state::{Progress, StateDir, Writer};

/// Threads for planets, local requests and name resolution, beside the one that decides.
const HELPERS: usize = 2;
/// Items of the fast half that are dealt with before other things get their turn.
const BUDGET: usize = 64;
/// Deadlines of requests and the device's presence are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// What the disk has refused is tried again this often.
const NEXT_TRY: Duration = Duration::from_secs(5);
/// For closing connections and for the disk, when meshd ends.
const LAST_WORDS: Duration = Duration::from_millis(100);
const LAST_WRITE: Duration = Duration::from_secs(3);

/// A running node.
struct Node {
    engine: Engine,
    config: Config,
    shards: Shards,
    queues: Vec<Arc<TunQueue>>,
    outbox: Outbox,
    links: PlanetLinks,
    host: Host,
    report: HostReport,
    writer: Writer<podmesh_engine::stored::StoredState>,
    held: Held,
    waiting: Waiting,
    checked: mpsc::Sender<Checked>,
    /// Why the last join failed, and what to do.
    join_trouble: Option<Failure>,
    ledger: LedgerNews,
    /// What a join without a person waits for.
    join_waits: Option<Awaited>,
    /// When what the disk refused is tried again.
    next_try: Moment,
    vanished: Vanished,
    identity: Identity,
    /// Bytes, of the interface.
    mtu: u32,
    /// Where meshctl and the next meshd come in.
    doors: Doors,
    /// What takes its time is done there.
    helpers: Handle,
    /// The interface was made anew, with other queues.
    remade: bool,
    /// Why it is missing, while it can't be made anew.
    device_trouble: Option<String>,
    /// Keeps a second meshd out as long as this one runs.
    dir: StateDir,
}

/// What passes, or comes, without anybody telling meshd.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// A disk that can be written.
    Disk,
    /// The token file of the configuration.
    Token,
}

/// Where things come in.
struct Inputs {
    items: Queues,
    links: mpsc::Receiver<LinkEvent>,
    requests: mpsc::Receiver<Asked>,
    reports: mpsc::Receiver<HostReport>,
    checked: mpsc::Receiver<Checked>,
    progress: watch::Receiver<Progress>,
    heirs: mpsc::Receiver<Heir>,
}

/// Runs a node until a signal asks it to end. What the service manager has kept open stays open until
/// nothing of the start can fail any more, for the next try.
///
/// # Errors
/// Why it can't start; one sentence.
pub(crate) fn serve(
    cli: &Cli,
    config: &Config,
    has: (&Service, &mut Descriptors),
) -> Result<(), StartFailure> {
    if let Err(error) = process::forbid_dumps() {
        tracing::debug!(reason = %error, "core files are not forbidden");
    }
    let helpers = runtime::Builder::new_multi_thread()
        .worker_threads(HELPERS)
        .thread_name("slow-half")
        .enable_all()
        .build()?;
    // Its timers are this thread's own: nobody has to be woken to wake it.
    let own = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = live(cli, config, has, (&helpers, &own));
    // Whatever still hangs, a name's resolution for example, must not hold up the end.
    helpers.shutdown_background();
    outcome
}

/// One life after the other, until one isn't to be gone on with.
fn live(
    cli: &Cli,
    config: &Config,
    (service, kept): (&Service, &mut Descriptors),
    (helpers, own): (&Runtime, &Runtime),
) -> Result<(), StartFailure> {
    let mtu = helpers.block_on(device_mtu::choose(config));
    let mut inherited = start::inherit(cli, config, kept)?;
    loop {
        let has = (inherited.descriptors, service);
        let (node, inputs) = helpers.block_on(start::prepare(cli, config, mtu, has))?;
        *kept = Descriptors::default();
        service.begun();
        let life = decide(node, inputs, (inherited.predecessor, service));
        let Some(descriptors) = own.block_on(life)? else {
            return Ok(());
        };
        inherited = Inheritance {
            descriptors,
            predecessor: None,
        };
    }
}

/// A life of the node. Gives what it had open if another meshd wanted to take over and couldn't.
async fn decide(
    mut node: Node,
    mut inputs: Inputs,
    (predecessor, service): (Option<Predecessor>, &Service),
) -> std::io::Result<Option<Descriptors>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut alarm = Alarm::new()?;
    let mut next_tick = clock::now().moment;
    let mut items = Vec::with_capacity(BUDGET);
    if let Some(predecessor) = predecessor {
        predecessor.relieve()?;
    }
    // The first table is among them.
    node.do_outputs();
    node.shards.begin();
    node.clear_host_unless_member();
    node.join_unattended();
    service.keep(&node.inventory());
    service.ready();
    let heir = loop {
        let now = clock::now();
        if next_tick <= now.moment {
            // With what the engine does each second: an idle node wakes once for all of it.
            next_tick = now.moment.after_on_grid(TICK);
            node.tick();
            service.alive();
        }
        node.handle_timeout(now);
        let next = node
            .engine
            .poll_timeout()
            .map_or(next_tick, |at| at.min(next_tick));
        alarm.set(next.since_start())?;
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            Some(heir) = inputs.heirs.recv() => break Some(heir),
            _ = hang_up.recv() => tracing::info!("nothing to reload; restart meshd to read its configuration"),
            () = inputs.items.recv_many(&mut items, BUDGET) => node.take_items(&mut items),
            Some(event) = inputs.links.recv() => node.take_link_event(event),
            Some(asked) = inputs.requests.recv() => node.take_request(asked),
            Some(report) = inputs.reports.recv() => node.take_report(report),
            Some(checked) = inputs.checked.recv() => node.take_checked(checked),
            Ok(()) = inputs.progress.changed() => node.take_progress(&inputs.progress.borrow_and_update()),
            rung = alarm.rung() => rung?,
        }
        if std::mem::take(&mut node.remade) {
            let all = node.inventory();
            service.let_go(all.iter().map(|(name, _)| name.clone()));
            service.keep(&all);
        }
    };
    if let Some(heir) = heir {
        tracing::info!("another meshd takes over");
        return Ok(node.hand_over(heir, &mut terminate).await);
    }
    tracing::info!("meshd is ending; interface, routes and rules stay");
    service.stopping();
    node.stop().await;
    Ok(None)
}

impl Node {
    /// What a former membership has left on the host goes, unless the node is still a member. What a
    /// node that was put out must hold, its engine says.
    fn clear_host_unless_member(&self) {
        let status = self.engine.status(clock::now());
        let id = self.identity.is_kept().then(|| self.engine.node_id());
        tracing::info!(
            node = id.map(|id| id.short()),
            device = self.config.device,
            port = self.shards.shared().sockets.ports().first().copied(),
            state = ?status.state,
            "meshd has started"
        );
        match status.state {
            NodeState::NotJoined | NodeState::Joining => {
                self.host
                    .set(HostPlan::empty(&self.config.device, self.mtu));
            }
            NodeState::Online | NodeState::PlanetsDown | NodeState::Revoked | NodeState::Ended => {}
        }
    }

    /// Does what is due.
    fn handle_timeout(&mut self, now: Now) {
        let due = self.engine.poll_timeout();
        if due.is_some_and(|moment| moment <= now.moment) {
            self.engine.handle_timeout(now);
        }
        self.do_outputs();
    }

    fn take_items(&mut self, items: &mut Vec<SlowItem>) {
        let now = clock::now();
        for item in items.drain(..) {
            self.engine.handle_item(item, now);
        }
    }

    fn take_link_event(&mut self, event: LinkEvent) {
        if !self.links.admit(&event) {
            return;
        }
        let planet = event.planet;
        let told = match event.news {
            LinkNews::Connected(connected) => {
                if let Some(hello) = self.engine.hello(planet, connected.exported.as_slice()) {
                    self.links.send(planet, hello);
                }
                PlanetEvent::Connected {
                    remote: connected.remote,
                    rtt: connected.rtt,
                }
            }
            LinkNews::Rtt(rtt) => PlanetEvent::Rtt(rtt),
            LinkNews::Message(message) => PlanetEvent::Message(message),
            LinkNews::Disconnected(reason) => PlanetEvent::Disconnected { reason },
        };
        self.engine.handle_planet(planet, told, clock::now());
    }

    fn take_report(&mut self, report: HostReport) {
        if report.underlay != self.report.underlay {
            tracing::info!(addresses = ?report.underlay, "the underlay has changed");
            self.engine
                .handle_underlay(report.underlay.clone(), clock::now());
            self.links.hurry();
        }
        for problem in report
            .problems
            .iter()
            .filter(|problem| !self.report.problems.contains(problem))
        {
            tracing::warn!(reason = problem, "the host is not as it should be");
        }
        self.report = report;
        if self.report.device.is_none() {
            self.remake_device();
        }
    }

    fn tick(&mut self) {
        // A machine that was restored from a snapshot, or several that were, notice it here.
        if let Ok(fresh) = random::bytes() {
            self.engine.handle_entropy(fresh);
        }
        if self.shards.lost_device() {
            self.remake_device();
        }
        if self.doors.mend(&self.helpers) || !self.report.files.iter().all(Kept::stands) {
            self.host.look();
        }
        self.expire_requests();
        self.watch_state(clock::now().moment);
        if self.next_try <= clock::now().moment {
            self.next_try = clock::now().moment + NEXT_TRY;
            self.identity.try_again();
            if self.join_waits.is_some() {
                self.join_unattended();
            }
        }
    }

    /// Somebody deleted the interface: makes it anew and gives its queues to the shards.
    fn remake_device(&mut self) {
        match TunDevice::open(
            &self.config.device,
            self.queues.len(),
            self.config.offloads.tun(),
        ) {
            Ok(device) => {
                tracing::warn!(
                    device = device.name(),
                    "the mesh interface was deleted and is made anew"
                );
                self.queues = device.into_queues().into_iter().map(Arc::new).collect();
                self.shards.replace_queues(&self.queues);
                self.remade = true;
                self.device_trouble = None;
                self.host.look();
            }
            Err(error) => {
                let reason = error.to_string();
                if self.device_trouble.as_ref() != Some(&reason) {
                    tracing::error!(
                        reason,
                        "the mesh interface was deleted and can't be made anew"
                    );
                }
                self.device_trouble = Some(reason);
            }
        }
    }

    /// Does everything that the engine wants by now.
    fn do_outputs(&mut self) {
        let helpers = self.helpers.clone();
        let _there = helpers.enter();
        while let Some(output) = self.engine.poll_output() {
            self.do_output(output);
        }
        if self.engine.take_moved() {
            // No generation may be left that names the keys which are about to go.
            self.held.wait_for(self.writer.outdate());
            self.do_in_order(Effect::KeysMoved);
        }
    }

    fn do_output(&mut self, output: Output) {
        match output {
            Output::Transmit(datagram) => self.transmit(&datagram),
            Output::Planet { planet, message } => {
                let effect = if self.brings_new_keys(&message) {
                    Effect::NewKeys(planet, message)
                } else {
                    Effect::Planet(planet, message)
                };
                self.do_in_order(effect);
            }
            Output::JoinDone(outcome) => self.do_in_order(Effect::JoinDone(outcome)),
            Output::Planets(planets) => self.do_in_order(Effect::Planets(planets)),
            Output::Reconnect(planet) => self.reconnect(planet),
            Output::Forwarding(table) => self.shards.publish(table),
            Output::HostPlan(plan) => self.host.set(*plan),
            Output::Persist(state) => self.held.wait_for(self.writer.put(*state)),
            Output::PodPacket(packet) => self.write_packet(&packet),
            Output::PingDone { id, result } => self.finish_ping(id, result),
        }
    }

    /// Sends one datagram. The engine's are few, and it wants to know of each whether there is a way.
    fn transmit(&mut self, datagram: &Transmit) {
        let shared = self.shards.shared();
        let way = (datagram.socket, datagram.to);
        if datagram.passage == Passage::Whole {
            // Longer than the device carries, perhaps: its loss is an answer, too.
            if let Err(error) = shared.sockets.send_whole(way, &datagram.bytes) {
                tracing::trace!(to = %datagram.to, reason = %error, "a datagram was not sent whole");
            }
            return;
        }
        let reach = datagram.passage.reach();
        self.outbox
            .push(&shared.sockets, way, reach, &datagram.bytes);
        let sent = self.outbox.flush(&shared.sockets);
        shared.counters.add_sent(&sent);
        if sent.lost() > 0 {
            tracing::debug!(to = %datagram.to, ?sent, "a datagram was not sent");
        }
        if sent.unreachable + sent.refused > 0 {
            self.engine
                .handle_unreachable(datagram.socket, datagram.to, clock::now());
        }
    }

    /// At once, or as soon as what the engine wanted on disk before is there.
    fn do_in_order(&mut self, effect: Effect) {
        if let Some(effect) = self.held.hold(effect) {
            self.do_effect(effect);
        }
    }

    fn take_progress(&mut self, progress: &Progress) {
        let helpers = self.helpers.clone();
        let _there = helpers.enter();
        for effect in self.held.release(progress) {
            self.do_effect(effect);
        }
        let written = progress.written >= progress.number;
        self.engine
            .handle_persisted(progress.values, written, clock::now());
        if !progress.fallen.is_empty() {
            self.restore_state(&progress.fallen);
        }
        if let Some(trouble) = &progress.trouble
            && (self.held.holds_keys() || self.engine.rotation_waits_for_disk())
        {
            self.postpone_rotation(trouble);
        }
    }

    fn do_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Planet(planet, message) | Effect::NewKeys(planet, message) => {
                self.links.send(planet, *message);
            }
            Effect::Planets(planets) => self.links.keep(planets),
            Effect::JoinDone(outcome) => self.finish_join(outcome),
            Effect::TokenUsed => self.let_token_go(),
            Effect::KeysMoved => self.finish_rotation(),
            Effect::Left(answer, untold) => self.finish_leave(answer, &untold),
            Effect::ForgetKeys(answer, untold) => self.forget_keys(answer, &untold),
        }
    }

    fn reconnect(&mut self, planet: PlanetId) {
        tracing::debug!(planet = planet.short(), "the planet has gone silent");
        self.links.reconnect(planet);
    }

    fn write_packet(&self, packet: &[u8]) {
        let Some(queue) = self.queues.first() else {
            return;
        };
        match queue.write_batch([packet]) {
            Ok(counts) => self.shards.shared().counters.add_written(&counts),
            Err(error) => tracing::debug!(reason = %error, "can't write to the TUN"),
        }
    }

    /// Everything that outlives this process.
    fn inventory(&self) -> Vec<(String, BorrowedFd<'_>)> {
        handover::inventory(&self.queues, &self.shards.shared().sockets)
    }
}
