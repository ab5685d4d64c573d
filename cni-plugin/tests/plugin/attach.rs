//! ADD and CHECK: what a pod gets, and that it works.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::json;

use crate::node::{Node, pod};

#[test]
fn two_pods_reach_each_other_and_their_node() {
    let node = Node::new("reach");
    let (first, second) = (pod(), pod());
    let one = node.add("one", &first).expect_success();
    let two = node.add("two", &second).expect_success();
    assert_eq!(one.addresses(), ["10.42.3.1", "fd12:3456:789a:103::1"]);
    assert_eq!(two.addresses(), ["10.42.3.2", "fd12:3456:789a:103::2"]);
    for address in two.addresses() {
        first.command(&format!("ping -c1 -W10 {address}"));
        node.namespace.command(&format!("ping -c1 -W10 {address}"));
    }
    for address in ["10.77.0.3", "fd12:3456:789a::3"] {
        second.command(&format!("ping -c1 -W10 {address}"));
    }
    // The very first packet arrives: nobody has to be asked for an address.
    let third = pod();
    node.add("three", &third).expect_success();
    first.command("ping -c1 -W10 10.42.3.3");
    first.command("ping -c1 -W10 fd12:3456:789a:103::3");
}

/// What the kernel does in the background about a new interface waits for everybody else who changes some.
#[test]
fn a_pod_hears_the_answer_to_its_first_packet_on_a_busy_node() {
    let node = Node::new("busy");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    pod().command(
                        "for n in 1 2 3 4 5 6; do
                           ip link add v$n up type veth peer name w$n; ip link set w$n up
                         done",
                    );
                }
            });
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for number in 0..30 {
                let pod = pod();
                node.add(&format!("pod{number}"), &pod).expect_success();
                pod.command("ping -c1 -W2 fd12:3456:789a::3; ping -c1 -W2 10.77.0.3");
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|cause| resume_unwind(cause));
    });
}

#[test]
fn a_pod_is_routed_as_the_answer_says() {
    let node = Node::new("shape");
    let pod = pod();
    let answer = node.add("one", &pod).expect_success().output;
    let host = answer["interfaces"][0]["name"].as_str().unwrap().to_owned();
    assert!(host.starts_with("pm") && host.len() == 13, "{host}");
    assert_eq!(answer["interfaces"][1]["name"], "eth0");
    assert_eq!(
        answer["interfaces"][1]["sandbox"],
        pod.path().display().to_string()
    );
    assert_eq!(answer["ips"][0]["address"], "10.42.3.1/32");
    assert_eq!(answer["ips"][0]["interface"], 1);
    let inside =
        pod.command("ip addr show eth0; ip route; ip -6 route; ip neigh show nud permanent");
    for line in [
        answer["interfaces"][1]["mac"].as_str().unwrap(),
        "mtu 1380",
        "inet 10.42.3.1/32 scope global eth0",
        "default via 169.254.1.1 dev eth0",
        "default via fe80::1 dev eth0",
        &format!(
            "lladdr {}",
            answer["interfaces"][0]["mac"].as_str().unwrap()
        ),
    ] {
        assert!(inside.contains(line), "{line:?} is not in:\n{inside}");
    }
    let outside = node
        .namespace
        .command("ip route show table 7077; ip -6 route show table 7077");
    assert!(
        outside.contains(&format!("10.42.3.1 dev {host} proto 178 scope link")),
        "{outside}"
    );
    assert!(
        outside.contains(&format!("fd12:3456:789a:103::1 dev {host} proto 178")),
        "{outside}"
    );
    let settings = node.namespace.command(&format!(
        "cd /proc/sys/net; cat ipv6/conf/{host}/accept_ra ipv4/conf/{host}/route_localnet \
         ipv4/ip_forward ipv6/conf/all/forwarding"
    ));
    assert_eq!(
        settings.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "1", "1"]
    );
}

#[test]
fn a_pod_gets_the_hardware_address_that_is_asked_for() {
    let node = Node::new("asked");
    let pods = [pod(), pod()];
    for (id, pod, keys, mac) in [
        (
            "one",
            &pods[0],
            json!({ "mac": "02:00:5e:10:00:01" }),
            "02:00:5e:10:00:01",
        ),
        (
            "two",
            &pods[1],
            json!({
                "capabilities": { "mac": true },
                "runtimeConfig": { "mac": "02:00:5e:10:00:02" },
            }),
            "02:00:5e:10:00:02",
        ),
    ] {
        let mut call = node.call("ADD", id, Some(&pod.path()));
        call.config = node.config_with(keys);
        let answer = node.run(&call).expect_success();
        assert_eq!(answer.output["interfaces"][1]["mac"], mac);
        assert_eq!(pod.command("cat /sys/class/net/eth0/address").trim(), mac);
        pod.command("ping -c1 -W10 10.77.0.3; ping -c1 -W10 fd12:3456:789a::3");
        // Whoever checks need not be told it again.
        let check = node.call("CHECK", id, Some(&pod.path()));
        node.run(&check).expect_success();
    }
    pods[0].command("ping -c1 -W10 10.42.3.2");
}

#[test]
fn the_same_add_again_gives_the_same_answer() {
    let node = Node::new("again");
    let pod = pod();
    let first = node.add("one", &pod).expect_success();
    let again = node.add("one", &pod).expect_success();
    assert_eq!(first.output, again.output);
    assert_eq!(node.interfaces().len(), 1);
    // Also when the interface had gone in between.
    node.namespace
        .command(&format!("ip link del {}", node.interfaces()[0]));
    let rebuilt = node.add("one", &pod).expect_success();
    assert_eq!(first.output, rebuilt.output);
    pod.command("ping -c1 -W10 10.77.0.3");
}

#[test]
fn a_name_that_is_taken_in_the_pod_leaves_nothing_behind() {
    let node = Node::new("taken");
    let pod = pod();
    pod.command("ip link add eth0 type veth peer name other");
    let refused = node.add("one", &pod);
    assert!(!refused.success);
    assert_eq!(refused.code(), 102, "{refused:?}");
    assert_eq!(
        (node.interfaces().len(), node.records(), node.pod_routes()),
        (0, 0, 0)
    );
}

#[test]
fn check_sees_every_piece_that_is_missing() {
    let node = Node::new("check");
    let pod = pod();
    let added = node.add("one", &pod).expect_success();
    let mut call = node.call("CHECK", "one", Some(&pod.path()));
    call.config = node.config_with(json!({ "prevResult": added.output }));
    node.run(&call).expect_success();
    let host = node.interfaces()[0].clone();
    for (damage, repair) in [
        ("ip addr del 10.42.3.1/32 dev eth0", None),
        ("ip -6 route del default", None),
        ("ip neigh del 169.254.1.1 dev eth0", None),
        ("ip link set eth0 down", None),
        (
            "",
            Some(format!("ip route del 10.42.3.1 dev {host} table 7077")),
        ),
        ("", Some(format!("ip link set {host} down"))),
        (
            "",
            Some(format!("ip link set {host} address 02:11:22:33:44:55")),
        ),
        (
            "",
            Some(format!("sysctl -q net.ipv4.conf.{host}.forwarding=0")),
        ),
        (
            "",
            Some(format!("sysctl -q net.ipv6.conf.{host}.disable_ipv6=1")),
        ),
        ("", Some(format!("ip neigh del 10.42.3.1 dev {host}"))),
        (
            "",
            Some(format!(
                "ip link set {host} down; ip link set {host} name veth77; ip link set veth77 up"
            )),
        ),
        ("", Some("nft flush ruleset".to_owned())),
        ("", Some("ip rule del pref 5000".to_owned())),
        ("", Some("sysctl -q net.ipv4.ip_forward=0".to_owned())),
    ] {
        pod.command(damage);
        node.namespace.command(&repair.unwrap_or_default());
        let found = node.run(&call);
        assert_eq!(found.code(), 103, "{damage}: {found:?}");
        // ADD repairs it.
        node.add("one", &pod).expect_success();
        node.run(&call).expect_success();
    }
    let mut other = call.clone();
    other.config = node.config_with(json!({
        "prevResult": { "ips": [{ "address": "10.42.3.9/32" }] },
    }));
    assert_eq!(node.run(&other).code(), 103);
    node.del("one").expect_success();
    assert_eq!(node.run(&call).code(), 103);
}

#[test]
fn a_freed_address_rests_while_others_are_left() {
    let node = Node::new("rest");
    let pod = pod();
    let first = node.add("one", &pod).expect_success().addresses();
    node.del("one").expect_success();
    let second = node.add("two", &pod).expect_success().addresses();
    assert_ne!(first, second);
    node.del("two").expect_success();
    let mut file = node.node_file();
    file["pod_cidrs"] = json!(["10.42.4.0/30"]);
    node.write_node_file(&file);
    for id in ["a", "b", "c", "d"] {
        node.add(id, &pod).expect_success();
        node.del(id).expect_success();
    }
    let pods = [crate::node::pod(), crate::node::pod(), crate::node::pod()];
    node.add("x", &pods[0]).expect_success();
    node.add("y", &pods[1]).expect_success();
    let full = node.add("z", &pods[2]);
    assert_eq!(full.code(), 101, "{full:?}");
    assert!(
        full.output["msg"]
            .as_str()
            .unwrap()
            .contains("10.42.4.0/30")
    );
}
