use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use podmesh_kernel::link::LinkChange;
use podmesh_kernel::mark::Mark;
use podmesh_kernel::netlink::Netlink;
use podmesh_kernel::nft::{self, GuardRules};
use podmesh_kernel::watch::{Change, Watcher};
use tokio::time::timeout;

use crate::sandbox::{ip, isolated_async};

async fn next(watcher: &mut Watcher) -> Change {
    timeout(Duration::from_secs(5), watcher.next())
        .await
        .expect("a notice")
        .expect("a socket")
}

#[test]
fn each_kind_of_change_is_noticed_and_a_burst_is_one_notice() {
    isolated_async(|| async {
        ip("link add up0 type veth peer name gw0");
        // No link-local addresses, which would turn up seconds later.
        ip("link set up0 addrgenmode none up");
        ip("link set gw0 addrgenmode none up");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut watcher = Watcher::start(Duration::from_millis(30)).expect("a watcher");
        let none = Change::default();
        ip("rule add pref 9 to 192.0.2.0/24 lookup 9");
        assert_eq!(
            next(&mut watcher).await,
            Change {
                rules: true,
                ..none
            }
        );
        ip("-6 rule add pref 9 to 2001:db8::/32 lookup 9");
        assert_eq!(
            next(&mut watcher).await,
            Change {
                rules: true,
                ..none
            }
        );
        ip("route add 192.0.2.0/24 dev up0 table 9");
        assert_eq!(
            next(&mut watcher).await,
            Change {
                routes: true,
                ..none
            }
        );
        ip("link set up0 mtu 1400");
        assert!(next(&mut watcher).await.links);
        ip("addr add 192.0.2.7/24 dev up0");
        assert!(next(&mut watcher).await.addresses);
        while timeout(Duration::from_millis(300), watcher.next())
            .await
            .is_ok()
        {}

        for number in 1..50 {
            ip(&format!("route add 198.51.100.{number} dev up0"));
            if number == 1 {
                // A caller that gives up in the middle of settling loses nothing.
                assert!(
                    timeout(Duration::from_millis(10), watcher.next())
                        .await
                        .is_err()
                );
            }
        }
        assert_eq!(
            next(&mut watcher).await,
            Change {
                routes: true,
                ..none
            }
        );
        let more = timeout(Duration::from_millis(300), watcher.next()).await;
        assert!(more.is_err(), "{more:?}");
    });
}

#[test]
fn policies_of_ipsec_are_noticed_and_taken_for_nothing_else() {
    isolated_async(|| async {
        let mut watcher = Watcher::start(Duration::from_millis(30)).expect("a watcher");
        let policy = "dir out src 10.0.0.0/8 dst 10.0.0.0/8";
        let tunnel = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel";
        for change in [
            format!("xfrm policy add {policy} action block"),
            format!("xfrm policy update {policy} {tunnel}"),
            format!("xfrm policy delete {policy}"),
            format!("xfrm policy add {policy} action block"),
            "xfrm policy flush".to_owned(),
        ] {
            ip(&change);
            let noticed = next(&mut watcher).await;
            let policies = Change {
                policies: true,
                ..Change::default()
            };
            assert_eq!(noticed, policies, "{change}");
        }
    });
}

#[test]
fn forwarding_that_is_switched_off_is_noticed_in_both_families_and_of_one_interface() {
    isolated_async(|| async {
        ip("link add up0 type veth peer name gw0");
        ip("link set up0 addrgenmode none up");
        ip("link set gw0 addrgenmode none up");
        let write = |key: &str, value: &str| {
            fs::write(format!("/proc/sys/net/{key}"), value).expect("a setting");
        };
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            write(key, "1");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut watcher = Watcher::start(Duration::from_millis(30)).expect("a watcher");
        for key in [
            "ipv4/conf/up0/forwarding",
            "ipv6/conf/up0/forwarding",
            "ipv4/conf/default/forwarding",
            "ipv4/conf/up0/rp_filter",
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
        ] {
            let value = if key.ends_with("rp_filter") { "2" } else { "0" };
            write(key, value);
            let seen = next(&mut watcher).await;
            assert!(seen.settings, "{key}: {seen:?}");
            while timeout(Duration::from_millis(100), watcher.next())
                .await
                .is_ok()
            {}
        }
    });
}

#[test]
fn the_own_nftables_table_and_those_of_others_are_told_apart() {
    isolated_async(|| async {
        let guard = GuardRules {
            device: "mesh0".to_owned(),
            veth_prefix: "pm".to_owned(),
            local_devices: Vec::new(),
            protected: vec!["10.42.0.0/16".parse().expect("a range")],
            own_pod_cidrs: Vec::new(),
            own_overlay: Vec::new(),
            mark: Mark {
                value: 0x101c,
                mask: 0x101c,
            },
        };
        let mut watcher = Watcher::start(Duration::from_millis(30)).expect("a watcher");
        let expected = Change {
            guard: true,
            ..Change::default()
        };
        nft::ensure(&guard).expect("rules");
        assert_eq!(next(&mut watcher).await, expected);
        nft("add table ip theirs");
        let theirs = Change {
            firewall: true,
            ..Change::default()
        };
        assert_eq!(next(&mut watcher).await, theirs);
        nft("add chain ip theirs refuse { type filter hook forward priority 0; policy drop; }");
        assert_eq!(next(&mut watcher).await, theirs);
        let more = timeout(Duration::from_millis(300), watcher.next()).await;
        assert!(more.is_err(), "{more:?}");
        nft("flush ruleset");
        let both = Change {
            guard: true,
            firewall: true,
            ..Change::default()
        };
        assert_eq!(next(&mut watcher).await, both);
    });
}

fn nft(command: &str) {
    let status = Command::new("nft").args(command.split(' ')).status();
    assert!(status.expect("the nft program").success(), "{command}");
}

#[test]
fn a_flood_beyond_the_buffer_is_an_overrun_and_the_watcher_lives_on() {
    isolated_async(|| async {
        let netlink = Netlink::connect().expect("a connection");
        let lo = netlink
            .link("lo")
            .await
            .expect("an answer")
            .expect("the loopback");
        let mut watcher = Watcher::start(Duration::from_millis(10)).expect("a watcher");
        let start = Instant::now();
        let mut mtu = 2000;
        // Nobody reads meanwhile; each notice of a link takes more than a kilobyte.
        for _ in 0..20_000 {
            mtu = if mtu == 2000 { 2001 } else { 2000 };
            let change = LinkChange {
                mtu: Some(mtu),
                ..LinkChange::default()
            };
            netlink
                .change_link(lo.index, change)
                .await
                .expect("a change");
        }
        println!("20000 changes in {:?}", start.elapsed());
        let change = next(&mut watcher).await;
        assert!(change.overrun && change.links, "{change:?}");
        ip("addr add 192.0.2.7/24 dev lo");
        let change = next(&mut watcher).await;
        assert!(change.addresses && !change.overrun, "{change:?}");
    });
}
