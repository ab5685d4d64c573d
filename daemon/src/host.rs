//! Keeps the host as the engine's plan says: interface, routes, rules, nftables guard, node file.
//!
//! A thread of its own compares and repairs: when the plan changes, when the kernel reports that
//! somebody changed something, and every half minute. It also tells which underlay addresses the node
//! has. When meshd ends, all of it stays: pods of one node keep talking, and nothing leaves in plaintext.

mod closing;
mod errand;
mod fights;
mod firewalls;
mod former;
mod remarks;
mod settings;
mod wanted;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use podmesh_engine::host_plan::HostPlan;
use podmesh_kernel::firewall::Advice;
use podmesh_kernel::host::{Change, HostState, Inside, Outcome, Problem, Reconciler};
use podmesh_kernel::netlink::Netlink;
use podmesh_kernel::nft::{self, GuardRules};
use podmesh_kernel::rule::MARK_PRIORITY;
use podmesh_kernel::veth::{self, Holders};
use podmesh_kernel::watch::Watcher;
use podmesh_kernel::xfrm;
use podmesh_proto::mark::Mark;
use podmesh_proto::node_file::NodeFile;
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use self::errand::Errand;
use self::fights::Fights;
use self::firewalls::Firewalls;
use self::former::beside;
pub(crate) use self::remarks::Remark;
use self::remarks::shorten;
use self::settings::{Settings, without_v6};
use self::wanted::{guard, has_v6, holders, host_state, traffic, usable};
use crate::config::{is_excluded, mark_remark};
use crate::kept::Kept;
use crate::node_file::NodeFiles;
use crate::overlap;

/// What the names of pod interfaces on the host begin with, as the CNI plugin makes them.
const VETH_PREFIX: &str = "pm";
/// Changes of the kernel's tables that follow each other this closely are looked at together.
const SETTLE: Duration = Duration::from_millis(200);
/// A look without a reason.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// While plugins that are chained behind ours may still change a pod.
const LOOK_AT_YOUNG: Duration = Duration::from_secs(1);
/// Pods that have a line of their own when something is wrong with them.
const MOST_TROUBLES: usize = 8;
/// After something went wrong.
const RETRY: Duration = Duration::from_secs(2);

/// What the configuration says about the host.
#[derive(Debug, Clone)]
pub(crate) struct HostConfig {
    /// The mesh interface.
    pub(crate) device: String,
    /// Interfaces whose addresses are no candidates; a `*` at the end stands for the rest of a name.
    pub(crate) exclude_interfaces: Vec<String>,
    /// Other interfaces whose containers may use the mesh.
    pub(crate) local_devices: Vec<String>,
    /// The mark of the underlay's datagrams.
    pub(crate) mark: Mark,
    /// UDP ports of the underlay.
    pub(crate) ports: [u16; 2],
}

/// How the host is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostReport {
    /// Addresses by which others might reach this node, sorted.
    pub(crate) underlay: Vec<IpAddr>,
    /// Index of the mesh interface; `None` while it is missing.
    pub(crate) device: Option<u32>,
    /// What keeps pods from being attached; empty when all is in place.
    pub(crate) problems: Vec<String>,
    /// What somebody should look at, without pods being in danger.
    pub(crate) remarks: Vec<Remark>,
    /// How many pods stand.
    pub(crate) pods: usize,
    /// How many memberships before the present one keep ranges closed, as pods of theirs stand.
    pub(crate) former: usize,
    /// Firewalls of others that drop packets of pods or tunnels. No reason to attach no pod: a runtime
    /// would take the whole node for broken, and it isn't.
    pub(crate) refusals: Vec<Advice>,
    /// The files for other programs, as they were written.
    pub(crate) files: Vec<Kept>,
}

/// The way to the thread that keeps the host.
pub(crate) struct Host {
    plan: watch::Sender<Option<HostPlan>>,
    thread: thread::JoinHandle<()>,
}

impl Host {
    /// Starts the thread. Until it is given a plan it changes nothing. It ends with this value.
    ///
    /// # Errors
    /// The kernel's tables can't be read or watched.
    pub(crate) fn start(
        config: HostConfig,
        files: NodeFiles,
        reports: mpsc::Sender<HostReport>,
    ) -> io::Result<Self> {
        let (plan, plans) = watch::channel(None);
        let (started, has_started) = std::sync::mpsc::sync_channel(1);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let keeper = match Keeper::new(config, files) {
                        Ok(keeper) => keeper,
                        Err(error) => return started.send(Err(error)).unwrap_or_default(),
                    };
                    // Only a caller that has gone away doesn't listen.
                    let _ = started.send(Ok(()));
                    keeper.run(plans, reports).await;
                });
            })?;
        has_started.recv().map_err(io::Error::other)??;
        Ok(Self { plan, thread })
    }

    /// Waits until nothing on the host is changed any more.
    pub(crate) fn end(self) {
        drop(self.plan);
        // A thread that has panicked changes nothing either.
        let _ = self.thread.join();
    }

    /// Makes the host so from now on.
    pub(crate) fn set(&self, plan: HostPlan) {
        self.plan.send_replace(Some(plan));
    }

    /// Looks at once, for instance because the device was made anew.
    pub(crate) fn look(&self) {
        self.plan.send_modify(|_| {});
    }
}

struct Keeper {
    netlink: Arc<Netlink>,
    reconciler: Reconciler,
    watcher: Watcher,
    config: HostConfig,
    files: NodeFiles,
    settings: Settings,
    pods: veth::Mender,
    /// Whether what comes after the plugin may still change one.
    pods_are_young: bool,
    /// Whether something of a membership may be left to take away.
    was_member: bool,
    /// Connections that began while the guard was away are forgotten.
    strays: Errand,
    firewalls: Firewalls,
    fights: Fights,
    /// The guard as it last was.
    guarded: Option<GuardRules>,
}

impl Keeper {
    fn new(config: HostConfig, files: NodeFiles) -> io::Result<Self> {
        let netlink = Arc::new(Netlink::connect().map_err(io::Error::other)?);
        Ok(Self {
            reconciler: Reconciler::new(Arc::clone(&netlink)),
            netlink,
            watcher: Watcher::start(SETTLE)?,
            config,
            files,
            settings: Settings::default(),
            pods: veth::Mender::default(),
            pods_are_young: false,
            was_member: true,
            strays: Errand::new(),
            firewalls: Firewalls::new(),
            fights: Fights::default(),
            guarded: None,
        })
    }

    async fn run(
        mut self,
        mut plans: watch::Receiver<Option<HostPlan>>,
        reports: mpsc::Sender<HostReport>,
    ) {
        let mut last = HostReport::default();
        loop {
            let plan = plans.borrow_and_update().clone();
            let report = self.look(plan.as_ref()).await;
            let is_good = report.problems.is_empty() && !self.files.keep_waiting();
            if report != last && reports.send(report.clone()).await.is_err() {
                return;
            }
            last = report;
            let patience = match is_good {
                true if self.pods_are_young => LOOK_AT_YOUNG,
                true => LOOK_AGAIN,
                false => RETRY,
            };
            if !self.wait(&mut plans, Instant::now() + patience).await {
                return;
            }
        }
    }

    /// Until there is a reason to look. False if nobody wants that any more.
    async fn wait(
        &mut self,
        plans: &mut watch::Receiver<Option<HostPlan>>,
        look_again: Instant,
    ) -> bool {
        loop {
            // What the last look could have done and hasn't has no object.
            let now = Instant::now();
            let errands = [self.strays.at(), self.firewalls.errand.at()];
            let later = errands.into_iter().flatten().filter(|at| *at > now);
            let end = later.fold(look_again, Instant::min);
            let glance_at = self.firewalls.glance_at();
            let change = tokio::select! {
                changed = plans.changed() => return changed.is_ok(),
                change = self.watcher.next() => change,
                () = sleep_until(glance_at), if glance_at < end => match self.firewalls.glance() {
                    true => return true,
                    false => continue,
                },
                () = sleep_until(end) => {
                    // Where notices can't be had, this is all there is.
                    self.firewalls.errand.ask();
                    return true;
                }
            };
            let Ok(change) = change else {
                sleep(RETRY).await;
                return true;
            };
            if change.guard || change.overrun {
                self.strays.ask();
                // An ADD that began before the end of a membership puts its guard back, and its pod not.
                self.was_member = true;
            }
            if change.firewall || change.overrun {
                self.firewalls.errand.ask();
            }
            // Others may change theirs all the time; they are looked at when that is due.
            let is_due = self
                .firewalls
                .errand
                .at()
                .is_some_and(|at| at <= Instant::now());
            if is_due || !change.is_firewall_alone() {
                return true;
            }
        }
    }

    async fn look(&mut self, plan: Option<&HostPlan>) -> HostReport {
        let mut report = HostReport::default();
        let mark = mark_remark(self.config.mark);
        let mark = mark.map(|(remark, next)| Remark::new(remark, next));
        report.remarks.extend(mark);
        match self.netlink.link(&self.config.device).await {
            // One that is somebody else's is none; the reconciler says so.
            Ok(link) => {
                let ours = link.filter(|link| link.unfit.is_none());
                report.device = ours.map(|link| link.index);
            }
            Err(error) => report.problems.push(error.to_string()),
        }
        if let Some(plan) = plan {
            self.keep(plan, &mut report).await;
            self.name_overlaps(plan, &mut report).await;
        }
        let uplinks = self.uplinks(plan).await.unwrap_or_else(|error| {
            report.remarks.push(Remark::of_kernel(&error));
            Vec::new()
        });
        report.underlay = uplinks.iter().map(|(_, address)| *address).collect();
        report.underlay.sort_unstable();
        report.underlay.dedup();
        report.refusals = match plan {
            Some(plan) if report.device.is_some() => {
                self.firewalls.look(&traffic(plan, &self.config, &uplinks))
            }
            _ => Vec::new(),
        };
        report
    }

    async fn keep(&mut self, plan: &HostPlan, report: &mut HostReport) {
        let devices = self.config.local_devices.clone();
        match plan.node_file(devices, self.config.mark) {
            Some(file) => self.keep_member(plan, file, report).await,
            None if self.was_member || !plan.protected.is_empty() => {
                self.keep_closed(plan, report).await;
            }
            None => {
                let state = host_state(plan, (self.config.mark, has_v6()));
                self.apply(&state, None, report).await;
            }
        }
    }

    async fn keep_member(&mut self, plan: &HostPlan, file: NodeFile, report: &mut HostReport) {
        self.was_member = true;
        let v6 = match report.device {
            Some(_) => self.settings.keep_device(&file, report),
            None => has_v6(),
        };
        let file = if v6 { file } else { without_v6(file) };
        let (former, _) = self.former(Some(&file), report);
        let file = beside(file, &former);
        let closed = usable(&file.closed);
        report.remarks.extend(Remark::of_former(&closed));
        self.guard(&file, report);
        self.settings.keep_forwarding(&file, report);
        let mut state = host_state(plan, (self.config.mark, v6));
        state.protected.extend(closed);
        state.local_prefixes.extend(usable(&file.former_pod_cidrs));
        self.apply(&state, Some(&holders(plan)), report).await;
        if let Err(trouble) = self.files.write(&file, &former) {
            let remarks = trouble.into_iter().map(Remark::of_file);
            report.remarks.extend(remarks);
        }
        report.files = self.files.kept().to_vec();
    }

    async fn name_overlaps(&self, plan: &HostPlan, report: &mut HostReport) {
        if plan.protected.is_empty() {
            return;
        }
        // A kernel without IPsec has none.
        if let Ok(policies) = xfrm::policies_in_the_way(&plan.protected) {
            let named = policies.iter().take(MOST_TROUBLES);
            let remarks = named.map(|policy| Remark::new(policy, policy.next()));
            report.remarks.extend(remarks);
        }
        match self.netlink.foreign_routes().await {
            Ok(routes) => {
                let found = overlap::later(&plan.protected, &self.config.device, &routes);
                let found = found
                    .into_iter()
                    .map(|line| Remark::new(line, overlap::NEXT));
                report.remarks.extend(found);
            }
            Err(error) => report.remarks.push(Remark::of_kernel(&error)),
        }
    }

    /// The guard comes first: no route may lead anywhere before it stands.
    fn guard(&mut self, file: &NodeFile, report: &mut HostReport) {
        let rules = guard(file);
        match nft::ensure(&rules) {
            Ok(false) => {}
            Ok(true) => {
                self.strays.ask();
                if self.guarded.as_ref() == Some(&rules) {
                    self.fights
                        .note("wrote the nftables table podmesh".to_owned());
                }
            }
            Err(error) => report.problems.push(error.to_string()),
        }
        let begin = Instant::now();
        if self.strays.begin(begin) {
            match nft::forget_strays(&rules) {
                Ok(0) => {}
                Ok(number) => {
                    tracing::info!(number, "forgot connections that had begun untranslated");
                    if number >= nft::MOST_STRAYS {
                        self.strays.ask();
                    }
                }
                Err(error) => tracing::warn!(
                    reason = %error,
                    "connections that began while nftables rules were missing can't be forgotten"
                ),
            }
            self.strays.end(begin, Instant::now());
        }
        self.guarded = Some(rules);
    }

    async fn apply(
        &mut self,
        state: &HostState,
        holders: Option<&Holders>,
        report: &mut HostReport,
    ) {
        match self.reconciler.apply(state).await {
            Ok(outcome) => {
                note(&outcome, report);
                self.fights.note_changes(state, &outcome.changes);
                let mark = Some(state.mark);
                if outcome.changes.iter().any(|change| {
                    matches!(change, Change::RuleRemoved(rule)
                        if rule.priority == MARK_PRIORITY && rule.mark != mark)
                }) {
                    self.forget_translated();
                }
            }
            Err(error) => report.problems.push(error.to_string()),
        }
        let inside = Inside {
            device: &state.device,
            veth_prefix: VETH_PREFIX,
            local_devices: &self.config.local_devices,
        };
        match self.reconciler.obstacles(state, &inside).await {
            Ok(found) => report.remarks.extend(found.iter().map(Remark::from)),
            Err(error) => report.problems.push(error.to_string()),
        }
        self.mend_pods(holders, report);
        let fights = self.fights.remarks(&state.device, VETH_PREFIX);
        shorten(report, fights, MOST_TROUBLES, "more of that kind");
    }

    /// Brings the node's ends of pods back into the state that the plugin made.
    fn mend_pods(&mut self, holders: Option<&Holders>, report: &mut HostReport) {
        let mended = match self.pods.mend(VETH_PREFIX, holders) {
            Ok(mended) => mended,
            Err(error) => {
                report.problems.push(error.to_string());
                return;
            }
        };
        if let Some(first) = mended.repaired.first() {
            let number = mended.repaired.len();
            tracing::info!(number, reason = first, "repaired the node's ends of pods");
        }
        for repair in &mended.repaired {
            tracing::debug!(reason = repair, "repaired a pod's pair");
            self.fights.note(repair.clone());
        }
        self.pods_are_young = mended.is_young;
        report.pods = mended.pods;
        let strays = mended.strays.into_iter().map(Remark::stray).collect();
        shorten(report, strays, MOST_TROUBLES, "more pods like these");
        let troubles = mended.troubles.into_iter().map(Remark::from).collect();
        shorten(report, troubles, MOST_TROUBLES, "more pods like these");
    }

    /// The sockets had another mark before, and somebody's rules may have taken their datagrams for
    /// theirs: what was decided then would hold on.
    fn forget_translated(&self) {
        match nft::forget_translated(&self.config.ports) {
            Ok(0) => {}
            Ok(number) => tracing::info!(
                number,
                "forgot how the kernel translated datagrams with the former mark"
            ),
            Err(error) => {
                tracing::warn!(reason = %error, "peers may see this node at ports of the former mark");
            }
        }
    }

    /// Interfaces with the addresses by which others might reach this node.
    async fn uplinks(&self, plan: Option<&HostPlan>) -> anyhow::Result<Vec<(String, IpAddr)>> {
        let inside: Vec<IpNet> = plan
            .iter()
            .flat_map(|plan| plan.protected.iter().chain(&plan.service_ranges))
            .copied()
            .collect();
        let addresses = self.netlink.underlay_addresses().await?.into_iter();
        Ok(addresses
            .filter(|found| found.is_usable(&self.config.device, &inside))
            .filter(|found| !is_excluded(&self.config.exclude_interfaces, &found.interface))
            .map(|found| (found.interface, found.address.addr()))
            .collect())
    }
}

fn note(outcome: &Outcome, report: &mut HostReport) {
    for change in &outcome.changes {
        tracing::debug!(%change, "repaired the host");
    }
    for problem in &outcome.problems {
        match problem {
            Problem::ForeignRoute(_) => report.remarks.push(Remark::of_route(problem)),
            _ => report.problems.push(problem.to_string()),
        }
    }
}
