//! DEL and GC: nothing stays, and nothing that is gone already is a failure.

use std::{fs, path::Path, time::Instant};

use serde_json::json;

use crate::{
    namespaces::Namespace,
    node::{Call, Node, pod},
};

/// Damage before a DEL, and what the DEL looks like.
type Shape = (
    &'static str,
    fn(&Node, &mut Option<Namespace>),
    fn(&Node, &mut Call),
);

const SHAPES: [Shape; 20] = [
    (
        "as the runtime does at first",
        |_, _| {},
        |node, call| {
            call.config = node.config_with(json!({ "prevResult": { "cniVersion": "1.0.0" } }));
        },
    ),
    (
        "no namespace",
        |_, _| {},
        |_, call| set(call, "CNI_NETNS", ""),
    ),
    ("a stale namespace", |_, pod| *pod = None, |_, _| {}),
    (
        "a file in place of the namespace",
        |_, _| {},
        |_, call| set(call, "CNI_NETNS", "/etc/passwd"),
    ),
    (
        "a relative namespace",
        |_, _| {},
        |_, call| set(call, "CNI_NETNS", "x/../y"),
    ),
    (
        "an unknown id",
        |_, _| {},
        |_, call| set(call, "CNI_CONTAINERID", "never-seen"),
    ),
    (
        "another interface",
        |_, _| {},
        |_, call| set(call, "CNI_IFNAME", "net7"),
    ),
    (
        "a second time",
        |node, _| assert!(node.del("one").success),
        |_, _| {},
    ),
    (
        "no previous result",
        |_, _| {},
        |node, call| call.config = node.config().to_string(),
    ),
    (
        "a wrong previous result",
        |_, _| {},
        |node, call| {
            call.config = node.config_with(json!({ "prevResult": "what?" }));
        },
    ),
    (
        "no node file",
        |node, _| fs::remove_file(node.folder.join("run/node.json")).unwrap(),
        |_, _| {},
    ),
    (
        "no runtime folder",
        |node, _| fs::remove_dir_all(node.folder.join("run")).unwrap(),
        |_, _| {},
    ),
    (
        "a torn node file",
        |node, _| fs::write(node.folder.join("run/node.json"), "{").unwrap(),
        |_, _| {},
    ),
    (
        "no ledger",
        |node, _| fs::remove_dir_all(node.ledger()).unwrap(),
        |_, _| {},
    ),
    (
        "a torn record",
        |node, _| spoil_records(node, b"{\"sch"),
        |_, _| {},
    ),
    (
        "an empty record",
        |node, _| spoil_records(node, b""),
        |_, _| {},
    ),
    (
        "no interface",
        |node, _| {
            node.namespace
                .command(&format!("ip link del {}", node.interfaces()[0]));
        },
        |_, _| {},
    ),
    (
        "the pod's end is gone",
        |_, pod| {
            pod.as_ref().unwrap().command("ip link del eth0");
        },
        |_, _| {},
    ),
    (
        "an unknown version",
        |_, _| {},
        |node, call| {
            call.config = node.config_with(json!({ "cniVersion": "9.9.9" }));
        },
    ),
    (
        "no guard",
        |node, _| {
            node.namespace
                .command("nft flush ruleset; ip rule del pref 5000; ip link del mesh0");
        },
        |_, _| {},
    ),
];

#[test]
fn twenty_shapes_of_del_succeed_and_free_everything() {
    for (name, damage, shape) in SHAPES {
        let node = Node::new("shape20");
        let mut pod = Some(pod());
        let path = pod.as_ref().unwrap().path();
        node.add("one", pod.as_ref().unwrap()).expect_success();
        damage(&node, &mut pod);
        let mut call = node.call("DEL", "one", Some(&path));
        shape(&node, &mut call);
        let started = Instant::now();
        let answer = node.run(&call);
        assert!(answer.success, "{name}: {answer:?}");
        assert!(answer.output.is_null(), "{name}: {answer:?}");
        assert!(started.elapsed().as_secs_f32() < 1.0, "{name}");
        if matches!(name, "an unknown id" | "another interface") {
            assert_eq!((node.interfaces().len(), node.records()), (1, 1), "{name}");
        } else {
            assert_eq!((node.interfaces().len(), node.records()), (0, 0), "{name}");
            assert_eq!(node.pod_routes(), 0, "{name}");
        }
    }
}

#[test]
fn garbage_collection_frees_what_is_not_listed() {
    let node = Node::new("collect");
    let pods = [pod(), pod(), pod()];
    for (id, pod) in ["kept", "gone", "half"].iter().zip(&pods) {
        node.add(id, pod).expect_success();
    }
    // One whose record the disk has lost, and somebody else's interfaces.
    fs::remove_file(record_of(&node, "half")).unwrap();
    node.namespace
        .command("ip link add pmfree type veth peer name free; ip link add vethx type veth");
    node.gc(&["kept"]).expect_success();
    assert_eq!(node.records(), 1);
    let mut left = node.interfaces();
    left.retain(|name| name != "pmfree");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(node.pod_routes(), 2);
    assert!(node.namespace.command("ip -br link").contains("vethx"));
    pods[0].command("ping -c1 -W10 10.77.0.3");
}

#[test]
fn garbage_collection_without_a_list_removes_nobody() {
    let node = Node::new("nolist");
    let pod = pod();
    node.add("one", &pod).expect_success();
    let mut call = node.call("GC", "", None);
    call.config = node.config_with(json!({ "cniVersion": "1.1.0" }));
    assert_eq!(node.run(&call).code(), 7);
    assert_eq!((node.interfaces().len(), node.records()), (1, 1));
}

#[test]
fn garbage_collection_leaves_other_networks_alone() {
    let node = Node::new("networks");
    let pod = pod();
    let mut call = node.call("ADD", "one", Some(&pod.path()));
    call.config = node.config_with(json!({ "name": "another" }));
    node.run(&call).expect_success();
    node.gc(&[]).expect_success();
    assert_eq!((node.interfaces().len(), node.records()), (1, 1));
}

#[test]
fn garbage_collection_leaves_what_other_ledgers_made() {
    let node = Node::new("ledgers");
    let pods = [pod(), pod()];
    for (id, pod) in ["whole", "torn"].iter().zip(&pods) {
        node.add(id, pod).expect_success();
    }
    let elsewhere = node.folder.join("elsewhere");
    let changes = [
        json!({ "dataDir": elsewhere }),
        json!({ "name": "another" }),
        json!({ "name": "another", "dataDir": elsewhere }),
    ];
    // Without its record nothing but the interface tells whose a pod is.
    for damage in [spoil, remove] {
        damage(&record_of(&node, "torn"));
        for change in &changes {
            let mut change = change.clone();
            change["cniVersion"] = json!("1.1.0");
            change["cni.dev/valid-attachments"] = json!([]);
            let mut call = node.call("GC", "", None);
            call.config = node.config_with(change);
            node.run(&call).expect_success();
            assert_eq!(node.interfaces().len(), 2, "{}", call.config);
            for pod in &pods {
                pod.command("ping -c1 -W10 10.77.0.3");
            }
        }
        // Again whole, for the next damage.
        node.add("torn", &pods[1]).expect_success();
    }
    node.gc(&[]).expect_success();
    assert_eq!((node.interfaces().len(), node.records()), (0, 0));
}

#[test]
fn an_interface_left_in_the_making_is_found_by_its_own_ledger_alone() {
    let node = Node::new("making");
    let pod = pod();
    node.add("one", &pod).expect_success();
    // As a plugin leaves it that was killed between making the pair and naming its owner.
    let name = node.interfaces().remove(0);
    node.namespace.command(&format!(
        "ip link set {name} down; ip link set {name} alias \"\""
    ));
    let mut call = node.call("GC", "", None);
    call.config = node.config_with(json!({
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": [],
        "dataDir": node.folder.join("elsewhere"),
    }));
    node.run(&call).expect_success();
    assert_eq!(node.interfaces(), [name]);
    node.gc(&[]).expect_success();
    assert_eq!((node.interfaces().len(), node.records()), (0, 0));
}

#[test]
fn a_power_cut_leaves_nothing_that_a_del_or_gc_does_not_find() {
    let node = Node::new("power");
    let pods = [pod(), pod()];
    for (id, pod) in ["a", "b"].iter().zip(&pods) {
        node.add(id, pod).expect_success();
    }
    drop(pods);
    // The namespaces have gone, and soon the interfaces with them; the disk is as it was.
    let started = Instant::now();
    while !node.interfaces().is_empty() && started.elapsed().as_secs() < 10 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!((node.interfaces().len(), node.records()), (0, 2));
    // Whoever comes first also books out what has gone without a word.
    node.del("a").expect_success();
    assert_eq!(node.records(), 0);
    node.gc(&[]).expect_success();
}

fn set(call: &mut Call, name: &'static str, value: &str) {
    call.variables.retain(|(known, _)| *known != name);
    call.variables.push((name, value.to_owned()));
}

fn spoil_records(node: &Node, bytes: &[u8]) {
    fs::write(record_of(node, "one"), bytes).unwrap();
}

fn spoil(record: &Path) {
    fs::write(record, "{").unwrap();
}

fn remove(record: &Path) {
    fs::remove_file(record).unwrap();
}

fn record_of(node: &Node, id: &str) -> std::path::PathBuf {
    let entries = fs::read_dir(node.ledger()).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let is_record = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.contains(&format!("\"containerID\":\"{id}\""))
    };
    paths.find(|path| is_record(path)).unwrap()
}
