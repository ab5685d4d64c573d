//! What a node holds after much traffic.

use std::thread;
use std::time::Duration;

use podmesh_lab::{Lab, Mesh, Node, mesh};
use podmesh_proto::local_api::{MemoryView, StatusView};

/// Bytes that a load takes at least on both nodes together, and what may be left of it on each: single
/// packets need some.
const SLACK: u64 = 1 << 20;
/// Longer than memory is kept for the next time.
const SILENCE: Duration = Duration::from_secs(12);

#[test]
fn memory_that_only_much_traffic_needs_is_given_back() {
    let mut plan = Lab::plan("memory");
    plan.planet("planet-1");
    plan.site("cloud");
    plan.node("cloud-1").at("cloud");
    plan.node("cloud-2").at("cloud");
    let lab = plan.up().unwrap();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let nodes: Vec<&Node> = lab.nodes().collect();
    let limit = Duration::from_secs(20);
    mesh.wait_for(&nodes, "direct paths", limit, mesh::is_direct)
        .unwrap();
    let pods: Vec<_> = nodes
        .iter()
        .map(|node| node.add_pod(&format!("{}-a", node.name())).unwrap())
        .collect();
    let before = nodes.iter().map(|node| memory(node)).collect::<Vec<_>>();
    pods[1].serve_iperf3().unwrap();
    let target = pods[1].address(false).unwrap();
    pods[0].iperf3(target, Duration::from_secs(2), 4).unwrap();
    let loaded = nodes.iter().map(|node| memory(node)).collect::<Vec<_>>();
    thread::sleep(SILENCE);
    let mut freed = 0;
    for ((node, before), loaded) in nodes.iter().zip(before).zip(loaded) {
        let after = memory(node);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "figure {}: {:.1} MiB before, {:.1} after a load, {:.1} after a silence (peak {:.1})",
            node.name(),
            mib(before.resident),
            mib(loaded.resident),
            mib(after.resident),
            mib(after.peak)
        );
        freed += loaded.resident.saturating_sub(after.resident);
        assert!(after.resident <= before.resident + SLACK, "{after:?}");
        assert!(after.peak > after.resident);
    }
    assert!(freed > SLACK, "{freed} bytes were given back");
    // What was given back is there again when it is needed.
    let rate = pods[0].iperf3(target, Duration::from_secs(1), 4).unwrap();
    assert!(rate > 0.0);
}

fn memory(node: &Node) -> MemoryView {
    let value = node.meshctl_json(&["status"]).unwrap();
    let status: StatusView = serde_json::from_value(value).unwrap();
    status.memory
}
