//! What stands before a pod does, and what a pod cannot do.

use std::fs;

use podmesh_kernel::{netns::NetNamespace, veth};
use serde_json::json;

use crate::{
    namespaces::Namespace,
    node::{Node, pod},
};

/// A machine beside the node, on its underlay.
fn neighbour(node: &Node, name: &str) -> Namespace {
    let neighbour = Namespace::new(name);
    node.namespace.command(&format!(
        "ip link add under0 type veth peer name eth0 netns {n}
         ip addr add 192.0.2.1/24 dev under0
         ip link set under0 up
         ip -n {n} addr add 192.0.2.2/24 dev eth0
         ip -n {n} link set eth0 up
         ip route add default via 192.0.2.2",
        n = neighbour.name()
    ));
    neighbour
}

#[test]
fn both_layers_stand_before_the_first_pod_also_without_meshd() {
    let node = Node::new("layers");
    node.namespace.command("ip link del mesh0");
    let pod = pod();
    node.add("one", &pod).expect_success();
    let rules = node.namespace.command("ip rule; ip -6 rule");
    for range in ["10.42.0.0/16", "10.77.0.0/16", "fd12:3456:789a::/48"] {
        assert!(
            rules.contains(&format!("5000:\tfrom all to {range} lookup 7077")),
            "{rules}"
        );
    }
    let backstop = node.namespace.command("ip route show table 7077");
    assert!(backstop.contains("unreachable 10.42.0.0/16"), "{backstop}");
    assert!(
        node.namespace
            .command("nft list ruleset")
            .contains("would leave unencrypted")
    );
}

#[test]
fn each_add_repairs_what_was_flushed() {
    let node = Node::new("flushed");
    let pods = [pod(), pod()];
    node.add("one", &pods[0]).expect_success();
    node.namespace
        .command("nft flush ruleset; ip rule del pref 5000; ip route flush table 7077");
    node.add("two", &pods[1]).expect_success();
    assert!(
        node.namespace
            .command("nft list ruleset")
            .contains("would leave unencrypted")
    );
    assert!(node.namespace.command("ip rule").contains("lookup 7077"));
    // The first pod's route went with the flush; its own ADD brings it back.
    node.add("one", &pods[0]).expect_success();
    pods[0].command("ping -c1 -W10 10.42.3.2");
}

#[test]
fn flushed_routes_to_pods_are_restored_without_the_plugin() {
    let node = Node::new("restore");
    let pods = [pod(), pod()];
    node.add("one", &pods[0]).expect_success();
    node.add("two", &pods[1]).expect_success();
    let inside = NetNamespace::open(&node.namespace.path()).unwrap();
    let mut mender = veth::Mender::default();
    let mut restore = || {
        inside
            .run(|| mender.mend("pm", None).unwrap().repaired)
            .unwrap()
    };
    assert_eq!(restore().len(), 0);
    node.namespace
        .command("ip route flush table 7077; ip -6 route flush table 7077");
    // An address that only the ledger of somebody else could know is not given away meanwhile.
    fs::remove_dir_all(node.ledger()).unwrap();
    let third = pod();
    let other = node.add("three", &third).expect_success().addresses();
    assert_eq!(other[0], "10.42.3.3");
    assert_eq!(restore().len(), 4);
    assert_eq!(restore().len(), 0);
    pods[0].command("ping -c1 -W10 10.42.3.2; ping -c1 -W10 fd12:3456:789a:103::2");
    node.del("one").expect_success();
    assert_eq!((restore().len(), node.pod_routes()), (0, 4));
}

#[test]
fn a_pods_packet_for_the_network_never_shows_on_the_underlay() {
    let node = Node::new("leak");
    let neighbour = neighbour(&node, "leako");
    neighbour.command("ip addr add 10.42.9.9/32 dev eth0; ip route add 10.42.3.0/24 via 192.0.2.1");
    let pod = pod();
    node.add("one", &pod).expect_success();
    pod.command("ping -c1 -W10 192.0.2.2");
    let count = "nft list chain inet watch in | grep -o \"packets [0-9]*\"";
    neighbour.command(
        "nft add table inet watch
         nft add chain inet watch in \"{ type filter hook prerouting priority -400; }\"
         nft add rule inet watch in ip daddr 10.42.0.0/16 counter
         nft add rule inet watch in ip saddr 10.42.0.0/16 counter",
    );
    for removed in ["true", "ip rule del pref 5000", "ip link del mesh0"] {
        node.namespace.command(removed);
        pod.command("ping -c2 -i0.2 -W1 10.42.9.9 || true");
        node.namespace.command("ping -c1 -W1 10.42.9.9 || true");
        let seen = neighbour.command(count);
        assert_eq!(seen.trim(), "packets 0\npackets 0", "{removed}");
    }
    // Nor does a packet from there reach the pod.
    node.add("one", &pod).expect_success();
    let replies = neighbour.command("ping -c2 -i0.2 -W1 10.42.3.1 || true");
    assert!(replies.contains("100% packet loss"), "{replies}");
}

#[test]
fn a_pod_speaks_for_itself_alone() {
    let node = Node::new("spoof");
    let _neighbour = neighbour(&node, "spoofo");
    let (honest, liar) = (pod(), pod());
    node.add("honest", &honest).expect_success();
    node.add("liar", &liar).expect_success();
    liar.command(
        "ip addr add 10.42.3.1/32 dev eth0; ip addr add 198.51.100.7/32 dev eth0
         ip addr add fd12:3456:789a:103::1/128 dev eth0 nodad",
    );
    let lost = |command: &str| {
        let output = liar.command(&format!("{command} || true"));
        assert!(output.contains("100% packet loss"), "{command}: {output}");
    };
    lost("ping -c2 -i0.2 -W1 -I 10.42.3.1 192.0.2.2");
    lost("ping -c2 -i0.2 -W1 -I 198.51.100.7 192.0.2.2");
    lost("ping -c2 -i0.2 -W1 -I 198.51.100.7 10.77.0.3");
    lost("ping -c2 -i0.2 -W1 -I fd12:3456:789a:103::1 fd12:3456:789a::3");
    let drops = node
        .namespace
        .command("nft list chain inet podmesh pod-source");
    assert!(
        drops.contains("fib saddr . iif oif 0 counter packets"),
        "{drops}"
    );
    assert!(!drops.contains("oif 0 counter packets 0 "), "{drops}");
    // The honest pod is not disturbed by it.
    honest.command("ping -c1 -W10 192.0.2.2");
}

#[test]
fn what_a_pod_announces_changes_nothing() {
    let node = Node::new("arp");
    let (honest, liar) = (pod(), pod());
    node.add("honest", &honest).expect_success();
    node.add("liar", &liar).expect_success();
    let before = node.namespace.command("ip neigh show nud permanent | sort");
    // The kernel itself then announces each address, also the stolen ones, in both families.
    liar.command(
        "sysctl -q -w net.ipv4.conf.eth0.arp_notify=1 net.ipv6.conf.eth0.ndisc_notify=1
         ip addr add 10.42.3.1/32 dev eth0
         ip addr add fd12:3456:789a:103::1/128 dev eth0 nodad
         ip link set eth0 down
         ip link set eth0 up",
    );
    // Asking for the gateway is a way to announce oneself, under any name.
    liar.command(
        "ip -6 neigh del fe80::1 dev eth0 || true
         for n in 1 2 3; do
             ip addr add fe80::bad:$n/64 dev eth0 nodad
             ping -c1 -W1 -I fe80::bad:$n%eth0 fe80::1%eth0 || true
         done",
    );
    assert_eq!(
        node.namespace.command("ip neigh show nud permanent | sort"),
        before
    );
    let learned = node
        .namespace
        .command("ip neigh show | grep -v PERMANENT || true");
    assert_eq!(learned, "");
    honest.command("ping -c1 -W10 10.77.0.3");
}

#[test]
fn without_a_node_file_the_runtime_is_told_to_try_again() {
    let node = Node::new("absent");
    let pod = pod();
    fs::remove_file(node.folder.join("run/node.json")).unwrap();
    let answer = node.add("one", &pod);
    assert_eq!(answer.code(), 11, "{answer:?}");
    // The copy in the state folder serves as well.
    fs::write(
        node.folder.join("state/node.json"),
        node.node_file().to_string(),
    )
    .unwrap();
    node.add("one", &pod).expect_success();
    fs::write(node.folder.join("run/node.json"), "{").unwrap();
    let answer = node.add("one", &pod).expect_success();
    assert!(answer.remarks.contains("used the copy"), "{answer:?}");
    let mut waiting = node.node_file();
    waiting["pod_cidrs"] = json!([]);
    node.write_node_file(&waiting);
    assert_eq!(node.add("two", &pod).code(), 11);
}

#[test]
fn a_node_file_that_would_cut_the_node_off_is_refused() {
    let node = Node::new("cut");
    let _neighbour = neighbour(&node, "cuto");
    let pod = pod();
    let mut file = node.node_file();
    for range in ["192.0.2.0/24", "0.0.0.0/0", "127.0.0.0/8", "192.0.0.0/8"] {
        file["protected"] = json!(["10.42.0.0/16", "10.77.0.0/16", "fd12:3456:789a::/48", range]);
        node.write_node_file(&file);
        let answer = node.add("one", &pod);
        assert_eq!(answer.code(), 105, "{range}: {answer:?}");
    }
    let run = node.folder.join("run");
    fs::remove_file(run.join("node.json")).unwrap();
    let elsewhere = node.folder.join("elsewhere.json");
    fs::write(&elsewhere, node.node_file().to_string()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, run.join("node.json")).unwrap();
    assert_eq!(node.add("one", &pod).code(), 105);
    assert_eq!((node.interfaces().len(), node.records()), (0, 0));
    assert_eq!(node.namespace.command("nft list ruleset"), "");
}
