//! The pair of interfaces between a pod and its node.
//!
//! Pods are routed, not bridged. A pod holds its addresses as /32 and /128 and sends everything to
//! a gateway that exists on its own link alone: `169.254.1.1` and `fe80::1`. Both ends know each
//! other's hardware address from the start (permanent neighbours, fixed addresses), so that
//! nothing a pod says by ARP or neighbour discovery changes where packets go, and the first
//! packet waits for nobody. The node finds the pod by a host route in podmesh's own table.
//!
//! Everything hangs on the node's end: with it go the pod's end, the routes and the neighbours.
//! Its alias tells what was made, and [`Mender`] keeps it so.

#![allow(
    unsafe_code,
    reason = "the index of an interface has no safe form in the standard library"
)]

mod alias;
mod compare;
mod holders;
mod mend;
mod pod_end;
mod request;

use std::{
    ffi::CString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    blocking_netlink::{Conversation, Message},
    netns::{NetNamespace, NetNamespaceError},
    route::{POD_PROTOCOL, TABLE},
    sysctl::{self, SysctlError},
};

pub use self::{
    alias::MAX_OWNER_BYTES,
    holders::Holders,
    mend::{Mended, Mender, Trouble},
    pod_end::{OtherRoute, everything, forget_rules, other_routes},
};

use alias::Wiring;
use compare::Seen;
use request::Found;

pub(crate) use request::addresses as own_addresses;

/// The IPv4 gateway of every pod; it answers nothing and is never seen outside the pod's link.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The IPv6 gateway of every pod.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// How often the kernel is asked for what it does in the background, together ten seconds.
const LOOKS: u32 = 2000;
const POLL: Duration = Duration::from_millis(5);

/// Where the routes to pods stand.
const POD_PLACE: request::Place = request::Place {
    table: TABLE,
    protocol: POD_PROTOCOL,
};

/// A pod's interface pair as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Name of the node's end.
    pub host_name: String,
    /// Name of the pod's end.
    pub pod_name: String,
    /// Whose the pair is, in at most [`MAX_OWNER_BYTES`]: in the alias of the node's end.
    pub owner: String,
    /// The runtime's id of the pod, whose beginning is in the alias, too.
    pub pod: String,
    /// Hardware address of the node's end.
    pub host_mac: [u8; 6],
    /// Hardware address of the pod's end.
    pub pod_mac: [u8; 6],
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// The pod's addresses: at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Where to the pod goes by this interface: [`everything`] of a family, or some ranges of it,
    /// or nothing but what speaks under this interface's address.
    pub destinations: Vec<IpNet>,
}

/// The node's end of a pod's pair that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEnd {
    /// The name that it was given.
    pub name: String,
    /// Whose the pair is. A pair that is being made tells nobody before it is up.
    pub owner: Option<String>,
    /// The pod's addresses, as far as it tells.
    pub addresses: Vec<IpAddr>,
    /// Whether it has been brought up.
    pub is_up: bool,
}

/// Why an interface pair is not as wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VethError {
    /// The kernel refused one step.
    #[error("{step} failed: {cause}")]
    Refused {
        /// What was being done, as "doing something".
        step: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The pod's namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NetNamespaceError),
    /// A setting of one of the ends.
    #[error(transparent)]
    Setting(#[from] SysctlError),
    /// Something that should be there is not, or is different.
    #[error("{0}")]
    Damaged(String),
}

/// Makes the pair and everything that hangs on it. A leftover of that name is replaced.
///
/// # Errors
///
/// When any step fails; nothing is left behind then.
pub fn create(link: &PodLink, pod: &NetNamespace) -> Result<(), VethError> {
    remove(&link.host_name)?;
    let made = create_pair(link, pod)
        .and_then(|()| raise_host_end(link))
        .and_then(|index| {
            pod.run(|| pod_end::set_up(link))??;
            Ok(index)
        })
        .and_then(|index| route_to_pod(link, index))
        .and_then(|()| await_carrier(&link.host_name));
    if made.is_err() {
        // The first error says more than what may come of cleaning up after it.
        let _ = remove(&link.host_name);
    }
    made
}

/// Removes the pair by the name that the node's end was given. True if there was one.
///
/// # Errors
///
/// When there is an interface of that name and the kernel does not remove it, or it is no veth.
pub fn remove(host_name: &str) -> Result<bool, VethError> {
    let step = || format!("removing the interface {host_name}");
    let mut kernel = open()?;
    let found = match find_index(host_name) {
        Some(_) => request::find_link(&mut kernel, host_name),
        None => find_renamed(&mut kernel, host_name),
    };
    let found = match found {
        Ok(found) => found,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(cause) => return Err(refused(step)(cause)),
    };
    if !found.is_veth {
        return Err(VethError::Damaged(format!(
            "{host_name} is not a veth, so it is not podmesh's to remove"
        )));
    }
    match kernel.request(request::delete_link(found.index)) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(refused(step)(cause)),
    }
}

/// The node's end that somebody has given another name than its own.
fn find_renamed(kernel: &mut Conversation, host_name: &str) -> io::Result<Found> {
    let mut links = request::links(kernel)?;
    let place = links
        .iter()
        .position(|link| link.is_veth && compare::says(link, host_name));
    place
        .map(|place| links.swap_remove(place))
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The veth interfaces in this namespace whose names begin with `prefix`, or did when they were
/// made.
///
/// # Errors
///
/// When the kernel does not list its interfaces.
pub fn host_ends(prefix: &str) -> Result<Vec<HostEnd>, VethError> {
    let links =
        request::links(&mut open()?).map_err(refused(|| "listing interfaces".to_owned()))?;
    let pods = links.into_iter().filter(|link| link.is_veth);
    let ends = pods.map(|link| HostEnd {
        name: compare::given_name(&link, prefix),
        owner: link.alias.as_deref().and_then(alias::owner_of),
        addresses: told(&link).map_or_else(Vec::new, |wiring| wiring.addresses),
        is_up: link.is_up,
    });
    Ok(ends.filter(|end| end.name.starts_with(prefix)).collect())
}

/// Names of the veth interfaces in this namespace that begin with `prefix`, or did when they were
/// made.
///
/// # Errors
///
/// When the kernel does not list its interfaces.
pub fn list(prefix: &str) -> Result<Vec<String>, VethError> {
    let ends = host_ends(prefix)?;
    Ok(ends.into_iter().map(|end| end.name).collect())
}

/// Addresses of the pods that this node knows, whatever any ledger says: it routes to them, has
/// their hardware address at one of the interfaces whose names begin with `prefix`, or such an
/// interface says that they are its pod's.
///
/// # Errors
///
/// When the kernel does not list its routes, interfaces or neighbours.
pub fn present_pods(prefix: &str) -> Result<Vec<IpAddr>, VethError> {
    let seen = Seen::read(&mut open()?)?;
    let routed = seen.routes.iter().filter(|route| route.is_to_pod());
    let mut pods: Vec<_> = routed.filter_map(request::Route::address).collect();
    let ends = seen.links.iter().filter(|link| link.is_veth);
    for end in ends.filter(|link| compare::given_name(link, prefix).starts_with(prefix)) {
        let known = seen.neighbours.iter();
        let known = known.filter(|known| known.index == end.index);
        pods.extend(known.map(|known| known.address));
        pods.extend(told(end).into_iter().flat_map(|wiring| wiring.addresses));
    }
    pods.sort_unstable();
    pods.dedup();
    Ok(pods)
}

/// How a pod was wired, as its node's end tells.
fn told(end: &Found) -> Option<Wiring> {
    end.alias.as_deref().and_then(Wiring::parse)
}

/// Whether the node's end of any pod stands.
///
/// # Errors
///
/// When the kernel does not list its interfaces.
pub fn any_stands(prefix: &str) -> Result<bool, VethError> {
    Ok(!host_ends(prefix)?.is_empty())
}

/// The first own address of this namespace, with its interface, for which `matches` holds.
///
/// # Errors
///
/// When the kernel does not list its addresses.
pub fn find_address(
    matches: impl Fn(&str, &IpAddr) -> bool,
) -> Result<Option<(String, IpAddr)>, VethError> {
    let listing = || "listing addresses".to_owned();
    let mut kernel = open()?;
    let links = request::links(&mut kernel).map_err(refused(listing))?;
    let addresses = request::addresses(&mut kernel).map_err(refused(listing))?;
    Ok(addresses.into_iter().find_map(|(index, address)| {
        let link = links.iter().find(|link| link.index == index)?;
        matches(&link.name, &address).then(|| (link.name.clone(), address))
    }))
}

/// Compares everything that [`create`] makes with what there is.
///
/// # Errors
///
/// [`VethError::Damaged`] with the first difference, in words.
pub fn check(link: &PodLink, pod: &NetNamespace) -> Result<(), VethError> {
    let mut kernel = open()?;
    let seen = Seen::read(&mut kernel)?;
    let Some(host) = seen.end(&link.host_name) else {
        return Err(VethError::Damaged(format!(
            "there is no interface {} on the node",
            link.host_name
        )));
    };
    let pod_end = compare::pod_end(&mut kernel, host);
    let wiring = Wiring::of(link);
    let differences = compare::differences(&seen, (host, pod_end.as_ref()), &wiring, None);
    if let Some(first) = differences.first() {
        return Err(VethError::Damaged(format!("{} ({})", first, host.name)));
    }
    let is_answered = compare::answers_for_gateway(&mut kernel, host.index, &wiring);
    pod.run(|| pod_end::check(link, host, is_answered))??;
    if !host.is_operational {
        return Err(VethError::Damaged(format!(
            "{} on the node has no carrier",
            link.host_name
        )));
    }
    Ok(())
}

fn existing(kernel: &mut Conversation, name: &str, place: &str) -> Result<Found, VethError> {
    let found = match find_index(name) {
        Some(_) => request::find_link(kernel, name),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    match found {
        Ok(found) if found.is_up => Ok(found),
        Ok(_) => Err(VethError::Damaged(format!(
            "the interface {name} {place} is down"
        ))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(VethError::Damaged(format!(
            "there is no interface {name} {place}"
        ))),
        Err(cause) => Err(refused(|| format!("looking for {name} {place}"))(cause)),
    }
}

fn create_pair(link: &PodLink, pod: &NetNamespace) -> Result<(), VethError> {
    let message = request::create_pair(link, pod.as_fd());
    open()?.request(message).map_err(refused(|| {
        format!(
            "creating {} and {} in the pod",
            link.host_name, link.pod_name
        )
    }))
}

/// Readies the node's end before it carries anything, and returns its index.
fn raise_host_end(link: &PodLink) -> Result<u32, VethError> {
    let name = link.host_name.as_str();
    let wiring = Wiring::of(link);
    let (_, errors) = sysctl::keep_pod_end(name, wiring.has_v6());
    if let Some(error) = errors.into_iter().next() {
        return Err(error.into());
    }
    let index = index_of(name)?;
    let mut steps = vec![(
        format!("bringing up {name}"),
        request::set_up_as(index, &wiring.to_alias()),
    )];
    if wiring.has_v6() {
        steps.push((
            format!("giving {GATEWAY_V6} to {name}"),
            request::add_address(index, GATEWAY_V6.into(), 64),
        ));
    }
    carry_out(steps)?;
    Ok(index)
}

fn route_to_pod(link: &PodLink, index: u32) -> Result<(), VethError> {
    let mut steps = Vec::new();
    for address in &link.addresses {
        let routing = || format!("routing {address} to {}", link.host_name);
        let neighbour = request::add_neighbour(index, *address, link.pod_mac);
        steps.push((routing(), neighbour));
        let route = request::add_host_route(index, *address, POD_PLACE);
        steps.push((routing(), route));
    }
    carry_out(steps)
}

/// Waits until the node's end sends. It was raised before its counterpart, and the kernel switches
/// such an interface on later, in the background, behind everybody else who changes interfaces;
/// until then it drops every packet. Since Linux 6.8 the question alone makes it do so at once.
fn await_carrier(host_name: &str) -> Result<(), VethError> {
    let mut kernel = open()?;
    await_that(host_name, || {
        Ok(request::find_link(&mut kernel, host_name)?.is_operational)
    })
}

/// Waits for what the kernel does in the background about `what`.
fn await_that(what: &str, mut is_done: impl FnMut() -> io::Result<bool>) -> Result<(), VethError> {
    let asking = || format!("waiting for {what}");
    for _ in 0..LOOKS {
        if is_done().map_err(refused(asking))? {
            return Ok(());
        }
        thread::sleep(POLL);
    }
    Err(refused(asking)(io::ErrorKind::TimedOut.into()))
}

fn carry_out(steps: Vec<(String, Message)>) -> Result<(), VethError> {
    let (names, messages): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
    open()?.requests(messages).map_err(|(position, cause)| {
        let step = names.get(position).cloned().unwrap_or_default();
        VethError::Refused { step, cause }
    })
}

fn index_of(name: &str) -> Result<u32, VethError> {
    find_index(name).ok_or_else(|| {
        let cause = io::ErrorKind::NotFound.into();
        refused(|| format!("looking for the new interface {name}"))(cause)
    })
}

/// The index of an interface. Unlike netlink this does not wait for others that change
/// interfaces, of which there are many when pods come and go.
fn find_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the pointer is to a NUL-terminated text that lives during the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// The gateway of a pod that has this address.
pub fn gateway_of(address: &IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

fn open() -> Result<Conversation, VethError> {
    Conversation::route().map_err(refused(|| "opening a netlink socket".to_owned()))
}

fn refused(step: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> VethError {
    move |cause| VethError::Refused {
        step: step(),
        cause,
    }
}
