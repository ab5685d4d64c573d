//! Bringing the node's interface, addresses, routes and rules into the state that podmesh wants.
//!
//! The first of the two layers that keep pod packets from leaving in plaintext lives here: a rule
//! sends each packet to a protected range to our own table, and there an `unreachable` route with
//! the highest metric catches what no other route takes. Both need neither `meshd` nor its
//! interface to work.

mod foreign;
mod wanted;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::InterfaceAddress;
use crate::link::{Link, LinkChange};
use crate::mark::Mark;
use crate::netlink::{Netlink, NetlinkError};
use crate::route::{POD_PROTOCOL, PROTOCOL, Route, TABLE};
use crate::rule::{MARK_GUARD_PRIORITY, MARK_PRIORITY, PresentRule, RANGE_PRIORITY, Rule};
use crate::tun::TunError;

pub use self::foreign::{Inside, Obstacle};

/// Segments of one packet at most. What comes in one piece takes one place in the device's queue, whatever
/// it stands for, and 64 KiB of tiny segments would hold up everybody's packets; the kernel cuts those
/// before the queue, whose room they then fill. TCP above 256 bytes per segment is not touched.
pub const MOST_SEGMENTS: u32 = 256;

/// What a node should look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// Name of the TUN device.
    pub device: String,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Ranges that nothing may enter but through the mesh: the overlay and all pods.
    pub protected: Vec<IpNet>,
    /// What lies behind the device.
    pub peer_routes: Vec<PeerRoute>,
    /// This node's own pod CIDRs: unreachable but for the pods that have a route.
    pub local_prefixes: Vec<IpNet>,
    /// The source that the node itself uses towards peers.
    pub source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// The mark of our own datagrams.
    pub mark: Mark,
}

/// A prefix that a peer owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// Longest packet on the way there, in bytes, where that is less than the device's MTU.
    pub mtu: Option<u32>,
}

/// One thing that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The device was set up.
    DeviceUp,
    /// The device got this MTU.
    DeviceMtu(u32),
    /// The device takes packets of at most so many segments in one piece.
    DeviceSegments(u32),
    /// The device has a carrier again.
    DeviceCarrier,
    /// The device belongs to no bridge, bond or virtual router any more.
    DeviceReleased,
    /// The device got this address.
    AddressAdded(IpNet),
    /// The device lost this address.
    AddressRemoved(IpNet),
    /// This route was missing.
    RouteAdded(Route),
    /// This route had other attributes.
    RouteReplaced(Route),
    /// This route was ours and is not wanted any more.
    RouteRemoved(Route),
    /// This rule was missing.
    RuleAdded(Rule),
    /// This rule was ours and is not wanted any more.
    RuleRemoved(Rule),
}

/// One thing that is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// There is no such device, so there are no addresses and no routes to peers either.
    #[error("interface {0} is missing")]
    DeviceMissing(String),
    /// An interface of that name is somebody else's. Nothing of it is changed, and no route leads there.
    #[error(transparent)]
    DeviceTaken(TunError),
    /// Somebody else put a route into our table. It stays, and may take packets off the mesh.
    #[error("somebody else's route {0} is in the table of podmesh")]
    ForeignRoute(Route),
    /// The kernel refused a change.
    #[error(transparent)]
    Refused(#[from] NetlinkError),
}

/// What [`Reconciler::apply`] did and could not do.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was changed. Empty when all was as wanted.
    pub changes: Vec<Change>,
    /// What is still wrong.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceUp => out.write_str("set the device up"),
            Self::DeviceMtu(mtu) => write!(out, "set the device's MTU to {mtu}"),
            Self::DeviceSegments(number) => {
                write!(out, "set the device's most segments to {number}")
            }
            Self::DeviceCarrier => out.write_str("switched the device's carrier on"),
            Self::DeviceReleased => out.write_str("took the device out of another interface"),
            Self::AddressAdded(address) => write!(out, "added address {address}"),
            Self::AddressRemoved(address) => write!(out, "removed address {address}"),
            Self::RouteAdded(route) => write!(out, "added route {route}"),
            Self::RouteReplaced(route) => write!(out, "replaced route {route}"),
            Self::RouteRemoved(route) => write!(out, "removed route {route}"),
            Self::RuleAdded(rule) => write!(out, "added rule {rule}"),
            Self::RuleRemoved(rule) => write!(out, "removed rule {rule}"),
        }
    }
}

impl Change {
    /// Whether a refusal of it is no trouble.
    fn is_spared(&self, error: &NetlinkError) -> bool {
        match self {
            Self::DeviceSegments(_) => true,
            // As long as no process holds a queue.
            Self::DeviceCarrier => matches!(error.errno(), Some(libc::EPERM | libc::EOPNOTSUPP)),
            _ => false,
        }
    }
}

impl Outcome {
    /// Notes the result of one change. An object that is there already or gone already was changed
    /// by somebody else in the same moment; the next look will tell whether all is well.
    fn note(&mut self, result: Result<(), NetlinkError>, change: Change) {
        match result {
            Ok(()) => self.changes.push(change),
            Err(error) => match error.errno() {
                Some(libc::EEXIST | libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL) => {
                    tracing::debug!(%change, %error, "somebody else was faster");
                }
                _ => self.problems.push(error.into()),
            },
        }
    }
}

/// Keeps the node as wanted. It touches only what carries our protocol number.
#[derive(Debug, Clone)]
pub struct Reconciler {
    netlink: Arc<Netlink>,
}

impl Reconciler {
    /// Works in the network namespace of `netlink`.
    #[must_use]
    pub fn new(netlink: Arc<Netlink>) -> Self {
        Self { netlink }
    }

    /// Compares what there is with `state`, adds what is missing and removes what is ours and not
    /// wanted. What is right is not touched. One failure does not stop the rest.
    ///
    /// # Errors
    ///
    /// Only when the kernel does not say what there is.
    pub async fn apply(&self, state: &HostState) -> Result<Outcome, NetlinkError> {
        let mut outcome = Outcome::default();
        self.apply_rules(
            &wanted::rules(&state.protected, state.mark),
            true,
            &mut outcome,
        )
        .await?;
        let device = self.apply_device(state, &mut outcome).await?;
        self.apply_routes(&wanted::routes(state, device), true, &mut outcome)
            .await?;
        Ok(outcome)
    }

    /// Rules and routes of somebody else that are asked before ours and could take packets of the mesh off
    /// it. They stay: whoever made them knows what for.
    ///
    /// # Errors
    ///
    /// When the kernel does not say what there is.
    pub async fn obstacles(
        &self,
        state: &HostState,
        inside: &Inside<'_>,
    ) -> Result<Vec<Obstacle>, NetlinkError> {
        let (present, routes) = (self.netlink.rules().await?, self.netlink.routes().await?);
        Ok(foreign::before_ours(&present, &routes, state, inside))
    }

    async fn apply_rules(
        &self,
        wanted: &[Rule],
        remove: bool,
        outcome: &mut Outcome,
    ) -> Result<(), NetlinkError> {
        let present = self.netlink.rules().await?;
        let holds = |rule: &Rule| {
            present
                .iter()
                .any(|other| !other.narrower && other.rule == *rule)
        };
        for rule in wanted.iter().filter(|rule| !holds(rule)) {
            outcome.note(
                self.netlink.add_rule(rule).await,
                Change::RuleAdded(rule.clone()),
            );
        }
        let stale = |other: &&PresentRule| {
            let priorities = [MARK_PRIORITY, MARK_GUARD_PRIORITY, RANGE_PRIORITY];
            other.ours
                && !other.narrower
                && priorities.contains(&other.rule.priority)
                && !wanted.contains(&other.rule)
        };
        for other in present.iter().filter(stale).filter(|_| remove) {
            let result = self.netlink.remove_rule(&other.rule).await;
            outcome.note(result, Change::RuleRemoved(other.rule.clone()));
        }
        Ok(())
    }

    /// Returns the device's index, `None` if there is no device.
    async fn apply_device(
        &self,
        state: &HostState,
        outcome: &mut Outcome,
    ) -> Result<Option<u32>, NetlinkError> {
        let Some(link) = self.netlink.link(&state.device).await? else {
            outcome
                .problems
                .push(Problem::DeviceMissing(state.device.clone()));
            return Ok(None);
        };
        if let Some(found) = link.unfit {
            outcome
                .problems
                .push(Problem::DeviceTaken(TunError::OtherKind {
                    name: link.name,
                    found,
                }));
            return Ok(None);
        }
        for (change, done) in device_changes(&link, state) {
            let result = self.netlink.change_link(link.index, change).await;
            match result {
                // Packets move all the same, or there is nobody yet who would move them.
                Err(error) if done.is_spared(&error) => {
                    tracing::debug!(change = %done, reason = %error, "the device stays as it is");
                }
                result => outcome.note(result, done),
            }
        }
        self.apply_addresses(link.index, state, outcome).await?;
        Ok(Some(link.index))
    }

    async fn apply_addresses(
        &self,
        index: u32,
        state: &HostState,
        outcome: &mut Outcome,
    ) -> Result<(), NetlinkError> {
        let mut present = self.netlink.addresses().await?;
        present.retain(|other| other.index == index);
        let (in_the_way, stale): (Vec<_>, Vec<_>) = present
            .iter()
            .filter(|other| is_stale(other, state))
            .map(|other| other.address)
            .partition(|other| state.addresses.iter().any(|own| own.addr() == other.addr()));
        self.remove_addresses(index, &in_the_way, outcome).await;
        for address in &state.addresses {
            if !present.iter().any(|other| other.address == *address) {
                let result = self.netlink.add_address(index, *address).await;
                outcome.note(result, Change::AddressAdded(*address));
            }
        }
        self.remove_addresses(index, &stale, outcome).await;
        Ok(())
    }

    async fn remove_addresses(&self, index: u32, addresses: &[IpNet], outcome: &mut Outcome) {
        for address in addresses {
            let result = self.netlink.remove_address(index, *address).await;
            outcome.note(result, Change::AddressRemoved(*address));
        }
    }

    async fn apply_routes(
        &self,
        wanted: &[Route],
        remove: bool,
        outcome: &mut Outcome,
    ) -> Result<(), NetlinkError> {
        let present = self.netlink.routes().await?;
        let (ours, others): (Vec<_>, Vec<_>) = present
            .into_iter()
            .filter(|route| route.table == TABLE && route.protocol != POD_PROTOCOL)
            .partition(|route| route.protocol == PROTOCOL);
        outcome
            .problems
            .extend(others.into_iter().map(Problem::ForeignRoute));
        let by_key: HashMap<_, _> = ours.iter().map(|route| (route.key(), route)).collect();
        for route in wanted {
            match by_key.get(&route.key()) {
                Some(other) if *other == route => {}
                Some(_) => {
                    let result = self.netlink.add_route(route, true).await;
                    outcome.note(result, Change::RouteReplaced(route.clone()));
                }
                None => {
                    let result = self.netlink.add_route(route, false).await;
                    outcome.note(result, Change::RouteAdded(route.clone()));
                }
            }
        }
        let keys: HashSet<_> = wanted.iter().map(Route::key).collect();
        for route in ours
            .iter()
            .filter(|route| remove && !keys.contains(&route.key()))
        {
            let result = self.netlink.remove_route(route).await;
            outcome.note(result, Change::RouteRemoved(route.clone()));
        }
        Ok(())
    }
}

/// Makes sure that no packet to a protected range can leave but through the mesh, without knowing
/// anything else of the node. It only adds; it can run beside `meshd` and beside itself, and when
/// it returns without an error, everything is in place.
///
/// # Errors
///
/// The first thing that is still missing.
pub async fn ensure_fail_closed_routes(
    netlink: &Arc<Netlink>,
    protected: &[IpNet],
    mark: Mark,
) -> Result<Vec<Change>, Problem> {
    let reconciler = Reconciler::new(Arc::clone(netlink));
    let rules = wanted::rules(protected, mark);
    let routes: Vec<Route> = protected
        .iter()
        .map(|range| wanted::backstop(*range))
        .collect();
    let mut outcome = Outcome::default();
    reconciler.apply_rules(&rules, false, &mut outcome).await?;
    reconciler
        .apply_routes(&routes, false, &mut outcome)
        .await?;
    if let Some(problem) = outcome.problems.into_iter().find(is_refusal) {
        return Err(problem);
    }
    match missing_fail_closed_routes(netlink, protected, mark).await? {
        Some(what) => {
            let reason = "something else stands in its place or removed it again";
            let reason = std::io::Error::other(reason);
            Err(NetlinkError::new(format_args!("keep {what}"), reason).into())
        }
        None => Ok(outcome.changes),
    }
}

/// The first rule or route of [`ensure_fail_closed_routes`] that is not there, in words.
///
/// # Errors
///
/// When the kernel does not say what there is.
pub async fn missing_fail_closed_routes(
    netlink: &Netlink,
    protected: &[IpNet],
    mark: Mark,
) -> Result<Option<String>, NetlinkError> {
    let present = netlink.rules().await?;
    let holds = |rule: &Rule| {
        present
            .iter()
            .any(|other| !other.narrower && other.rule == *rule)
    };
    let rules = wanted::rules(protected, mark);
    if let Some(rule) = rules.iter().find(|rule| !holds(rule)) {
        return Ok(Some(rule.to_string()));
    }
    let present = netlink.routes().await?;
    let mut routes = protected.iter().map(|range| wanted::backstop(*range));
    let missing = routes.find(|route| !present.contains(route));
    Ok(missing.map(|route| route.to_string()))
}

fn is_refusal(problem: &Problem) -> bool {
    matches!(problem, Problem::Refused(_))
}

/// What is to be changed of the device itself, in that order.
fn device_changes(link: &Link, state: &HostState) -> Vec<(LinkChange, Change)> {
    let mut changes = Vec::new();
    let mut want = |differs: bool, change: LinkChange, done: Change| {
        if differs {
            changes.push((change, done));
        }
    };
    let none = LinkChange::default();
    let released = LinkChange {
        released: true,
        ..none
    };
    want(link.master.is_some(), released, Change::DeviceReleased);
    let mtu = LinkChange {
        mtu: Some(state.mtu),
        ..none
    };
    want(link.mtu != state.mtu, mtu, Change::DeviceMtu(state.mtu));
    let segments = LinkChange {
        most_segments: Some(MOST_SEGMENTS),
        ..none
    };
    let differ = link.most_segments != MOST_SEGMENTS;
    want(differ, segments, Change::DeviceSegments(MOST_SEGMENTS));
    let up = LinkChange {
        up: Some(true),
        ..none
    };
    want(!link.up, up, Change::DeviceUp);
    let carrier = LinkChange {
        carrier: true,
        ..none
    };
    // What is down doesn't tell whether it has one.
    let is_cut = link.up && !link.carrier;
    want(is_cut, carrier, Change::DeviceCarrier);
    changes
}

/// Whether an address of our device is to go: one that we gave it, or that lies in our ranges.
fn is_stale(other: &InterfaceAddress, state: &HostState) -> bool {
    let in_range = state
        .protected
        .iter()
        .any(|range| range.contains(&other.address.addr()));
    (other.ours || in_range) && !state.addresses.contains(&other.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_leaves_what_it_was_made_a_part_of_before_anything_else_of_it_is_changed() {
        let state = HostState {
            device: "mesh0".to_owned(),
            mtu: 1280,
            addresses: Vec::new(),
            protected: Vec::new(),
            peer_routes: Vec::new(),
            local_prefixes: Vec::new(),
            source_v4: None,
            source_v6: None,
            mark: Mark {
                value: 0x101c,
                mask: 0x101c,
            },
        };
        let link = |master| Link {
            index: 7,
            name: "mesh0".to_owned(),
            kind: Some("tun".to_owned()),
            unfit: None,
            mtu: 1280,
            tx_queue_length: 500,
            most_segments: MOST_SEGMENTS,
            up: false,
            carrier: true,
            loopback: false,
            master,
        };
        let done = |link| {
            let changes = device_changes(&link, &state).into_iter();
            changes.map(|(_, done)| done).collect::<Vec<_>>()
        };
        assert_eq!(done(link(None)), [Change::DeviceUp]);
        let both = [Change::DeviceReleased, Change::DeviceUp];
        assert_eq!(done(link(Some(3))), both);
    }
}
