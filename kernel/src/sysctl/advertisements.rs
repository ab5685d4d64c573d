//! Interfaces whose routes the kernel itself learns from router advertisements.
//!
//! On an interface that forwards, the kernel ignores router advertisements unless `accept_ra` is 2, and
//! when forwarding is switched on, it throws away the default route that it has learned. Whoever switches
//! it on for a machine that lives by such a route cuts it off. Where somebody else than the kernel reads
//! the advertisements (systemd-networkd, NetworkManager), `accept_ra` is 0, and stays so.

use std::fs;

use super::{
    IpFamily, OwnInterfaces, SysctlError, ensure, interfaces, is_in_force, of_interface, read,
};
use crate::underlay::is_container_interface;

/// The kernel's flag of a route that leads nowhere.
const REJECT: u32 = 0x0200;
/// The kernel's flag of a route that an advertisement told of.
const LEARNED: u32 = 0x0004_0000;
/// The kernel's flag of an address without an end.
const PERMANENT: u32 = 0x80;

/// What [`keep_learning`] found.
#[derive(Debug, Default)]
pub struct Learners {
    /// Interfaces that had stopped to learn and go on from now on.
    pub resumed: Vec<String>,
    /// Interfaces that have an address by advertisements, and no default route, and were found not to
    /// learn any more, in this call or before.
    pub without_route: Vec<String>,
    /// Interfaces that don't learn, and can't be told to.
    pub errors: Vec<SysctlError>,
}

/// Interfaces that learn and are about to stop, as forwarding is turned on, are told not to.
pub(super) fn before_forwarding(own: OwnInterfaces<'_>) -> Result<(), SysctlError> {
    let table = Table::read();
    for name in others(own) {
        if asks(&name) && (!is_container_interface(&name) || table.has_learned(&name)) {
            resume(&name)?;
        }
    }
    Ok(())
}

/// Lets interfaces learn again that forward already and ask for advertisements (`accept_ra` is 1),
/// whoever turned forwarding on and whenever: at boot, before podmesh came, for an interface that came
/// up later. Never podmesh's own, and none of containers', which could say to be routers.
///
/// `before` are those that are known to have lost their default route.
#[must_use]
pub fn keep_learning(own: OwnInterfaces<'_>, before: &[String]) -> Learners {
    let mut found = Learners::default();
    let names = others(own);
    let stopped: Vec<String> = names
        .iter()
        .filter(|name| asks(name) && forwards(name) && !is_container_interface(name))
        .cloned()
        .collect();
    let lost = |name: &&String| stopped.contains(name) || before.contains(name);
    let candidates: Vec<&String> = names.iter().filter(lost).collect();
    if !candidates.is_empty() {
        let table = Table::read();
        let is_without = |name: &&&String| table.is_without_route(name);
        found.without_route = candidates
            .iter()
            .filter(is_without)
            .map(|name| (*name).clone())
            .collect();
    }
    for name in stopped {
        match resume(&name) {
            Ok(()) => found.resumed.push(name),
            Err(error) if error.is_absent() => {}
            // Where nothing was learned before, nothing is missed.
            Err(error) if found.without_route.contains(&name) => found.errors.push(error),
            Err(error) => tracing::debug!(reason = %error, "router advertisements are not heard"),
        }
    }
    found
}

fn others(own: OwnInterfaces<'_>) -> Vec<String> {
    let names = interfaces(IpFamily::V6).unwrap_or_default();
    names
        .into_iter()
        .filter(|name| name != "lo" && !own.has(name))
        .collect()
}

fn is(interface: &str, key: &str, value: &str) -> bool {
    read(&of_interface(IpFamily::V6, interface, key)).is_ok_and(|present| present == value)
}

/// Whether the kernel is to read advertisements there, as long as nothing is forwarded.
fn asks(interface: &str) -> bool {
    is(interface, "accept_ra", "1")
}

fn forwards(interface: &str) -> bool {
    let name = of_interface(IpFamily::V6, interface, "forwarding");
    read(&name).is_ok_and(|present| is_in_force(&name, &present, "1"))
}

fn resume(interface: &str) -> Result<(), SysctlError> {
    ensure(&of_interface(IpFamily::V6, interface, "accept_ra"), "2").map(|_| ())
}

/// What the kernel has learned, as its files under `/proc` say.
struct Table {
    routes: String,
    addresses: String,
}

impl Table {
    fn read() -> Self {
        // Of this thread: `/proc/net` is the namespace of the process' first one.
        let of =
            |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        Self {
            routes: of("ipv6_route"),
            addresses: of("if_inet6"),
        }
    }

    /// Whether an interface has a route that an advertisement told of.
    fn has_learned(&self, interface: &str) -> bool {
        self.routes_of(interface)
            .any(|(_, flags)| flags & LEARNED != 0)
    }

    /// Whether an interface has an address by advertisements, but no default route of any kind.
    fn is_without_route(&self, interface: &str) -> bool {
        self.has_address(interface) && !self.has_default(interface)
    }

    fn has_default(&self, interface: &str) -> bool {
        self.routes_of(interface)
            .any(|(length, flags)| length == "00" && flags & REJECT == 0)
    }

    /// Length of the prefix and flags, from lines of the form `DESTINATION LENGTH SOURCE LENGTH GATEWAY
    /// METRIC COUNT USE FLAGS INTERFACE`, numbers in base 16.
    fn routes_of<'a>(&'a self, interface: &'a str) -> impl Iterator<Item = (&'a str, u32)> {
        self.routes.lines().filter_map(move |line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_its = fields.get(9) == Some(&interface);
            let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
            is_its.then_some((*fields.get(1)?, flags))
        })
    }

    /// `ADDRESS INDEX LENGTH SCOPE FLAGS INTERFACE`: of the whole world, with an end.
    fn has_address(&self, interface: &str) -> bool {
        self.addresses.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let flags = fields
                .get(4)
                .and_then(|flags| u32::from_str_radix(flags, 16).ok());
            fields.get(5) == Some(&interface)
                && fields.get(3) == Some(&"00")
                && flags.is_some_and(|flags| flags & PERMANENT == 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
20010db8011300000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00440001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe8000000000000034d1bffffe2c1f5b 00000400 00000001 00000000 00450003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe8000000000000034d1bffffe2c1f5b 00000400 00000001 00000000 00000003     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";
    const ADDRESSES: &str = "\
20010db80113000024f1d2fffe2c1f5b 02 40 00 00     eth0
fe8000000000000024f1d2fffe2c1f5b 02 40 20 80     eth0
20010db80113000024f1d2fffe2c1f5c 03 40 00 00     eth1
20010db80113000024f1d2fffe2c1f5d 04 40 00 00     eth2
20010db80113000024f1d2fffe2c1f5e 05 40 00 80     eth3
00000000000000000000000000000001 01 80 10 80       lo
";

    #[test]
    fn what_was_learned_is_told_from_what_was_set() {
        let table = Table {
            routes: ROUTES.to_owned(),
            addresses: ADDRESSES.to_owned(),
        };
        assert!(table.has_learned("eth0"));
        assert!(!table.has_learned("eth1"));
        for (interface, is_without, why) in [
            ("eth0", false, "it has a route by advertisement"),
            ("eth1", false, "somebody set a route"),
            ("eth2", true, "an address by advertisement, and no route"),
            ("eth3", false, "its address is for good"),
            ("lo", false, "no network"),
            ("eth9", false, "nothing"),
        ] {
            assert_eq!(
                table.is_without_route(interface),
                is_without,
                "{interface}: {why}"
            );
        }
        let nothing = Table {
            routes: "odd\n\n00 00".to_owned(),
            addresses: " x".to_owned(),
        };
        assert!(!nothing.has_learned("eth0") && !nothing.is_without_route("eth0"));
    }
}
