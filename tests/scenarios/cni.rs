//! The CNI plugin by itself: pods of one machine, before any meshd has started.

use std::fs;
use std::time::{Duration, Instant};

use podmesh_lab::ping::{PairReport, PingMatrix};
use podmesh_lab::{Lab, Nat, Node};
use podmesh_proto::mark::Mark;
use podmesh_proto::node_file::{NODE_FILE_NAME, NODE_FILE_SCHEMA, NodeFile};

/// A machine whose meshd has run once and left its file behind.
fn lone_machine(name: &str) -> Lab {
    let mut plan = Lab::plan(name);
    plan.site("home").nat(Nat::PortRestricted);
    plan.node("home-1").at("home");
    let lab = plan.up().unwrap();
    leave_node_file(lab.node("home-1").unwrap());
    lab
}

fn leave_node_file(node: &Node) {
    let range = |text: &str| text.parse().unwrap();
    let file = NodeFile {
        schema: NODE_FILE_SCHEMA.into(),
        network: "lab".into(),
        node: node.name().into(),
        device: "mesh0".into(),
        mtu: 1380,
        pod_cidrs: vec![range("10.42.7.0/24"), range("fd12:3456:789a:1007::/64")],
        overlay_addresses: vec!["10.77.0.7".parse().unwrap()],
        protected: vec![
            range("10.77.0.0/16"),
            range("10.42.0.0/16"),
            range("fd12:3456:789a::/48"),
        ],
        service_ranges: Vec::new(),
        local_devices: Vec::new(),
        mark: Mark::DEFAULT,
        closed: Vec::new(),
        former_pod_cidrs: Vec::new(),
    };
    fs::create_dir_all(node.state_dir()).unwrap();
    let bytes = serde_json::to_vec(&file).unwrap();
    fs::write(node.state_dir().join(NODE_FILE_NAME), bytes).unwrap();
}

#[test]
fn pods_of_one_machine_reach_each_other_without_meshd() {
    let lab = lone_machine("lone-machine");
    let node = lab.node("home-1").unwrap();
    let pings = PingMatrix::start().unwrap();
    for letter in ["a", "b", "c"] {
        let pod = node.add_pod(&format!("home-1-{letter}")).unwrap();
        assert!(
            pod.address(false).is_ok() && pod.address(true).is_ok(),
            "{}",
            pod.result()
        );
        pings.add_pod(&pod).unwrap();
    }
    pings.wait_for_all(3, Duration::from_secs(5)).unwrap();
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let pairs = pings.report(start, Instant::now());
    assert_eq!(pairs.len(), 12, "three pods, two families");
    assert_eq!(PairReport::lost_in(&pairs), 0, "{pairs:?}");
    for pod in node.pods() {
        node.delete_pod(&pod).unwrap();
    }
    let links = node.namespace().run(&["ip", "-o", "link"]).unwrap();
    assert!(
        !links.contains(": pm"),
        "every pair of interfaces is gone: {links}"
    );
}
