//! Settings of the machine and of interfaces: forwarding, and what learning routes needs.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::thread;
use std::time::{Duration, Instant};

use podmesh_kernel::sysctl::{
    IpFamily, OwnInterfaces, SysctlError, ensure_forwarding, keep_device, keep_learning,
    keep_pod_end,
};
use rustix::net::{self, AddressFamily, SendFlags, SocketType, ipproto, sockopt};

use crate::sandbox::{ip, isolated, make_settings_read_only};

const OWN: OwnInterfaces<'_> = OwnInterfaces {
    device: "mesh0",
    veth_prefix: "pm",
};
const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
/// What a package installs, and a boot applies.
const INSTALLED: &str = include_str!("../../../packaging/sysctl.d/90-podmesh.conf");

fn read(key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/sys/net/{key}"));
    let text = text.unwrap_or_else(|error| panic!("{key}: {error}"));
    text.trim().to_owned()
}

fn write(key: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{key}"), value)
        .unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
}

/// A machine with the uplink `up0` whose kernel has learned its default route from the router at
/// `gw0`.
fn learned() {
    write("ipv6/conf/all/forwarding", "0");
    write("ipv4/ip_forward", "0");
    ip("link add up0 type veth peer name gw0");
    for name in ["up0", "gw0"] {
        // Nobody to be asked whether he has the address already, which takes a second.
        write(&format!("ipv6/conf/{name}/accept_dad"), "0");
    }
    write("ipv6/conf/up0/accept_ra", "1");
    write("ipv6/conf/gw0/accept_ra", "0");
    ip("link set gw0 up");
    ip("link set up0 up");
    assert!(becomes_routed(), "no route by advertisement");
}

/// Says once that `gw0` is a router.
fn advertise() {
    let index = ip("-o link show gw0");
    let index = index.split(':').next().expect("an index");
    let index: u32 = index.parse().expect("a number");
    let socket = net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))
        .expect("a raw socket");
    sockopt::set_ipv6_multicast_hops(&socket, 255).expect("a hop limit");
    let mut bytes = vec![134, 0, 0, 0, 64, 0];
    bytes.extend(1800_u16.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([3, 4, 64, 0xc0]);
    bytes.extend(3600_u32.to_be_bytes());
    bytes.extend(1800_u32.to_be_bytes());
    bytes.extend([0; 4]);
    let prefix: Ipv6Addr = "2001:db8:113::".parse().expect("a prefix");
    bytes.extend(prefix.octets());
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = SocketAddrV6::new(everybody, 0, 0, index);
    // The first ones may be before the interface is ready.
    let _ = net::sendto(&socket, &bytes, SendFlags::empty(), &to);
}

fn is_routed() -> bool {
    !ip("-6 route show default dev up0").is_empty()
}

/// Whether the next advertisements give the machine a default route.
fn becomes_routed() -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        advertise();
        thread::sleep(Duration::from_millis(20));
        if is_routed() {
            return true;
        }
    }
    false
}

#[test]
fn no_way_of_ours_to_forwarding_takes_the_default_route_away() {
    isolated(|| {
        learned();
        let settings = INSTALLED
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='));
        for (key, value) in settings {
            let key = key
                .trim()
                .strip_prefix("net.")
                .expect("a setting of networks");
            write(&key.replace('.', "/"), value.trim());
        }
        assert!(is_routed(), "the installation takes the route away");
        assert!(ensure_forwarding(IpFamily::V6, OWN).expect("forwarding"));
        assert!(is_routed(), "forwarding takes the route away");
        assert_eq!(read("ipv6/conf/all/forwarding"), "1");
        assert_eq!(read("ipv6/conf/up0/accept_ra"), "2");
        assert_eq!(read("ipv6/conf/gw0/accept_ra"), "0");
        assert_eq!(read("ipv6/conf/default/accept_ra"), "1");
        assert!(!ensure_forwarding(IpFamily::V6, OWN).expect("forwarding"));
    });
}

#[test]
fn a_route_that_somebody_else_took_away_is_missed_and_learned_again() {
    isolated(|| {
        learned();
        assert!(
            keep_learning(OWN, &[]).resumed.is_empty(),
            "nothing forwards"
        );
        assert_eq!(read("ipv6/conf/up0/accept_ra"), "1");
        // As Docker and Kubernetes do it.
        write("ipv6/conf/all/forwarding", "1");
        assert!(!is_routed(), "this kernel keeps the route");
        let found = keep_learning(OWN, &[]);
        assert_eq!(found.resumed, ["up0"]);
        assert_eq!(found.without_route, ["up0"]);
        let found = keep_learning(OWN, &found.without_route);
        assert!(found.resumed.is_empty() && found.errors.is_empty());
        assert_eq!(found.without_route, ["up0"]);
        assert!(becomes_routed());
        assert!(
            keep_learning(OWN, &found.without_route)
                .without_route
                .is_empty()
        );

        write("ipv6/conf/up0/accept_ra", "1");
        let found = keep_learning(OWN, &[]);
        assert_eq!(found.resumed, ["up0"]);
        assert!(found.without_route.is_empty(), "the route is there");
        write("ipv6/conf/up0/accept_ra", "0");
        assert!(
            keep_learning(OWN, &[]).resumed.is_empty(),
            "somebody else reads them"
        );
    });
}

#[test]
fn interfaces_that_come_later_learn_too_but_none_of_ours_and_of_containers() {
    isolated(|| {
        write("ipv6/conf/all/forwarding", "1");
        write("ipv6/conf/default/accept_ra", "1");
        ip("link add late0 type veth peer name mesh0");
        ip("link add docker0 type veth peer name pm00");
        assert_eq!(keep_learning(OWN, &[]).resumed, ["late0"]);
        for (name, value) in [
            ("late0", "2"),
            ("mesh0", "1"),
            ("docker0", "1"),
            ("pm00", "1"),
        ] {
            assert_eq!(
                read(&format!("ipv6/conf/{name}/accept_ra")),
                value,
                "{name}"
            );
        }
        assert_eq!(read("ipv6/conf/default/accept_ra"), "1");
    });
}

#[test]
fn our_interfaces_get_their_settings_back_and_others_keep_theirs() {
    isolated(|| {
        write("ipv4/ip_forward", "1");
        write("ipv6/conf/all/forwarding", "1");
        // What hardened machines begin each interface with.
        for (key, value) in [
            ("ipv4/conf/default/forwarding", "0"),
            ("ipv6/conf/default/forwarding", "0"),
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("ipv6/conf/default/accept_ra", "2"),
        ] {
            write(key, value);
        }
        ip("link add mesh0 type veth peer name up0");
        ip("link add pm0a type veth peer name pm0b");
        let (repairs, errors) = keep_device("mesh0", &[]);
        assert_eq!((repairs.len(), errors.len()), (2, 0));
        assert_eq!(
            read("ipv4/conf/mesh0/forwarding"),
            "0",
            "nobody asked for it"
        );
        write("ipv6/conf/mesh0/disable_ipv6", "1");
        write("ipv6/conf/mesh0/accept_ra", "2");
        let (repairs, errors) = keep_device("mesh0", &BOTH);
        assert!(errors.is_empty(), "{errors:?}");
        let names: Vec<_> = repairs.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "net.ipv6.conf.mesh0.disable_ipv6 = 0",
                "net.ipv6.conf.mesh0.accept_ra = 0",
                "net.ipv4.conf.mesh0.forwarding = 1",
                "net.ipv6.conf.mesh0.forwarding = 1",
            ]
        );
        assert!(keep_device("mesh0", &BOTH).0.is_empty());
        assert_eq!(read("ipv4/conf/up0/forwarding"), "0");
        assert_eq!(read("ipv6/conf/up0/disable_ipv6"), "1");

        assert!(!keep_pod_end("pm0a", false).0.is_empty());
        assert!(keep_pod_end("pm0a", false).0.is_empty());
        assert_eq!(read("ipv6/conf/pm0a/disable_ipv6"), "1");
        assert_eq!(keep_pod_end("pm0a", true).0.len(), 1);
        for (key, value) in [
            ("forwarding", "0"),
            ("rp_filter", "0"),
            ("accept_redirects", "1"),
        ] {
            write(&format!("ipv4/conf/pm0a/{key}"), value);
            assert_eq!(keep_pod_end("pm0a", true).0.len(), 1, "{key}");
            assert_ne!(read(&format!("ipv4/conf/pm0a/{key}")), value);
        }
        // One that has gone meanwhile is nobody's trouble.
        let (repairs, errors) = keep_device("mesh9", &BOTH);
        assert!(repairs.is_empty() && errors.is_empty(), "{errors:?}");
    });
}

#[test]
fn forwarding_of_another_kind_is_forwarding() {
    isolated(|| {
        ip("link add mesh0 type veth peer name up0");
        ip("link add pm0a type veth peer name pm0b");
        for family in BOTH {
            ensure_forwarding(family, OWN).unwrap();
        }
        keep_device("mesh0", &BOTH);
        keep_pod_end("pm0a", true);
        for (key, value) in [
            ("ipv6/conf/all/forwarding", "2"),
            ("ipv6/conf/pm0a/forwarding", "2"),
            ("ipv4/conf/mesh0/forwarding", "3"),
        ] {
            write(key, value);
            assert!(!ensure_forwarding(IpFamily::V6, OWN).unwrap(), "{key}");
            assert!(keep_pod_end("pm0a", true).0.is_empty(), "{key}");
            assert!(keep_device("mesh0", &BOTH).0.is_empty(), "{key}");
            assert_eq!(read(key), value);
        }
    });
}

#[test]
fn what_can_not_be_set_is_said_with_what_it_is() {
    isolated(|| {
        learned();
        write("ipv6/conf/all/forwarding", "1");
        ip("link add mesh0 type veth peer name far0");
        for name in ["mesh0", "far0"] {
            // Nothing to be told to learn there.
            write(&format!("ipv6/conf/{name}/accept_ra"), "0");
        }
        write("ipv4/conf/mesh0/forwarding", "0");
        write("ipv6/conf/mesh0/disable_ipv6", "1");
        make_settings_read_only();
        let said = |error: &dyn std::error::Error| error.to_string();
        let (repairs, errors) = keep_device("mesh0", &BOTH);
        assert!(repairs.is_empty());
        assert!(errors[0].turns_off_v6() && errors.iter().all(SysctlError::stops_packets));
        let errors: Vec<_> = errors.iter().map(|error| said(error)).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[1].starts_with(
                "the kernel setting net.ipv4.conf.mesh0.forwarding is 0 and can't be set to 1: Read-only"
            ),
            "{errors:?}"
        );
        let error = ensure_forwarding(IpFamily::V4, OWN).expect_err("it is read-only");
        assert!(said(&error).contains("net.ipv4.ip_forward is 0"), "{error}");
        // Whoever misses something is told why.
        let found = keep_learning(OWN, &[]);
        assert_eq!(found.without_route, ["up0"]);
        assert_eq!(found.errors.len(), 1);
    });
}
