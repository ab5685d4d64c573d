use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use ipnet::IpNet;
use podmesh_kernel::host::{
    Change, HostState, Outcome, PeerRoute, Problem, Reconciler, ensure_fail_closed_routes,
};
use podmesh_kernel::link::LinkChange;
use podmesh_kernel::mark::Mark;
use podmesh_kernel::netlink::Netlink;
use podmesh_kernel::tun::{Offloads, TunDevice};

use crate::sandbox::{ip, isolated_async, try_ip};

const MARK: Mark = Mark {
    value: 0x101c,
    mask: 0x101c,
};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

pub(crate) fn state() -> HostState {
    let peer = |prefix, mtu| PeerRoute {
        prefix: net(prefix),
        mtu,
    };
    HostState {
        device: "mesh0".to_owned(),
        mtu: 1280,
        addresses: vec![net("10.77.0.1/32"), net("fd00:1::1/128")],
        protected: vec![net("10.77.0.0/16"), net("10.42.0.0/16"), net("fd00:1::/48")],
        peer_routes: vec![
            peer("10.77.0.2/32", None),
            peer("10.42.2.0/24", Some(1300)),
            peer("fd00:1::2/128", None),
            peer("fd00:1:0:102::/64", Some(1300)),
        ],
        local_prefixes: vec![net("10.42.1.0/24"), net("fd00:1:0:101::/64")],
        source_v4: Some([10, 77, 0, 1].into()),
        source_v6: Some("fd00:1::1".parse().expect("an address")),
        mark: MARK,
    }
}

pub(crate) struct Node {
    netlink: Arc<Netlink>,
    pub(crate) reconciler: Reconciler,
    device: Option<TunDevice>,
}

impl Node {
    /// A node with an uplink that has a default route for both families.
    pub(crate) fn new() -> Self {
        ip("link add up0 type veth peer name gw0");
        ip("link set up0 up");
        ip("link set gw0 up");
        ip("addr add 192.0.2.7/24 dev up0");
        ip("addr add 2001:db8::7/64 dev up0 nodad");
        ip("route add default via 192.0.2.1");
        ip("route add default via 2001:db8::1");
        let netlink = Arc::new(Netlink::connect().expect("a connection"));
        let reconciler = Reconciler::new(Arc::clone(&netlink));
        let device = Some(TunDevice::open("mesh0", 2, Offloads::default()).expect("a device"));
        Self {
            netlink,
            reconciler,
            device,
        }
    }

    async fn apply(&self, state: &HostState) -> Outcome {
        self.reconciler
            .apply(state)
            .await
            .expect("the kernel's answers")
    }

    /// Applies and expects no problem; returns the number of changes.
    pub(crate) async fn settle(&self, state: &HostState) -> usize {
        let outcome = self.apply(state).await;
        assert!(outcome.problems.is_empty(), "{:?}", outcome.problems);
        outcome.changes.len()
    }
}

/// Everything that the reconciler looks after, as `ip` prints it.
fn everything() -> String {
    [
        "addr show dev mesh0 scope global",
        "-d link show dev mesh0",
        "-4 rule",
        "-6 rule",
        "-4 route show table 7077",
        "-6 route show table 7077",
    ]
    .map(|what| sorted(&try_ip(what).unwrap_or_default()))
    .join("\n--\n")
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Where the kernel would send a packet: the device's name, or its error.
pub(crate) fn way(to: &str, more: &str) -> String {
    match try_ip(&format!("route get {to} {more}")) {
        Ok(answer) => answer
            .split_whitespace()
            .skip_while(|word| *word != "dev")
            .nth(1)
            .expect("a device")
            .to_owned(),
        Err(error) => error,
    }
}

#[test]
fn an_interface_of_that_name_that_is_somebody_elses_is_left_alone_and_named() {
    isolated_async(|| async {
        let mut node = Node::new();
        node.settle(&state()).await;
        node.device = None;
        for (make, kind) in [
            ("link add mesh0 type bridge", "a bridge"),
            ("link add mesh0 type veth peer name mesh1", "a veth"),
            ("tuntap add dev mesh0 mode tun", "a TUN with a single queue"),
            ("tuntap add dev mesh0 mode tap multi_queue", "a TAP"),
        ] {
            ip("link del mesh0");
            ip(make);
            ip("addr add 192.168.77.1/24 dev mesh0");
            let shown = || ip("-d link show dev mesh0") + &ip("addr show dev mesh0");
            let before = shown();
            let outcome = node.apply(&state()).await;
            assert_eq!(shown(), before, "{kind}");
            let said = outcome.problems.iter().map(ToString::to_string);
            let said = said.collect::<Vec<_>>().join("\n");
            assert!(said.contains(kind) && said.contains("`device`"), "{said}");
            assert!(!ip("route show table 7077").contains("dev mesh0"));
            // Neither by that interface nor by the uplink.
            let answer = way("10.42.2.9", "");
            assert!(
                answer.contains("unreachable") || answer.contains("No route"),
                "{answer}"
            );
        }
        ip("link del mesh0");
        node.device = Some(TunDevice::open("mesh0", 2, Offloads::default()).expect("a device"));
        node.settle(&state()).await;
        assert_eq!(way("10.42.2.9", ""), "mesh0");
    });
}

#[test]
fn a_second_apply_changes_nothing_and_the_routes_lead_where_they_should() {
    isolated_async(|| async {
        let node = Node::new();
        let changes = node.settle(&state()).await;
        println!("{changes} changes\n{}", everything());
        let before = everything();
        assert_eq!(node.settle(&state()).await, 0);
        assert_eq!(everything(), before);

        for (to, device) in [
            ("10.77.0.2", "mesh0"),
            ("10.42.2.9", "mesh0"),
            ("fd00:1::2", "mesh0"),
            ("fd00:1:0:102::9", "mesh0"),
            ("198.51.100.1", "up0"),
            ("2001:db8:9::1", "up0"),
            ("10.43.0.1", "up0"),
        ] {
            assert_eq!(way(to, ""), device, "{to}");
        }
        // Nobody's prefix, and a pod of this node that does not exist.
        for to in [
            "10.77.9.9",
            "10.42.9.9",
            "10.42.1.9",
            "fd00:1::9",
            "fd00:1:0:101::9",
        ] {
            assert!(
                way(to, "").contains("unreachable") || way(to, "").contains("No route"),
                "{to}"
            );
        }
        // Our own datagrams don't see the tunnel.
        for (mark, device) in [
            ("0x101c", "up0"),
            // With bits that others have added.
            ("0xff30501c", "up0"),
            // Somebody else's datagrams, with some of our bits.
            ("0x1", "mesh0"),
            ("0x1000", "mesh0"),
            ("0x6d65", "mesh0"),
        ] {
            for to in ["10.42.2.9", "fd00:1::2"] {
                assert_eq!(way(to, &format!("mark {mark}")), device, "{to} {mark}");
            }
        }
        assert!(ip("route get 10.42.2.9").contains("src 10.77.0.1"));
        assert!(ip("route get fd00:1::2").contains("src fd00:1::1"));
        ip("route del default via 192.0.2.1");
        assert!(
            way("10.42.2.9", "mark 0x101c").contains("unreachable")
                || way("10.42.2.9", "mark 0x101c").contains("No route")
        );
    });
}

#[test]
fn whatever_is_taken_away_comes_back() {
    isolated_async(|| async {
        let mut node = Node::new();
        node.settle(&state()).await;
        let wanted = everything();
        for damage in [
            "route flush table 7077",
            "-6 route flush table 7077",
            "rule del pref 5000",
            "-6 rule del pref 5000",
            "rule del pref 4990",
            "-6 rule del pref 4991",
            "rule flush",
            "addr del 10.77.0.1/32 dev mesh0",
            "addr del fd00:1::1/128 dev mesh0",
            "addr flush dev mesh0",
            "link set mesh0 down",
            "link set mesh0 mtu 1500",
            "link set mesh0 mtu 1000",
            "route change 10.42.2.0/24 dev mesh0 table 7077 metric 128 proto 177 mtu 700",
            "-6 route change fd00:1::2/128 dev mesh0 table 7077 metric 128 proto 177 mtu 1290",
            "route del unreachable 10.42.0.0/16 table 7077",
            "link del mesh0",
        ] {
            ip(damage);
            if damage == "link del mesh0" {
                node.device =
                    Some(TunDevice::open("mesh0", 2, Offloads::default()).expect("a device"));
            }
            assert_ne!(node.settle(&state()).await, 0, "{damage}");
            assert_eq!(node.settle(&state()).await, 0, "{damage}");
            if damage == "rule flush" {
                // It takes the system's own rules with it, which are not ours to restore.
                ip("rule add pref 32766 lookup main");
                ip("rule add pref 32767 lookup default");
            }
            let lines = |text: &str| {
                let index = |line: &str| line.contains("mesh0: <");
                text.lines()
                    .filter(|line| !index(line))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(lines(&everything()), lines(&wanted), "{damage}");
        }
    });
}

#[test]
fn what_is_not_wanted_any_more_goes_and_what_is_not_ours_stays() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        ip("link add pm1 type veth peer name pm2");
        ip("link set pm1 up");
        let foreign = [
            "-4 route add 10.42.1.5/32 dev pm1 table 7077 proto 178",
            "-6 route add fd00:1:0:101::5/128 dev pm1 table 7077 proto 178",
            "-4 route add 10.0.0.0/8 dev up0",
            "-4 rule add pref 5000 to 10.99.0.0/16 lookup 99",
            "-4 rule add pref 4990 fwmark 0x1 lookup 99",
            "-6 rule add pref 5000 to fd00:99::/48 lookup 99",
            "-4 addr add 172.31.0.1/32 dev mesh0",
        ];
        for command in foreign {
            ip(command);
        }
        assert_eq!(node.settle(&state()).await, 0);
        assert_eq!(way("10.42.1.5", ""), "pm1");
        assert_eq!(way("fd00:1:0:101::5", ""), "pm1");

        let mut smaller = state();
        smaller.protected = vec![net("10.42.0.0/16")];
        smaller.addresses = vec![net("10.77.0.1/31")];
        smaller.peer_routes.truncate(2);
        smaller.peer_routes[1].mtu = None;
        smaller.local_prefixes.clear();
        node.settle(&smaller).await;
        assert_eq!(node.settle(&smaller).await, 0);
        let now = everything();
        for gone in [
            "fd00:1::/48",
            "10.77.0.0/16",
            "fd00:1::1",
            "10.77.0.1/32",
            "10.42.1.0/24",
            "1300",
        ] {
            assert!(!now.contains(gone), "{gone} is still there:\n{now}");
        }
        for kept in [
            "10.42.1.5 dev pm1",
            "fd00:1:0:101::5 dev pm1",
            "10.99.0.0/16",
            "fwmark 0x1 lookup 99",
            "fd00:99::/48",
            "172.31.0.1/32",
            "10.77.0.1/31",
            "10.42.2.0/24 dev mesh0",
            "unreachable 10.42.0.0/16",
        ] {
            assert!(now.contains(kept), "{kept} is gone:\n{now}");
        }
        assert!(ip("route").contains("10.0.0.0/8 dev up0"));
    });
}

#[test]
fn rules_of_a_former_mark_are_replaced_and_not_left_beside() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        let wanted = everything();
        // As earlier versions made them: the whole word, or another mark of the configuration's.
        for (family, range) in [("-4", "10.42.0.0/16"), ("-6", "fd00:1::/48")] {
            for mark in ["0x6d65", "0x20/0x30"] {
                ip(&format!(
                    "{family} rule add pref 4990 fwmark {mark} lookup main proto 177"
                ));
                ip(&format!(
                    "{family} rule add pref 4991 to {range} fwmark {mark} unreachable proto 177"
                ));
            }
        }
        assert_eq!(node.settle(&state()).await, 8);
        assert_eq!(everything(), wanted);
        assert_eq!(node.settle(&state()).await, 0);
    });
}

#[test]
fn a_foreign_route_in_our_table_stays_and_is_reported() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        ip("route add 10.42.5.0/24 dev up0 table 7077");
        let outcome = node.apply(&state()).await;
        assert!(outcome.changes.is_empty());
        assert!(
            matches!(&outcome.problems[..], [Problem::ForeignRoute(_)]),
            "{outcome:?}"
        );
        assert!(ip("route show table 7077").contains("10.42.5.0/24 dev up0"));
    });
}

#[test]
fn without_the_device_protected_ranges_are_unreachable_and_the_rest_is_repaired() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        ip("link del mesh0");
        let send = |from: &str, to: &str| {
            let socket = UdpSocket::bind((from, 0)).expect("a socket");
            let to: IpAddr = to.parse().expect("an address");
            socket
                .send_to(b"plaintext", SocketAddr::new(to, 9))
                .map_err(|error| error.raw_os_error())
        };
        let closed = |case: &str| {
            for to in ["10.42.2.9", "10.77.0.2", "10.42.1.1", "10.42.200.1"] {
                assert_eq!(
                    send("0.0.0.0", to),
                    Err(Some(libc::EHOSTUNREACH)),
                    "{to} {case}"
                );
            }
            for to in ["fd00:1::2", "fd00:1:0:102::9", "fd00:1:0:101::1"] {
                assert_eq!(send("::", to), Err(Some(libc::EHOSTUNREACH)), "{to} {case}");
            }
            assert_eq!(send("0.0.0.0", "198.51.100.1"), Ok(9), "{case}");
        };
        closed("after the deletion");
        ip("rule del pref 5000");
        ip("route flush table 7077");
        let outcome = node.apply(&state()).await;
        assert!(matches!(&outcome.problems[..], [Problem::DeviceMissing(name)] if name == "mesh0"));
        assert!(!outcome.changes.is_empty());
        closed("after the repair");
    });
}

#[test]
fn the_fail_closed_layer_stands_alone_and_repairs_itself() {
    isolated_async(|| async {
        let node = Node::new();
        let protected = state().protected;
        let first = ensure_fail_closed_routes(&node.netlink, &protected, MARK)
            .await
            .expect("all of it");
        assert_eq!(
            first
                .iter()
                .filter(|one| matches!(one, Change::RouteAdded(_)))
                .count(),
            3
        );
        assert_eq!(
            first
                .iter()
                .filter(|one| matches!(one, Change::RuleAdded(_)))
                .count(),
            8
        );
        let again = ensure_fail_closed_routes(&node.netlink, &protected, MARK)
            .await
            .expect("all of it");
        assert_eq!(again, []);
        for to in ["10.42.2.9", "10.77.0.2", "fd00:1::2"] {
            assert!(
                way(to, "").contains("unreachable") || way(to, "").contains("No route"),
                "{to}"
            );
        }
        // It takes nothing away from a node that has more.
        node.settle(&state()).await;
        let before = everything();
        let again = ensure_fail_closed_routes(&node.netlink, &protected, MARK)
            .await
            .expect("all of it");
        assert_eq!((again, everything()), (vec![], before));
        ip("rule del pref 5000");
        let healed = ensure_fail_closed_routes(&node.netlink, &protected, MARK)
            .await
            .expect("all of it");
        assert_eq!(healed.len(), 1);
        // Something else in its place is an error, since the range would be open.
        ip("route replace 10.42.0.0/16 dev up0 metric 4294967295 table 7077");
        let error = ensure_fail_closed_routes(&node.netlink, &protected, MARK).await;
        println!("{error:?}");
        assert!(error.is_err());
    });
}

#[test]
fn one_refused_object_does_not_stop_the_others() {
    isolated_async(|| async {
        let node = Node::new();
        let mut bad = state();
        // The source is no address of this node, so the kernel refuses the IPv4 routes to peers.
        bad.source_v4 = Some([10, 77, 0, 99].into());
        let outcome = node.apply(&bad).await;
        assert_eq!(outcome.problems.len(), 2, "{:?}", outcome.problems);
        assert!(outcome.problems[0].to_string().contains("10.77.0.2/32"));
        assert_eq!(way("fd00:1::2", ""), "mesh0");
        assert!(
            way("10.42.2.9", "").contains("unreachable")
                || way("10.42.2.9", "").contains("No route")
        );
    });
}

#[test]
fn a_thousand_peers_are_applied_and_compared_quickly() {
    isolated_async(|| async {
        let node = Node::new();
        let mut many = state();
        many.peer_routes = (0..2000_u16)
            .map(|peer| {
                let [high, low] = (peer + 512).to_be_bytes();
                let prefix = IpNet::new([10, 42 + high, low, 0].into(), 24).expect("a prefix");
                PeerRoute { prefix, mtu: None }
            })
            .collect();
        let start = std::time::Instant::now();
        assert!(node.settle(&many).await >= 2000);
        let first = start.elapsed();
        assert_eq!(node.settle(&many).await, 0);
        println!(
            "2000 routes: first {first:?}, second {:?}",
            start.elapsed() - first
        );
    });
}

#[test]
fn a_device_whose_carrier_was_switched_off_gets_it_back() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        let wanted = everything();
        ip("link set mesh0 carrier off");
        assert_ne!(node.settle(&state()).await, 0);
        assert_eq!(node.settle(&state()).await, 0);
        assert!(ip("link show dev mesh0").contains(",LOWER_UP>"));
        // What the kernel says of a TUN until its carrier was switched for the first time.
        assert_eq!(everything(), wanted.replace("UNKNOWN", "UP"));
    });
}

#[test]
fn a_device_that_no_process_holds_waits_for_its_carrier() {
    isolated_async(|| async {
        let mut node = Node::new();
        node.settle(&state()).await;
        node.device = None;
        assert_eq!(node.settle(&state()).await, 0);
        node.device = Some(TunDevice::open("mesh0", 2, Offloads::default()).expect("a device"));
        assert_eq!(node.settle(&state()).await, 0);
    });
}

#[test]
fn an_interface_that_was_made_a_part_of_another_says_so_and_is_taken_out() {
    isolated_async(|| async {
        let netlink = Netlink::connect().expect("a connection");
        ip("link add b0 type bridge");
        ip("link add up0 type veth peer name gw0");
        ip("link set up0 master b0");
        let look = async || netlink.link("up0").await.expect("an answer").expect("it");
        let found = look().await;
        assert!(found.master.is_some());
        let released = LinkChange {
            released: true,
            ..LinkChange::default()
        };
        let done = netlink.change_link(found.index, released).await;
        done.expect("it is ours");
        assert_eq!(look().await.master, None);
        assert!(!ip("link show up0").contains("master"));
    });
}
