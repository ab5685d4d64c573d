//! The settings of podmesh's own interfaces: the mesh's, and the node's ends of pods.

use std::fmt;

use super::{IpFamily, SysctlError, dotted, ensure, has_family, of_interface};

/// Which interfaces are podmesh's, by their names.
#[derive(Debug, Clone, Copy)]
pub struct OwnInterfaces<'a> {
    /// The mesh interface.
    pub device: &'a str,
    /// What the names of the node's ends of pods begin with.
    pub veth_prefix: &'a str,
}

impl OwnInterfaces<'_> {
    /// Whether an interface is one of them.
    #[must_use]
    pub fn has(&self, interface: &str) -> bool {
        interface == self.device || interface.starts_with(self.veth_prefix)
    }
}

/// A setting that was different and is as wanted again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repair {
    /// As the program `sysctl` names it.
    pub name: String,
    /// What it is again.
    pub value: &'static str,
}

impl fmt::Display for Repair {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} = {}", self.name, self.value)
    }
}

/// One key of one family, and its value.
pub(crate) type Setting = (IpFamily, &'static str, &'static str);

/// Of the mesh interface.
const DEVICE: [Setting; 2] = [
    (IpFamily::V6, "disable_ipv6", "0"),
    (IpFamily::V6, "accept_ra", "0"),
];

/// Of the node's end of any pod.
const POD_END: [Setting; 10] = [
    (IpFamily::V4, "forwarding", "1"),
    (IpFamily::V4, "rp_filter", "1"),
    (IpFamily::V4, "accept_redirects", "0"),
    (IpFamily::V4, "send_redirects", "0"),
    // The neighbours are known, so no pod needs an answer about this node's addresses.
    (IpFamily::V4, "arp_ignore", "8"),
    // But one that has got another hardware address has forgotten its gateway and asks for that. Who asks
    // is remembered only under an address that is routed to it (`rp_filter`), so none can fill the table.
    (IpFamily::V4, "proxy_arp", "1"),
    (IpFamily::V6, "accept_ra", "0"),
    (IpFamily::V6, "accept_redirects", "0"),
    (IpFamily::V6, "addr_gen_mode", "1"),
    (IpFamily::V6, "forwarding", "1"),
];

/// Of the node's end of a pod that has an IPv6 address.
const POD_END_WITH_V6: [Setting; 1] = [(IpFamily::V6, "disable_ipv6", "0")];

/// Brings the mesh interface's settings to what packets need, those of the families that the kernel has;
/// says what was different. It forwards what comes in of the families `forwarded`. One failure does not
/// stop the rest, and no interface is no failure.
pub fn keep_device(device: &str, forwarded: &[IpFamily]) -> (Vec<Repair>, Vec<SysctlError>) {
    let forwarding = forwarded.iter().map(|family| (*family, "forwarding", "1"));
    let settings: Vec<Setting> = DEVICE.into_iter().chain(forwarding).collect();
    keep(device, &settings)
}

/// The same for the node's end of one pod. `v6` is whether the pod may have an IPv6 address.
pub fn keep_pod_end(interface: &str, v6: bool) -> (Vec<Repair>, Vec<SysctlError>) {
    let (mut repairs, mut errors) = keep(interface, &POD_END);
    if v6 {
        let (more, others) = keep(interface, &POD_END_WITH_V6);
        repairs.extend(more);
        errors.extend(others);
    }
    (repairs, errors)
}

/// What [`keep_pod_end`] compares, of the families that the kernel has.
pub(crate) fn pod_end_settings(v6: bool) -> impl Iterator<Item = Setting> {
    let more = POD_END_WITH_V6.into_iter().filter(move |_| v6);
    let has_v6 = has_family(IpFamily::V6);
    let all = POD_END.into_iter().chain(more);
    all.filter(move |(family, ..)| has_v6 || *family == IpFamily::V4)
}

fn keep(interface: &str, settings: &[Setting]) -> (Vec<Repair>, Vec<SysctlError>) {
    let has_v6 = has_family(IpFamily::V6);
    let (mut repairs, mut errors) = (Vec::new(), Vec::new());
    for (family, key, value) in settings.iter().copied() {
        if family == IpFamily::V6 && !has_v6 {
            continue;
        }
        let name = of_interface(family, interface, key);
        match ensure(&name, value) {
            Ok(false) => {}
            Ok(true) => repairs.push(Repair {
                name: dotted(&name),
                value,
            }),
            Err(error) if error.is_absent() => {}
            Err(error) => errors.push(error),
        }
    }
    (repairs, errors)
}
