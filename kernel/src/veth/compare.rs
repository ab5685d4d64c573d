//! What there is of a pod's pair on the node, compared with what ADD made.

use std::{fmt, io, net::IpAddr};

use crate::{
    blocking_netlink::Conversation,
    sysctl::{self, IpFamily, Setting},
};

use super::{
    GATEWAY_V4, GATEWAY_V6, POD_PLACE, VethError,
    alias::{self, Wiring},
    holders::Holders,
    refused,
    request::{self, Found, Neighbour, Route},
};

/// Below it, in bytes, the kernel takes IPv6 off an interface. RFC 8200.
const MIN_MTU: u32 = 1280;

/// Where the lists of settings that the kernel gives with an interface have each of ours
/// (`linux/ip.h`, less one, and `linux/ipv6.h`). `addr_gen_mode` has an attribute of its own.
const PLACES: [(IpFamily, &str, usize); 10] = [
    (IpFamily::V4, "forwarding", 0),
    (IpFamily::V4, "proxy_arp", 2),
    (IpFamily::V4, "accept_redirects", 3),
    (IpFamily::V4, "send_redirects", 5),
    (IpFamily::V4, "rp_filter", 7),
    (IpFamily::V4, "arp_ignore", 18),
    (IpFamily::V6, "forwarding", 0),
    (IpFamily::V6, "accept_ra", 3),
    (IpFamily::V6, "accept_redirects", 4),
    (IpFamily::V6, "disable_ipv6", 26),
];

/// A setting that the kernel doesn't list counts as different, and is then looked at alone.
fn is_in_force((family, key, value): Setting, end: &Found) -> bool {
    let settings = &end.settings;
    let list = match family {
        IpFamily::V4 => &settings.v4,
        IpFamily::V6 => &settings.v6,
    };
    let place = PLACES
        .iter()
        .find(|(of, name, _)| (*of, *name) == (family, key));
    let present = match place {
        Some((.., place)) => list.get(*place).copied(),
        None => settings.v6_address_mode,
    };
    present.is_some_and(|present| sysctl::is_in_force(key, &present.to_string(), value))
}

/// What the kernel holds of links, addresses, routes and neighbours at one moment.
pub(super) struct Seen {
    pub(super) links: Vec<Found>,
    addresses: Vec<(u32, IpAddr)>,
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
}

impl Seen {
    pub(super) fn read(kernel: &mut Conversation) -> Result<Self, VethError> {
        let listing = |what: &str| {
            let step = format!("listing {what}");
            move |cause| refused(|| step)(cause)
        };
        Ok(Self {
            links: request::links(kernel).map_err(listing("interfaces"))?,
            addresses: request::addresses(kernel).map_err(listing("addresses"))?,
            routes: request::routes(kernel).map_err(listing("routes"))?,
            neighbours: request::permanent_neighbours(kernel).map_err(listing("neighbours"))?,
        })
    }

    /// The node's end that has this name, or has had it: one that was renamed still says so.
    pub(super) fn end(&self, name: &str) -> Option<&Found> {
        let mut pairs = self.links.iter().filter(|link| link.is_veth);
        let named = pairs.clone().find(|link| link.name == name);
        named.or_else(|| pairs.find(|link| says(link, name)))
    }

    /// The name of the interface with that index, or the index.
    fn name(&self, index: u32) -> String {
        let named = self.links.iter().find(|link| link.index == index);
        named.map_or_else(|| index.to_string(), |link| link.name.clone())
    }

    /// The interface that sits on another and takes everything that comes in by it.
    pub(super) fn taker(&self, index: u32) -> Option<&Found> {
        self.links.iter().find(|link| {
            link.takes_all && link.peer == Some(index) && link.peer_namespace.is_none()
        })
    }

    pub(super) fn holds_address(&self, index: u32, address: IpAddr) -> bool {
        self.addresses.contains(&(index, address))
    }

    fn leads(&self, index: u32, address: IpAddr) -> bool {
        self.routes.iter().any(|route| {
            route.is_to_pod() && route.address() == Some(address) && route.oif == Some(index)
        })
    }

    fn knows(&self, index: u32, address: IpAddr, mac: [u8; 6]) -> bool {
        self.neighbours
            .iter()
            .any(|known| known.index == index && known.address == address && known.mac == Some(mac))
    }
}

/// Whether an interface tells that it was given this name.
pub(super) fn says(link: &Found, name: &str) -> bool {
    let told = link.alias.as_deref().and_then(Wiring::parse);
    told.is_some_and(|wiring| wiring.host_name == name)
}

/// The name that an interface was given by us, as far as it tells; else the one that it has.
pub(super) fn given_name(link: &Found, prefix: &str) -> String {
    let told = link.alias.as_deref().and_then(Wiring::parse);
    let told = told.map(|wiring| wiring.host_name);
    told.filter(|name| name.starts_with(prefix))
        .unwrap_or_else(|| link.name.clone())
}

/// The pod's end of a pair, wherever it is; `None` where the kernel doesn't tell.
pub(super) fn pod_end(kernel: &mut Conversation, end: &Found) -> Option<Found> {
    let index = end.peer?;
    let namespace = end.peer_namespace?;
    let found = request::link_elsewhere(kernel, index, namespace).ok()?;
    found.is_veth.then_some(found)
}

/// The first address that the pod's end has no more, as far as the kernel tells.
pub(super) fn lost_address(
    filtering: &mut Conversation,
    namespace: Option<u32>,
    (pod_end, wiring): (&Found, &Wiring),
) -> Option<IpAddr> {
    let place = (pod_end.index, namespace?);
    wiring.addresses.iter().copied().find(|address| {
        request::addresses_elsewhere(filtering, place, address)
            .is_ok_and(|present| !present.contains(address))
    })
}

/// Whether the node answers a pod that asks who its gateway is: for IPv4 it does so for what it would send
/// on by another interface; for IPv6 its end has that address.
pub(super) fn answers_for_gateway(kernel: &mut Conversation, index: u32, wiring: &Wiring) -> bool {
    let mut v4 = wiring.addresses.iter().filter(|address| address.is_ipv4());
    v4.all(|address| {
        let onward = request::way_onward(kernel, (index, *address), GATEWAY_V4.into());
        onward.is_some_and(|onward| onward != index)
    })
}

/// One thing that ADD made and that is not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// The interface has another name.
    Name,
    /// The node's end has another hardware address.
    HostMac,
    /// The node's end carries less than IPv6 must, in bytes; this would do.
    Mtu(u32),
    /// A setting has another value.
    Setting(Setting),
    /// The node's end is down.
    Down,
    /// The node's end is a part of another interface, which gets its packets.
    Master(String),
    /// The node's end doesn't have the address of the pod's gateway.
    Gateway,
    /// The node doesn't know this hardware address of the pod's address.
    Neighbour(IpAddr, [u8; 6]),
    /// Nothing leads to this address.
    Route(IpAddr),
    /// The pod is led to under an address that another node holds.
    Shadow(IpAddr),
}

impl Difference {
    /// When it is repaired.
    pub(super) fn stage(&self) -> Stage {
        match self {
            Self::Name => Stage::Name,
            Self::HostMac | Self::Mtu(_) | Self::Setting(_) | Self::Down | Self::Master(_) => {
                Stage::Link
            }
            Self::Gateway | Self::Neighbour(..) | Self::Route(_) | Self::Shadow(_) => Stage::Rest,
        }
    }

    /// Puts it right. True if there was something to do.
    pub(super) fn repair(
        &self,
        kernel: &mut Conversation,
        end: &Found,
        wiring: &Wiring,
    ) -> Result<bool, VethError> {
        let index = end.index;
        let message = match self {
            Self::Name => return rename(kernel, end, wiring).map(|()| true),
            Self::Setting((family, key, value)) => {
                let changed = sysctl::ensure_of_interface(*family, &end.name, key, value)?;
                return Ok(changed);
            }
            Self::HostMac => request::set_mac(index, wiring.host_mac),
            Self::Mtu(mtu) => request::set_mtu(index, *mtu),
            Self::Down => request::set_up(index),
            Self::Master(_) => request::release(index),
            Self::Gateway => request::add_address(index, GATEWAY_V6.into(), 64),
            Self::Neighbour(address, mac) => request::add_neighbour(index, *address, *mac),
            Self::Route(address) => request::add_host_route(index, *address, POD_PLACE),
            Self::Shadow(address) => request::delete_host_route(index, *address, POD_PLACE),
        };
        kernel
            .request(message)
            .map_err(refused(|| format!("repairing that {self}")))?;
        Ok(true)
    }
}

/// What is repaired at once, before the kernel is asked again: it forgets neighbours and routes
/// with a link that changes, and lists settings by the interface's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Name,
    Link,
    Rest,
}

impl Stage {
    pub(super) const ALL: [Self; 3] = [Self::Name, Self::Link, Self::Rest];
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => out.write_str("the node's end was renamed"),
            Self::HostMac => out.write_str("the node's end has another hardware address"),
            Self::Mtu(_) => write!(out, "the node's end carries less than {MIN_MTU} bytes"),
            Self::Setting((family, key, value)) => {
                write!(
                    out,
                    "the {family} setting {key} of the node's end is not {value}"
                )
            }
            Self::Down => out.write_str("the node's end is down"),
            Self::Master(name) => write!(out, "the node's end was made a part of {name}"),
            Self::Gateway => write!(out, "the node's end does not have {GATEWAY_V6}"),
            Self::Neighbour(address, _) => {
                write!(
                    out,
                    "the node does not know the hardware address of {address}"
                )
            }
            Self::Route(address) => write!(out, "the node has no route to {address}"),
            Self::Shadow(address) => {
                write!(
                    out,
                    "the node has a route to {address}, which another node holds"
                )
            }
        }
    }
}

/// Everything of the node's end that is not as ADD made it, in the order of repair. What ADD gave
/// the pod's end counts where the kernel doesn't tell of `pod_end`. An address that another node holds is
/// no pod's of this node, whatever ADD said once: packets to it are that node's.
pub(super) fn differences(
    seen: &Seen,
    (end, pod_end): (&Found, Option<&Found>),
    wiring: &Wiring,
    holders: Option<&Holders>,
) -> Vec<Difference> {
    let pod_mac = pod_end.and_then(|pod_end| pod_end.mac);
    let pod_mac = pod_mac.filter(|mac| alias::is_station(*mac));
    let pod_mac = pod_mac.unwrap_or(wiring.pod_mac);
    let mut found = Vec::new();
    let mut note = |differs: bool, difference: Difference| {
        if differs {
            found.push(difference);
        }
    };
    note(end.name != wiring.host_name, Difference::Name);
    if let Some(master) = end.master {
        note(true, Difference::Master(seen.name(master)));
    }
    note(end.mac != Some(wiring.host_mac), Difference::HostMac);
    let mtu = pod_end.map_or(MIN_MTU, |pod_end| pod_end.mtu.max(MIN_MTU));
    note(end.mtu < MIN_MTU, Difference::Mtu(mtu));
    for setting in sysctl::pod_end_settings(wiring.has_v6()) {
        note(!is_in_force(setting, end), Difference::Setting(setting));
    }
    note(!end.is_up, Difference::Down);
    let has_gateway = seen.holds_address(end.index, GATEWAY_V6.into());
    note(wiring.has_v6() && !has_gateway, Difference::Gateway);
    for address in &wiring.addresses {
        let known = seen.knows(end.index, *address, pod_mac);
        note(!known, Difference::Neighbour(*address, pod_mac));
        let leads = seen.leads(end.index, *address);
        if holders.is_some_and(|holders| holders.is_anothers(address)) {
            note(leads, Difference::Shadow(*address));
        } else {
            note(!leads, Difference::Route(*address));
        }
    }
    found
}

/// Older kernels rename only what is down, which forgets everything else.
fn rename(kernel: &mut Conversation, end: &Found, wiring: &Wiring) -> Result<(), VethError> {
    let name = &wiring.host_name;
    let step = || format!("renaming {} back to {name}", end.name);
    match kernel.request(request::set_name(end.index, name)) {
        Err(cause) if cause.kind() == io::ErrorKind::ResourceBusy => {
            let steps = vec![
                request::set_down(end.index),
                request::set_name(end.index, name),
                request::set_up(end.index),
            ];
            kernel
                .requests(steps)
                .map_err(|(_, cause)| refused(step)(cause))
        }
        renamed => renamed.map_err(refused(step)),
    }
}
