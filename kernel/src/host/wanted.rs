//! Which rules and routes a node needs. Pure: no question to the kernel.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::HostState;
use crate::mark::Mark;
use crate::route::{MAIN_TABLE, PROTOCOL, Route, RouteKind, TABLE};
use crate::rule::{MARK_GUARD_PRIORITY, MARK_PRIORITY, RANGE_PRIORITY, Rule, Verdict};

/// A node's own prefix wins over a peer that claims the same.
const LOCAL_METRIC: u32 = 64;
const PEER_METRIC: u32 = 128;
/// Loses against every other route to the same prefix.
const BACKSTOP_METRIC: u32 = u32::MAX;

/// The rules for these ranges, for the families that occur in them.
pub(super) fn rules(protected: &[IpNet], mark: Mark) -> Vec<Rule> {
    let mut rules = Vec::new();
    for is_ipv4 in [true, false] {
        let of_family = |range: &&IpNet| range.addr().is_ipv4() == is_ipv4;
        if protected.iter().any(|range| of_family(&range)) {
            let verdict = Verdict::Lookup(MAIN_TABLE);
            rules.push(Rule {
                is_ipv4,
                priority: MARK_PRIORITY,
                to: None,
                mark: Some(mark),
                verdict,
            });
        }
        for range in protected.iter().filter(of_family) {
            let to = Some(range.trunc());
            let guard = Verdict::Unreachable;
            rules.push(Rule {
                is_ipv4,
                priority: MARK_GUARD_PRIORITY,
                to,
                mark: Some(mark),
                verdict: guard,
            });
            let verdict = Verdict::Lookup(TABLE);
            rules.push(Rule {
                is_ipv4,
                priority: RANGE_PRIORITY,
                to,
                mark: None,
                verdict,
            });
        }
    }
    without_repeats(rules)
}

/// The routes of our table; those to peers only if the device exists.
pub(super) fn routes(state: &HostState, device: Option<u32>) -> Vec<Route> {
    let backstops = state.protected.iter().map(|range| backstop(*range));
    let local = state
        .local_prefixes
        .iter()
        .map(|prefix| unreachable(*prefix, LOCAL_METRIC));
    let mut routes: Vec<Route> = backstops.chain(local).collect();
    let Some(device) = device else {
        return without_repeats(routes);
    };
    // Asked only where somebody has put the rule for the kernel's own table behind ours, as is advised for
    // virtual routers.
    routes.extend(state.addresses.iter().map(|own| Route {
        prefix: own.addr().into(),
        table: TABLE,
        kind: RouteKind::Local,
        protocol: PROTOCOL,
        metric: LOCAL_METRIC,
        device: Some(device),
        more_devices: Vec::new(),
        gateway: None,
        source: None,
        mtu: None,
    }));
    let mut known = HashSet::new();
    for peer in &state.peer_routes {
        let prefix = peer.prefix.trunc();
        // Two peers can't both have a prefix; if the plan says so, the first one keeps it.
        if known.insert(prefix) {
            routes.push(Route {
                prefix,
                table: TABLE,
                kind: RouteKind::Unicast,
                protocol: PROTOCOL,
                metric: PEER_METRIC,
                device: Some(device),
                more_devices: Vec::new(),
                gateway: None,
                source: source(state, &prefix),
                mtu: peer.mtu,
            });
        }
    }
    without_repeats(routes)
}

/// The route that catches what no other route to a protected range takes.
pub(super) fn backstop(range: IpNet) -> Route {
    unreachable(range, BACKSTOP_METRIC)
}

fn unreachable(prefix: IpNet, metric: u32) -> Route {
    Route {
        prefix: prefix.trunc(),
        table: TABLE,
        kind: RouteKind::Unreachable,
        protocol: PROTOCOL,
        metric,
        device: None,
        more_devices: Vec::new(),
        gateway: None,
        source: None,
        mtu: None,
    }
}

fn source(state: &HostState, prefix: &IpNet) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(_) => state.source_v4.map(IpAddr::V4),
        IpNet::V6(_) => state.source_v6.map(IpAddr::V6),
    }
}

fn without_repeats<T: Clone + Eq + std::hash::Hash>(all: Vec<T>) -> Vec<T> {
    let mut known = HashSet::new();
    all.into_iter()
        .filter(|one| known.insert(one.clone()))
        .collect()
}
