//! What others have in front of podmesh's rules.

use podmesh_kernel::host::{Inside, Obstacle};

use crate::host::{Node, state, way};
use crate::sandbox::{ip, isolated_async};

/// Rules, other interfaces whose containers use the mesh, and whether the rule may take packets of the mesh.
const FOREIGN_RULES: [(&str, &[&str], bool); 36] = [
    ("-4 pref 100 lookup main", &[], true),
    ("-6 pref 100 lookup main", &[], true),
    ("-4 pref 4999 to 10.42.2.0/24 lookup main", &[], true),
    ("-4 pref 100 to 10.0.0.0/8 blackhole", &[], true),
    ("-4 pref 100 from 10.42.1.0/24 lookup 100", &[], true),
    ("-4 pref 100 iif lo lookup main", &[], true),
    ("-4 pref 100 iif pm0123456789a lookup main", &[], true),
    ("-4 pref 100 iif br0 lookup main", &["br0"], true),
    ("-4 pref 100 not fwmark 0x1/0x1 lookup 100", &[], true),
    ("-4 pref 100 fwmark 0x0/0x1 lookup 100", &[], true),
    ("-4 pref 100 not to 192.0.2.0/24 lookup 100", &[], true),
    ("-4 pref 100 tos 0x10 lookup 100", &[], true),
    ("-4 pref 100 from 172.17.0.0/16 lookup 100", &["br0"], true),
    ("-4 pref 100 from 172.17.0.0/16 lookup 100", &[], false),
    ("-4 pref 100 fwmark 0x1/0x1 lookup 100", &[], false),
    ("-4 pref 100 iif up0 lookup 100", &[], false),
    ("-4 pref 100 iif br0 lookup 100", &[], false),
    ("-4 pref 100 oif up0 lookup 100", &[], false),
    ("-4 pref 100 to 192.0.2.0/24 lookup 100", &[], false),
    ("-4 pref 100 not to 10.0.0.0/8 lookup 100", &[], false),
    ("-4 pref 100 lookup local", &[], false),
    ("-4 pref 5001 lookup main", &[], false),
    ("-4 pref 5000 lookup main", &[], false),
    // As wg-quick makes it, for tables that lead everywhere or to another network.
    (
        "-4 pref 100 lookup main suppress_prefixlength 0",
        &[],
        false,
    ),
    ("-4 pref 100 lookup 200 suppress_prefixlength 0", &[], true),
    (
        "-6 pref 100 lookup main suppress_prefixlength 0",
        &[],
        false,
    ),
    // What takes our own datagrams, and what sends them by another way or is for others'.
    ("-4 pref 100 fwmark 0x1000/0x1000 lookup 55", &[], true),
    ("-4 pref 4989 fwmark 0x101c blackhole", &[], true),
    ("-6 pref 4989 fwmark 0x1000/0x3000 prohibit", &[], true),
    ("-4 pref 100 not fwmark 0x2000 lookup 55", &[], true),
    ("-4 pref 100 ipproto udp sport 7077 blackhole", &[], true),
    ("-4 pref 100 fwmark 0x1000/0x1000 lookup 56", &[], false),
    ("-4 pref 100 fwmark 0x1000/0x1000 lookup main", &[], false),
    ("-4 pref 100 fwmark 0x2000/0x2000 blackhole", &[], false),
    (
        "-4 pref 100 fwmark 0x1000/0x1000 iif up0 blackhole",
        &[],
        false,
    ),
    ("-4 pref 4995 fwmark 0x1000/0x1000 blackhole", &[], false),
];

#[test]
fn a_foreign_rule_before_ours_is_noticed_unless_it_cannot_match() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        ip("route add blackhole default metric 7 table 55");
        ip("route add unreachable default metric 9 table 56");
        ip("route add default via 192.0.2.1 table 56");
        ip("route add 10.42.8.0/24 via 192.0.2.1 table 200");
        for (rule, local_devices, is_noticed) in FOREIGN_RULES {
            let local_devices: &[String] = &local_devices
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>();
            let (family, rest) = rule.split_at(3);
            ip(&format!("{family}rule add {rest}"));
            let inside = Inside {
                device: "mesh0",
                veth_prefix: "pm",
                local_devices,
            };
            let found = node.reconciler.obstacles(&state(), &inside).await;
            let found: Vec<_> = found.unwrap().iter().map(Obstacle::next).collect();
            assert_eq!(found.len(), usize::from(is_noticed), "{rule}: {found:?}");
            if is_noticed {
                let pref = rest.split_whitespace().nth(1).unwrap();
                let advice = format!("`ip {}rule del pref {pref}`", family);
                assert!(found[0].contains(&advice), "{rule}: {found:?}");
            }
            ip(&format!("{family}rule del {rest}"));
        }
    });
}

#[test]
fn a_foreign_rule_of_our_priority_is_noticed_if_it_is_older() {
    isolated_async(|| async {
        let node = Node::new();
        ip("rule add pref 5000 lookup main");
        node.settle(&state()).await;
        let inside = Inside {
            device: "mesh0",
            veth_prefix: "pm",
            local_devices: &[],
        };
        let found = node.reconciler.obstacles(&state(), &inside).await;
        assert_eq!(found.unwrap().len(), 1);
    });
}

#[test]
fn what_the_table_of_own_addresses_takes_from_the_mesh_is_noticed() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        let inside = Inside {
            device: "mesh0",
            veth_prefix: "pm",
            local_devices: &[],
        };
        for (make, remove) in [
            (
                "route add blackhole 10.42.2.9/32 table local",
                "`ip -4 route del blackhole 10.42.2.9/32 table local`",
            ),
            (
                "-6 route add unreachable fd00:1:0:102::/64 table local",
                "`ip -6 route del unreachable fd00:1:0:102::/64 table local`",
            ),
            (
                "route add 10.77.0.0/24 via 192.0.2.1 table local",
                "`ip -4 route del 10.77.0.0/24 table local`",
            ),
            (
                "addr add 10.77.0.2/32 dev up0",
                "`ip addr show to 10.77.0.2`",
            ),
        ] {
            assert_eq!(
                node.reconciler.obstacles(&state(), &inside).await.unwrap(),
                []
            );
            ip(make);
            let found = node.reconciler.obstacles(&state(), &inside).await.unwrap();
            let found: Vec<_> = found.iter().map(Obstacle::next).collect();
            assert!(
                found.len() == 1 && found[0].contains(remove),
                "{make}: {found:?}"
            );
            ip(&make.replacen(" add ", " del ", 1));
        }
        ip("addr add 10.42.1.1/24 dev up0");
        ip("route add blackhole 198.51.100.0/24 table local");
        assert_eq!(
            node.reconciler.obstacles(&state(), &inside).await.unwrap(),
            []
        );
    });
}

/// As the kernel's guide to virtual routers has it.
#[test]
fn own_addresses_are_found_where_the_rule_for_them_comes_last() {
    isolated_async(|| async {
        let node = Node::new();
        node.settle(&state()).await;
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add pref 32765 lookup local"));
            ip(&format!("{family} rule del pref 0"));
        }
        for own in ["10.77.0.1", "fd00:1::1"] {
            assert!(
                ip(&format!("route get {own}")).starts_with("local"),
                "{own}"
            );
        }
        let inward = ip("route get 10.77.0.1 from 10.77.0.2 iif mesh0");
        assert!(inward.starts_with("local"), "{inward}");
        assert_eq!(way("10.42.2.9", ""), "mesh0");
        assert_eq!(node.settle(&state()).await, 0);
    });
}
