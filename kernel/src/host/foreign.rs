//! Rules and routes of somebody else that are asked before ours and could take packets off the mesh. Pure.

use std::fmt;

use ipnet::IpNet;

use super::HostState;
use crate::mark::Mark;
use crate::route::{LOCAL_TABLE, PROTOCOL, Route, RouteKind, TABLE};
use crate::rule::{MARK_PRIORITY, PresentRule, RANGE_PRIORITY, Rule, Verdict};

/// The number of the action that does nothing.
const ACTION_NOP: u8 = 3;
/// Routes and rules of these numbers throw packets away: `blackhole`, `unreachable`, `prohibit`.
const REFUSALS: std::ops::RangeInclusive<u8> = 6..=8;
/// Who made a route: the kernel, for an address of this machine.
const BY_KERNEL: u8 = 2;

/// The interfaces by which packets for the mesh come in.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// The mesh interface.
    pub device: &'a str,
    /// What the names of the node's ends of pods begin with.
    pub veth_prefix: &'a str,
    /// Other interfaces whose containers may use the mesh, with addresses of any range.
    pub local_devices: &'a [String],
}

/// What is asked before our rules and is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A rule that could match packets to a protected range.
    Rule(PresentRule),
    /// A rule that takes the datagrams of the tunnels to where they are lost.
    Datagrams(PresentRule),
    /// A route of the table of this machine's own addresses, which comes first.
    Local(Route),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => write!(
                out,
                "somebody else's routing rule \"{rule}\" is asked before those of podmesh, so that packets to the \
                 mesh may take its way and be lost"
            ),
            Self::Datagrams(rule) => write!(
                out,
                "somebody else's routing rule \"{rule}\" takes the datagrams of the tunnels, and they are thrown \
                 away"
            ),
            Self::Local(route) => write!(
                out,
                "packets to {} never get to the mesh, as somebody else's route \"{route}\" is in the table of \
                 this machine's own addresses",
                route.prefix
            ),
        }
    }
}

impl Obstacle {
    /// What helps.
    #[must_use]
    pub fn next(&self) -> String {
        let removal = |rule: &Rule| {
            let family = number(rule.is_ipv4);
            format!(
                "remove it with `ip -{family} rule del pref {}`",
                rule.priority
            )
        };
        match self {
            Self::Rule(present) => format!(
                "{}, or give it a priority above {RANGE_PRIORITY}",
                removal(&present.rule)
            ),
            Self::Datagrams(present) => format!(
                "{}, give it a priority above {MARK_PRIORITY}, or set another `mark` in meshd's configuration",
                removal(&present.rule)
            ),
            Self::Local(route) if route.protocol == BY_KERNEL => format!(
                "take that address off the interface that `ip addr show to {}` names",
                route.prefix.addr()
            ),
            Self::Local(route) => format!(
                "remove it with `ip -{} route del {}{} table local`",
                number(route.prefix.addr().is_ipv4()),
                route.kind.prefix(),
                route.prefix
            ),
        }
    }
}

fn number(is_ipv4: bool) -> u8 {
    if is_ipv4 { 4 } else { 6 }
}

/// What stands before ours, and for which it is not sure that it takes no packet of the mesh. The rules are
/// given in the kernel's order.
pub(super) fn before_ours(
    present: &[PresentRule],
    routes: &[Route],
    state: &HostState,
    inside: &Inside<'_>,
) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for is_ipv4 in [true, false] {
        let of_family = |range: &&IpNet| range.addr().is_ipv4() == is_ipv4;
        let ranges: Vec<IpNet> = state.protected.iter().filter(of_family).copied().collect();
        let rules: Vec<_> = present
            .iter()
            .filter(|other| other.rule.is_ipv4 == is_ipv4)
            .collect();
        let is_earlier = |position: usize, ours: u32| {
            let is_last = |other: &&PresentRule| other.ours && other.rule.priority == ours;
            let last_of_ours = rules.iter().rposition(is_last);
            rules.get(position).is_some_and(|other| {
                other.rule.priority < ours
                    || other.rule.priority == ours
                        && last_of_ours.is_some_and(|last| position < last)
            })
        };
        for (position, other) in rules.iter().enumerate() {
            if is_earlier(position, RANGE_PRIORITY) && can_take(other, routes, &ranges, inside) {
                found.push(Obstacle::Rule((*other).clone()));
            } else if is_earlier(position, MARK_PRIORITY)
                && !ranges.is_empty()
                && loses_datagrams(other, routes, state.mark)
            {
                found.push(Obstacle::Datagrams((*other).clone()));
            }
        }
    }
    let local = routes.iter().filter(|route| is_in_the_way(route, state));
    found.extend(local.cloned().map(Obstacle::Local));
    found
}

fn can_take(other: &PresentRule, routes: &[Route], ranges: &[IpNet], inside: &Inside<'_>) -> bool {
    let (rule, more) = (&other.rule, &other.conditions);
    let leads_nowhere_else = match rule.verdict {
        Verdict::Lookup(table) => {
            let leads = |route: &Route| {
                route.table == table
                    && overlaps(ranges, &route.prefix)
                    && (is_refusal(route.kind)
                        || more
                            .suppressed
                            .is_none_or(|most| route.prefix.prefix_len() > most))
            };
            table == LOCAL_TABLE
                || table == TABLE
                || more.suppressed.is_some() && !routes.iter().any(leads)
        }
        Verdict::Unreachable => other.ours && !other.narrower,
        Verdict::Other(action) => action == ACTION_NOP,
    };
    if leads_nowhere_else || more.vrf || ranges.is_empty() {
        return false;
    }
    if more.inverted {
        // Spares the ranges for sure only if they are all that it asks about.
        let asks_more =
            more.others || more.from.is_some() || more.incoming.is_some() || more.outgoing;
        let spared = |to: IpNet| ranges.iter().all(|range| to.contains(range));
        return asks_more || rule.mark.is_some() || !rule.to.is_some_and(spared);
    }
    // Packets of pods carry no mark and are bound to no interface.
    let is_marked = rule.mark.is_some_and(|mark| !mark.is_carried_by_all());
    let from_inside = more
        .from
        .is_none_or(|from| overlaps(ranges, &from) || !inside.local_devices.is_empty());
    !is_marked
        && !more.outgoing
        && rule.to.is_none_or(|to| overlaps(ranges, &to))
        && from_inside
        && more.incoming.as_ref().is_none_or(|name| inside.has(name))
}

/// Whether all datagrams of the tunnels match, and are thrown away. Whoever sends them out by another way
/// than the main table's may have a reason.
fn loses_datagrams(other: &PresentRule, routes: &[Route], mark: Mark) -> bool {
    let (rule, more) = (&other.rule, &other.conditions);
    let asks_more = more.others || more.from.is_some() || more.outgoing || more.vrf;
    let is_local = more.incoming.as_deref().is_none_or(|name| name == "lo");
    if other.ours || asks_more || !is_local || rule.to.is_some() {
        return false;
    }
    let matches = rule
        .mark
        .is_none_or(|asked| mark.value & asked.mask == asked.value);
    let is_refused = match rule.verdict {
        Verdict::Lookup(table) => {
            let defaults = routes.iter().filter(|route| {
                route.table == table
                    && route.prefix.prefix_len() == 0
                    && route.prefix.addr().is_ipv4() == rule.is_ipv4
            });
            let best = defaults.min_by_key(|route| route.metric);
            best.is_some_and(|route| is_refusal(route.kind))
        }
        Verdict::Unreachable => true,
        Verdict::Other(action) => REFUSALS.contains(&action),
    };
    matches != more.inverted && is_refused
}

/// Whether a route of the table that comes first takes what is for another node.
fn is_in_the_way(route: &Route, state: &HostState) -> bool {
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&route.prefix));
    let takes = match route.kind {
        // What this node has of its own pods' addresses concerns no other.
        RouteKind::Local => {
            let is_own = |own: &IpNet| route.prefix.contains(&own.addr());
            !state.addresses.iter().any(is_own) && !within(&state.local_prefixes)
        }
        RouteKind::Unicast => true,
        kind => is_refusal(kind),
    };
    route.table == LOCAL_TABLE && route.protocol != PROTOCOL && takes && within(&state.protected)
}

fn is_refusal(kind: RouteKind) -> bool {
    match kind {
        RouteKind::Unicast | RouteKind::Local => false,
        RouteKind::Unreachable => true,
        RouteKind::Other(number) => REFUSALS.contains(&number),
    }
}

fn overlaps(ranges: &[IpNet], prefix: &IpNet) -> bool {
    ranges
        .iter()
        .any(|range| range.contains(prefix) || prefix.contains(range))
}

impl Inside<'_> {
    fn has(&self, interface: &str) -> bool {
        // The kernel's name for what the node itself sends.
        interface == "lo"
            || interface == self.device
            || interface.starts_with(self.veth_prefix)
            || self.local_devices.iter().any(|name| name == interface)
    }
}
