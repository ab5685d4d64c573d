//! Kernel settings that others change: forwarding, IPv6, of the machine, of interfaces, for new ones.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use podmesh_lab::ping::PingMatrix;
use podmesh_lab::{Lab, Mesh, Nat, Node, mesh, wait};
use podmesh_proto::local_api::StatusView;
use podmesh_proto::node_file::{NODE_FILE_NAME, NodeFile};

use crate::world;

const LIMIT: Duration = Duration::from_secs(15);
/// For what the kernel tells of: changes are gathered for 0.2 s, and the rest is the machine's load.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Two nodes that see each other, `hardened` before the first one's meshd starts.
fn two_nodes(name: &str, hardened: &[(&str, &str)]) -> Lab {
    let mut plan = Lab::plan(name);
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.node("home-1").at("home");
    plan.node("home-2").at("home");
    let lab = plan.up().unwrap();
    set(lab.node("home-1").unwrap(), hardened);
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    mesh.wait_for(&world::nodes(&lab), "paths", LIMIT, mesh::is_up)
        .unwrap();
    lab
}

fn set(node: &Node, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        node.namespace().sysctl(name, value).unwrap();
    }
}

fn health(node: &Node) -> Result<Vec<String>> {
    let status: StatusView = serde_json::from_value(node.meshctl_json(&["status"])?)?;
    Ok(status.health.into_iter().map(|view| view.message).collect())
}

#[test]
fn forwarding_that_is_taken_away_is_back_before_anybody_gives_up() {
    let lab = two_nodes("settings", &[]);
    let (node, other) = (lab.node("home-1").unwrap(), lab.node("home-2").unwrap());
    let pings = PingMatrix::start().unwrap();
    pings.add_pod(&node.add_pod("home-1-a").unwrap()).unwrap();
    pings.add_pod(&node.add_pod("home-1-b").unwrap()).unwrap();
    pings.add_pod(&other.add_pod("home-2-a").unwrap()).unwrap();
    pings.wait_for_all(3, LIMIT).unwrap();
    let end = host_end(node);
    let off: [(&str, &[(&str, &str)]); 5] = [
        ("of IPv4", &[("net.ipv4.ip_forward", "0")]),
        ("of IPv6", &[("net.ipv6.conf.all.forwarding", "0")]),
        (
            "of the mesh interface",
            &[("net.ipv4.conf.mesh0.forwarding", "0")],
        ),
        (
            "of a pod's interface",
            &[(&format!("net.ipv4.conf.{end}.forwarding"), "0")],
        ),
        (
            "of new interfaces",
            &[
                ("net.ipv4.conf.default.forwarding", "0"),
                ("net.ipv6.conf.default.forwarding", "0"),
                ("net.ipv6.conf.default.disable_ipv6", "1"),
            ],
        ),
    ];
    for (what, settings) in off {
        set(node, settings);
        if what == "of new interfaces" {
            node.namespace().ip("link del mesh0").unwrap();
            pings.add_pod(&node.add_pod("home-1-c").unwrap()).unwrap();
        }
        let begin = Instant::now();
        pings
            .wait_for_all(10, AT_ONCE + Duration::from_secs(1))
            .unwrap_or_else(|error| panic!("forwarding {what}: {error:#}"));
        println!(
            "figure forwarding {what}: all answer again within {:?}",
            begin.elapsed()
        );
    }
    assert_eq!(health(node).unwrap(), [""; 0]);

    // Somebody who does it again and again is named, though each time it is put back.
    wait::until("the other one to be named", LIMIT, || {
        set(node, &[("net.ipv4.ip_forward", "0")]);
        let found = health(node)?;
        let named = |line: &String| line.contains("changes forwarding of IPv4 again and again");
        Ok(if found.iter().any(named) {
            wait::Now(())
        } else {
            wait::NotYet(format!("{found:?}"))
        })
    })
    .unwrap();
    pings.wait_for_all(3, AT_ONCE).unwrap();
}

/// The node's end of one of its pods.
fn host_end(node: &Node) -> String {
    let links = node.namespace().run(&["ip", "-br", "link"]).unwrap();
    let name = links.lines().find(|line| line.starts_with("pm")).unwrap();
    let name = name.split(['@', ' ']).next().unwrap();
    name.to_owned()
}

#[test]
fn ipv6_that_is_switched_off_by_settings_is_on_in_the_mesh() {
    let off = [
        ("net.ipv6.conf.all.disable_ipv6", "1"),
        ("net.ipv6.conf.default.disable_ipv6", "1"),
    ];
    let lab = two_nodes("no-ipv6", &off);
    let (node, other) = (lab.node("home-1").unwrap(), lab.node("home-2").unwrap());
    let pings = PingMatrix::start().unwrap();
    let pod = node.add_pod("home-1-a").unwrap();
    pings.add_pod(&pod).unwrap();
    pings.add_pod(&other.add_pod("home-2-a").unwrap()).unwrap();
    pings.wait_for_all(5, LIMIT).unwrap();
    assert_eq!(health(node).unwrap(), [""; 0]);

    // Once more, midway. What stood in the kernel of the pods' interfaces is gone with it; what is the
    // mesh's is there again, so that the next pod has both families.
    set(node, &off);
    wait::until("the address of the mesh interface", AT_ONCE, || {
        let addresses = node
            .namespace()
            .run(&["ip", "-6", "addr", "show", "mesh0"])?;
        Ok(if addresses.contains("scope global") {
            wait::Now(())
        } else {
            wait::NotYet(addresses)
        })
    })
    .unwrap();
    pings.remove("home-1-a").unwrap();
    pings.add_pod(&node.add_pod("home-1-b").unwrap()).unwrap();
    pings.wait_for_all(5, LIMIT).unwrap();
}

/// As in a container whose `/proc/sys` is read-only.
#[test]
fn where_ipv6_can_not_be_switched_on_it_is_left_out_and_the_node_is_ready() {
    let lab = two_nodes("ipv6-for-ever-off", &[]);
    let (node, other) = (lab.node("home-1").unwrap(), lab.node("home-2").unwrap());
    let script = "mount --make-rprivate / && mount --bind /proc/sys /proc/sys && \
                  mount -o remount,ro,bind /proc/sys && exec \"$@\"";
    let failure = node
        .try_replace(&["unshare", "--mount", "sh", "-c", script, "sh"])
        .unwrap();
    assert_eq!(failure, None);
    set(node, &[("net.ipv6.conf.mesh0.disable_ipv6", "1")]);
    let said = wait::until("the missing family to be said", LIMIT, || {
        let found = health(node)?;
        let cause = "net.ipv6.conf.mesh0.disable_ipv6 is 1";
        Ok(match found.iter().find(|line| line.contains(cause)) {
            Some(line) => wait::Now(line.clone()),
            None => wait::NotYet(format!("{found:?}")),
        })
    })
    .unwrap();
    assert!(said.contains("IPv6 of the mesh is left out"), "{said}");
    node.meshctl(&["status", "--check", "ready"]).unwrap();
    let file = fs::read(node.runtime_dir().join(NODE_FILE_NAME)).unwrap();
    let file: NodeFile = serde_json::from_slice(&file).unwrap();
    assert!(
        file.pod_cidrs.iter().all(|cidr| cidr.addr().is_ipv4()),
        "{file:?}"
    );
    assert!(
        file.protected.iter().any(|range| range.addr().is_ipv6()),
        "{file:?}"
    );
    let pod = node.add_pod("home-1-a").unwrap();
    assert!(pod.addresses().iter().all(|address| address.is_ipv4()));
    let pings = PingMatrix::start().unwrap();
    for pod in [pod, other.add_pod("home-2-a").unwrap()] {
        let v4 = pod.address(false).unwrap();
        pings.add(pod.name(), pod.namespace(), &[v4]).unwrap();
    }
    pings.wait_for_all(5, LIMIT).unwrap();
}
