//! The pod's end of a pair: everything here runs inside the pod's namespace.
//!
//! Which way is the default is decided per family ([`PodLink::destinations`]). Where the default
//! route is this interface's, it has the gateway as everybody knows it. Where it is another
//! interface's, only the listed ranges lead here; and what speaks under this interface's address
//! leaves by this interface whatever its destination, by a rule and a table of its own, since the
//! node lets a pod speak for itself by the interface alone that has the address.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::{
    blocking_netlink::Conversation,
    netns::NetNamespace,
    route::MAIN_TABLE,
    sysctl::{self, IpFamily},
};

use super::{
    PodLink, VethError, await_that, carry_out, existing, gateway_of, index_of, open, refused,
    request::{self, Found, Route, SourceRule},
};

/// Less than this many tables of other people's; an interface's own has its index added.
const OWN_TABLES: u32 = 70_770_000;
/// Indices of interfaces that have a table.
const MOST_TABLES: u32 = 1_000_000;
/// After the kernel's own addresses, before everybody's main table.
const SOURCE_PRIORITY: u32 = 5077;

/// A route of a pod's main table that is not by the interface in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherRoute {
    /// Which destinations it is for.
    pub destination: IpNet,
    /// The lowest wins among routes to one destination.
    pub metric: u32,
    /// The next router.
    pub gateway: Option<IpAddr>,
}

/// What the pod's main table holds that is not by the interface `own`.
///
/// # Errors
///
/// When the namespace can't be entered, or the kernel does not list its routes.
pub fn other_routes(pod: &NetNamespace, own: &str) -> Result<Vec<OtherRoute>, VethError> {
    pod.run(|| {
        let mut kernel = open()?;
        let own = super::find_index(own);
        let routes = routes(&mut kernel)?.into_iter().filter(|route| {
            let is_own = route.oif.is_some() && route.oif == own;
            route.table == MAIN_TABLE && route.is_unicast && !is_own
        });
        let others = routes.filter_map(|route| {
            Some(OtherRoute {
                destination: route.prefix?,
                metric: route.metric,
                gateway: route.gateway,
            })
        });
        Ok(others.collect())
    })?
}

/// Forgets the rules for interfaces that the pod has no more. Whatever goes wrong, the rules that
/// are left lead to empty tables.
pub fn forget_rules(pod: &NetNamespace) {
    let _ = pod.run(|| remove_stale_rules(&mut open()?));
}

pub(super) fn set_up(link: &PodLink) -> Result<(), VethError> {
    let name = link.pod_name.as_str();
    if link.addresses.iter().any(IpAddr::is_ipv6) {
        sysctl::ensure_of_interface(IpFamily::V6, name, "disable_ipv6", "0")?;
        sysctl::ensure_of_interface(IpFamily::V6, name, "accept_ra", "0")?;
    }
    let index = index_of(name)?;
    let mut kernel = open()?;
    remove_stale_rules(&mut kernel)?;
    let present = routes(&mut kernel)?;
    let raising = format!("bringing up {name} in the pod");
    let mut steps = vec![(raising, request::set_up(index))];
    for address in &link.addresses {
        let gateway = gateway_of(address);
        steps.push((
            format!("giving {address} to {name} in the pod"),
            request::add_address(index, *address, request::host_prefix(address)),
        ));
        steps.push((
            format!("naming the gateway {gateway} in the pod"),
            request::add_neighbour(index, gateway, link.host_mac),
        ));
        let way = Way::of(link, address, index);
        // Two interfaces of one kind have the same gateway, each on its own link.
        let is_taken = present.iter().any(|route| {
            route.table == MAIN_TABLE && route.address() == Some(gateway) && route.oif.is_some()
        });
        if way.is_default() && gateway.is_ipv4() && !is_taken {
            let route = request::add_host_route(index, gateway, request::Place::MAIN);
            steps.push((format!("routing to {gateway} in the pod"), route));
        }
        for (destination, table) in way.routes() {
            let route = request::add_route(index, &destination, gateway, table);
            let step = format!("routing {destination} by {gateway} in the pod");
            steps.push((step, route));
        }
        if let Some(rule) = way.rule {
            let adding = request::add_rule(&rule, SOURCE_PRIORITY);
            steps.push((format!("ruling where {address} leaves the pod"), adding));
        }
    }
    carry_out(steps)?;
    await_addresses(&mut kernel, &link.addresses)
}

/// Waits until the pod receives. An IPv6 address without duplicate address detection may be sent from at once, but
/// the kernel takes in what is sent to it later, in the background, behind everybody else who changes interfaces;
/// until then the answers to the pod's first packets are dropped.
fn await_addresses(kernel: &mut Conversation, addresses: &[IpAddr]) -> Result<(), VethError> {
    for address in addresses {
        let what = format!("{address} in the pod");
        await_that(&what, || request::is_local(kernel, *address))?;
    }
    Ok(())
}

/// Compares what is inside the pod; `host` is the node's end, and `is_answered` whether the node answers
/// a pod that asks who its IPv4 gateway is.
pub(super) fn check(link: &PodLink, host: &Found, is_answered: bool) -> Result<(), VethError> {
    let mut kernel = open()?;
    let name = &link.pod_name;
    let end = existing(&mut kernel, name, "in the pod")?;
    let damaged = |sentence: String| Err(VethError::Damaged(sentence));
    if end.peer != Some(host.index) || host.peer != Some(end.index) {
        return damaged(format!(
            "{name} in the pod is another interface than the one that was made"
        ));
    }
    let listed = request::addresses(&mut kernel);
    let listed = listed.map_err(refused(|| "listing addresses".to_owned()))?;
    let neighbours = request::permanent_neighbours(&mut kernel);
    let neighbours = neighbours.map_err(refused(|| "listing neighbours".to_owned()))?;
    let rules = request::source_rules(&mut kernel);
    let rules = rules.map_err(refused(|| "listing rules".to_owned()))?;
    let routes = routes(&mut kernel)?;
    for address in &link.addresses {
        if !listed.contains(&(end.index, *address)) {
            return damaged(format!("{address} is not on {name} in the pod"));
        }
        let gateway = gateway_of(address);
        let known = |wanted: bool| {
            neighbours.iter().any(|known| {
                known.index == end.index
                    && known.address == gateway
                    && (known.mac == Some(link.host_mac)) == wanted
            })
        };
        // With another hardware address the pod has forgotten its gateway, and asks for that.
        let may_ask = end.mac != Some(link.pod_mac) && (is_answered || gateway.is_ipv6());
        if known(false) || !may_ask && !known(true) {
            return damaged(format!(
                "the pod does not know the hardware address of {gateway}"
            ));
        }
        let way = Way::of(link, address, end.index);
        for (destination, table) in way.routes() {
            let leads_out = |route: &Route| {
                route.gateway == Some(gateway)
                    && route.oif == Some(end.index)
                    && route.table == table
                    && route.prefix == Some(destination)
            };
            if !routes.iter().any(leads_out) {
                let what = match destination.prefix_len() {
                    0 => "default route".to_owned(),
                    _ => format!("route to {destination}"),
                };
                return damaged(format!("the pod has no {what} via {gateway}"));
            }
        }
        if way.rule.is_some_and(|rule| !rules.contains(&rule)) {
            return damaged(format!(
                "the pod has no rule that {address} leaves by {name}"
            ));
        }
    }
    Ok(())
}

/// How one family of a pod gets out by an interface.
struct Way {
    destinations: Vec<IpNet>,
    /// `None` where the default route is this interface's.
    rule: Option<SourceRule>,
    everything: IpNet,
}

impl Way {
    fn of(link: &PodLink, address: &IpAddr, index: u32) -> Self {
        let is_v4 = address.is_ipv4();
        let destinations = link.destinations.iter().copied();
        let destinations: Vec<_> = destinations
            .filter(|destination| destination.addr().is_ipv4() == is_v4)
            .collect();
        let everything = everything(is_v4);
        let rule = SourceRule {
            source: *address,
            table: OWN_TABLES + index % MOST_TABLES,
        };
        Self {
            rule: (!destinations.contains(&everything)).then_some(rule),
            destinations,
            everything,
        }
    }

    fn is_default(&self) -> bool {
        self.rule.is_none()
    }

    /// Each destination with the table that the route to it stands in.
    fn routes(&self) -> impl Iterator<Item = (IpNet, u32)> + '_ {
        let own = self.rule.as_ref().map(|rule| (self.everything, rule.table));
        let listed = self.destinations.iter();
        listed.map(|one| (*one, MAIN_TABLE)).chain(own)
    }
}

/// All destinations of a family.
pub fn everything(is_v4: bool) -> IpNet {
    let address = if is_v4 {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    IpNet::new_assert(address, 0)
}

fn routes(kernel: &mut Conversation) -> Result<Vec<Route>, VethError> {
    request::routes(kernel).map_err(refused(|| "listing routes in the pod".to_owned()))
}

fn remove_stale_rules(kernel: &mut Conversation) -> Result<(), VethError> {
    let listing = || "listing rules in the pod".to_owned();
    let rules = request::source_rules(kernel).map_err(refused(listing))?;
    if rules.is_empty() {
        return Ok(());
    }
    let links = request::links(kernel).map_err(refused(listing))?;
    let tables: BTreeSet<_> = links
        .iter()
        .map(|link| OWN_TABLES + link.index % MOST_TABLES)
        .collect();
    for rule in rules.iter().filter(|rule| !tables.contains(&rule.table)) {
        let removing = || format!("removing the rule of {} in the pod", rule.source);
        kernel
            .request(request::delete_rule(rule))
            .map_err(refused(removing))?;
    }
    Ok(())
}
