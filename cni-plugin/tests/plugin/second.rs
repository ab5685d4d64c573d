//! Pods with more interfaces than ours.

use serde_json::json;

use crate::{
    namespaces::Namespace,
    node::{Answer, Node, pod},
};

/// Gives the pod another network by `eth0`, with these routes.
fn other_network(node: &Node, pod: &Namespace, routes: &str) {
    node.namespace.command(&format!(
        "ip link add other0 type veth peer name eth0 netns {pod}
         ip addr add 192.168.9.1/24 dev other0; ip addr add fd99::1/64 dev other0 nodad
         ip link set other0 up
         ip addr add 198.51.100.7/32 dev lo; ip addr add fd98::7/128 dev lo nodad",
        pod = pod.name()
    ));
    pod.command(&format!(
        "ip addr add 192.168.9.2/24 dev eth0; ip addr add fd99::2/64 dev eth0 nodad
         ip link set eth0 up
         {routes}"
    ));
}

fn add(
    node: &Node,
    id: &str,
    pod: &Namespace,
    (ifname, keys): (&str, serde_json::Value),
) -> Answer {
    let mut call = node.call("ADD", id, Some(&pod.path()));
    call.variables.retain(|(name, _)| *name != "CNI_IFNAME");
    call.variables.push(("CNI_IFNAME", ifname.to_owned()));
    call.config = node.config_with(keys);
    node.run(&call)
}

fn verb(node: &Node, verb: &'static str, pod: &Namespace, ifname: &str) -> Answer {
    let mut call = node.call(verb, "one", Some(&pod.path()));
    call.variables.retain(|(name, _)| *name != "CNI_IFNAME");
    call.variables.push(("CNI_IFNAME", ifname.to_owned()));
    node.run(&call)
}

fn way(pod: &Namespace, destination: &str) -> String {
    let route = pod.command(&format!("ip route get {destination}"));
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).unwrap().to_owned()
}

#[test]
fn a_pod_keeps_its_way_to_the_world_and_reaches_the_mesh() {
    for (name, metric) in [("second", ""), ("metric", "metric 100")] {
        let node = Node::new(name);
        let pod = pod();
        let routes = format!(
            "ip route add default via 192.168.9.1 {metric}
             ip -6 route add default via fd99::1 {metric}"
        );
        other_network(&node, &pod, &routes);
        let before = pod.command("ip route show default; ip -6 route show default");
        let answer = add(&node, "one", &pod, ("net1", json!({}))).expect_success();
        let after = pod.command("ip route show default; ip -6 route show default");
        assert_eq!(after, before);
        for (destination, device) in [
            ("10.42.9.9", "net1"),
            ("10.77.0.3", "net1"),
            ("10.96.0.1", "net1"),
            ("fd12:3456:789a::3", "net1"),
            ("198.51.100.7", "eth0"),
            ("fd98::7", "eth0"),
            // What speaks under the new interface's address leaves by it.
            ("198.51.100.7 from 10.42.3.1", "net1"),
            ("fd98::7 from fd12:3456:789a:103::1", "net1"),
        ] {
            assert_eq!(way(&pod, destination), device, "{name}: {destination}");
        }
        pod.command(
            "ping -c1 -W10 10.77.0.3; ping -c1 -W10 fd12:3456:789a::3
             ping -c1 -W10 198.51.100.7; ping -c1 -W10 fd98::7
             ping -c1 -W10 -I 10.42.3.1 198.51.100.7",
        );
        node.namespace
            .command("ping -c1 -W10 10.42.3.1; ping -c1 -W10 -I 198.51.100.7 10.42.3.1");
        let routes = answer.output["routes"].to_string();
        assert!(
            routes.contains("10.96.0.0/12") && !routes.contains("0.0.0.0/0"),
            "{routes}"
        );
        verb(&node, "CHECK", &pod, "net1").expect_success();
        // The same again, also once the interface stands.
        let again = add(&node, "one", &pod, ("net1", json!({}))).expect_success();
        assert_eq!(again.output, answer.output);
        for damage in ["ip route del 10.77.0.0/16", "ip rule del from 10.42.3.1"] {
            pod.command(damage);
            assert_eq!(verb(&node, "CHECK", &pod, "net1").code(), 103, "{damage}");
            add(&node, "one", &pod, ("net1", json!({}))).expect_success();
            verb(&node, "CHECK", &pod, "net1").expect_success();
        }
        verb(&node, "DEL", &pod, "net1").expect_success();
        assert!(!pod.command("ip rule").contains("7077"));
        assert_eq!((node.records(), node.pod_routes()), (0, 0));
        pod.command("ping -c1 -W10 198.51.100.7");
    }
}

#[test]
fn each_family_is_decided_by_itself() {
    let node = Node::new("family");
    let pod = pod();
    other_network(&node, &pod, "ip -6 route add default via fd99::1");
    add(&node, "one", &pod, ("net1", json!({}))).expect_success();
    assert_eq!(way(&pod, "198.51.100.7"), "net1");
    assert_eq!(way(&pod, "fd98::7"), "eth0");
    assert_eq!(way(&pod, "fd12:3456:789a::3"), "net1");
    pod.command("ping -c1 -W10 10.77.0.3; ping -c1 -W10 fd12:3456:789a::3");
}

#[test]
fn the_configuration_decides_where_it_says_so() {
    let node = Node::new("key");
    let pods = [pod(), pod()];
    let metric = "ip route add default via 192.168.9.1 metric 100";
    other_network(&node, &pods[0], metric);
    let taken = json!({ "defaultRoute": true });
    add(&node, "one", &pods[0], ("net1", taken.clone())).expect_success();
    assert_eq!(way(&pods[0], "198.51.100.7"), "net1");
    verb(&node, "CHECK", &pods[0], "net1").expect_success();
    verb(&node, "DEL", &pods[0], "net1").expect_success();
    // Two at the same metric can't be, and nothing of a refused interface stays.
    pods[0].command("ip route add default via 192.168.9.1");
    let refused = add(&node, "one", &pods[0], ("net1", taken));
    assert_eq!(refused.code(), 7, "{refused:?}");
    let sentence = refused.output["msg"].to_string();
    assert!(sentence.contains("defaultRoute"), "{sentence}");
    assert_eq!((node.interfaces().len(), node.records()), (0, 0));
    // An only interface that shall reach the mesh alone.
    let without = json!({ "defaultRoute": false });
    add(&node, "two", &pods[1], ("eth0", without)).expect_success();
    pods[1].command("ping -c1 -W10 10.77.0.3; ! ip route get 198.51.100.7");
    let wrong = add(
        &node,
        "three",
        &pods[1],
        ("net1", json!({ "defaultRoute": "yes" })),
    );
    assert_eq!(wrong.code(), 7, "{wrong:?}");
}

#[test]
fn a_pod_may_be_in_the_mesh_twice() {
    let node = Node::new("twice");
    let (pod, other) = (pod(), pod());
    node.add("other", &other).expect_success();
    node.add("one", &pod).expect_success();
    let before = pod.command("ip route; ip -6 route");
    add(&node, "one", &pod, ("net1", json!({}))).expect_success();
    // By the first interface as before, and by the second what speaks under its address.
    let main = pod.command("ip route; ip -6 route");
    for line in before.lines() {
        assert!(main.contains(line.trim()), "{line} is not in {main}");
    }
    for address in ["10.42.3.2", "10.42.3.3"] {
        pod.command(&format!("ping -c1 -W10 -I {address} 10.77.0.3"));
        pod.command(&format!("ping -c1 -W10 -I {address} 10.42.3.1"));
        other.command(&format!("ping -c1 -W10 {address}"));
    }
    for address in ["fd12:3456:789a:103::2", "fd12:3456:789a:103::3"] {
        pod.command(&format!("ping -c1 -W10 -I {address} fd12:3456:789a::3"));
        other.command(&format!("ping -c1 -W10 {address}"));
    }
    for ifname in ["eth0", "net1"] {
        verb(&node, "CHECK", &pod, ifname).expect_success();
    }
    assert_eq!((node.interfaces().len(), node.records()), (3, 3));
    // The second goes without the first, and comes back without leavings of its former self.
    verb(&node, "DEL", &pod, "net1").expect_success();
    pod.command("ping -c1 -W10 10.42.3.1");
    let mut call = node.call("DEL", "one", None);
    for _ in 0..2 {
        add(&node, "one", &pod, ("net1", json!({}))).expect_success();
        // A runtime that doesn't name the namespace leaves the rule to the next ADD.
        call.variables.retain(|(name, _)| *name != "CNI_IFNAME");
        call.variables.push(("CNI_IFNAME", "net1".to_owned()));
        node.run(&call).expect_success();
    }
    add(&node, "one", &pod, ("net1", json!({}))).expect_success();
    assert_eq!(pod.command("ip rule").matches("7077").count(), 1);
}
