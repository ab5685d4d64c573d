use podmesh_kernel::link::{Link, LinkChange};
use podmesh_kernel::netlink::Netlink;

use crate::sandbox::{ip, isolated_async};

async fn find(netlink: &Netlink, name: &str) -> Option<Link> {
    netlink.link(name).await.expect("an answer")
}

#[test]
fn links_are_found_configured_and_deleted() {
    isolated_async(|| async {
        let netlink = Netlink::connect().expect("a connection");
        assert_eq!(find(&netlink, "up0").await, None);
        ip("link add up0 type veth peer name gw0");
        let link = find(&netlink, "up0").await.expect("the link");
        let seen = (link.kind.as_deref(), link.up, link.mtu);
        assert_eq!(seen, (Some("veth"), false, 1500));
        for up in [true, false] {
            let change = LinkChange {
                up: Some(up),
                mtu: up.then_some(1400),
                tx_queue_length: up.then_some(77),
                most_segments: up.then_some(200),
                ..LinkChange::default()
            };
            let changed = netlink.change_link(link.index, change).await;
            changed.expect("a change");
            let link = find(&netlink, "up0").await.expect("the link");
            let seen = (link.up, link.mtu, link.tx_queue_length, link.most_segments);
            assert_eq!(seen, (up, 1400, 77, 200));
        }
        let names = netlink.links().await.expect("an answer");
        assert!(names.iter().any(|link| link.name == "lo" && link.loopback));
        let deleted = netlink.delete_link(link.index).await;
        deleted.expect("a deletion");
        assert_eq!(find(&netlink, "gw0").await, None);
        let again = netlink.delete_link(link.index).await;
        let error = again.expect_err("nothing to delete");
        assert_eq!(error.errno(), Some(libc::ENODEV));
    });
}

#[test]
fn a_link_is_renamed_also_while_it_is_up() {
    isolated_async(|| async {
        let netlink = Netlink::connect().expect("a connection");
        ip("link add up0 type veth peer name gw0");
        ip("link set up0 up");
        let index = find(&netlink, "up0").await.expect("the link").index;
        let renamed = netlink.rename_link(index, "up1").await;
        renamed.expect("a new name");
        assert_eq!(find(&netlink, "up0").await, None);
        assert_eq!(find(&netlink, "up1").await.expect("it").index, index);
        assert!(netlink.rename_link(index, "gw0").await.is_err());
    });
}

#[test]
fn foreign_routes_of_every_table_are_listed_with_their_origin() {
    isolated_async(|| async {
        ip("link add up0 type veth peer name gw0");
        ip("link set up0 up");
        ip("link set gw0 up");
        ip("addr add 192.0.2.7/24 dev up0");
        ip("addr add 2001:db8::7/64 dev up0 nodad");
        ip("route add default via 192.0.2.1");
        ip("route add 10.96.0.0/12 via 192.0.2.9 table 300 proto bird");
        ip("route add 10.42.0.0/24 dev up0 table 7077 proto 178");
        ip("route add unreachable 10.9.0.0/16");
        ip("route add 10.10.0.0/16 nexthop via 192.0.2.3 nexthop via 192.0.2.4");
        let netlink = Netlink::connect().expect("a connection");
        let routes = netlink.foreign_routes().await.expect("an answer");
        let mut seen: Vec<String> = routes
            .iter()
            .map(|route| {
                let device = route.device.as_deref().unwrap_or("none");
                format!(
                    "{} table {} dev {device} by {}",
                    route.prefix, route.table, route.origin
                )
            })
            .collect();
        seen.sort();
        let kernel = "the kernel, for an interface's address";
        assert_eq!(
            seen,
            [
                "0.0.0.0/0 table 254 dev up0 by boot or a script".to_owned(),
                "10.10.0.0/16 table 254 dev up0 by boot or a script".to_owned(),
                "10.96.0.0/12 table 300 dev up0 by BIRD".to_owned(),
                format!("192.0.2.0/24 table 254 dev up0 by {kernel}"),
                format!("2001:db8::/64 table 254 dev up0 by {kernel}"),
            ]
        );
    });
}

#[test]
fn underlay_addresses_are_listed_and_judged() {
    isolated_async(|| async {
        ip("link add up0 type veth peer name gw0");
        ip("link set up0 up");
        ip("link set gw0 up");
        ip("addr add 192.0.2.7/24 dev up0");
        ip("addr add 10.42.1.1/24 dev up0");
        ip("addr add 2001:db8::7/64 dev up0 nodad");
        ip("addr add 2001:db8::8/64 dev up0 nodad preferred_lft 0");
        ip("addr add 2001:db8::9/64 dev up0 nodad");
        ip("link add docker0 type bridge");
        ip("addr add 172.17.0.1/16 dev docker0");
        ip("link set docker0 up");
        ip("link add down0 type veth peer name down1");
        ip("addr add 198.51.100.1/24 dev down0");
        // Uplinks whose names others give to containers': by the routes of a table of their own, by the
        // second hop of a route, and one that is like Docker's.
        for (number, name) in (1..).zip(["br-lan", "cni9", "br-ffffffffffff", "veth7"]) {
            ip(&format!("link add {name} type bridge"));
            ip(&format!("addr add 198.18.{number}.1/24 dev {name}"));
            ip(&format!("link set {name} up"));
        }
        ip("route add default via 198.18.2.9 dev cni9 table 100");
        ip(
            "route add default nexthop via 192.0.2.1 dev up0 nexthop via 198.18.3.9 dev br-ffffffffffff",
        );
        let netlink = Netlink::connect().expect("a connection");
        let excluded = ["10.42.0.0/16".parse().expect("a range")];
        let mut usable: Vec<String> = netlink
            .underlay_addresses()
            .await
            .expect("an answer")
            .into_iter()
            .filter(|address| address.is_usable("mesh0", &excluded))
            .map(|address| format!("{} {}", address.address.addr(), address.interface))
            .collect();
        usable.sort();
        assert_eq!(
            usable,
            [
                "192.0.2.7 up0",
                "198.18.1.1 br-lan",
                "198.18.2.1 cni9",
                "198.18.3.1 br-ffffffffffff",
                "2001:db8::7 up0",
                "2001:db8::9 up0"
            ]
        );
    });
}
