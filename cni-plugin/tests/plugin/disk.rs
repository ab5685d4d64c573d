//! A ledger on a disk that is full or read-only, and leases of pods that have gone.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::node::{Answer, Node, pod};

/// A small file system of the ledger's own; unmounted with this value.
struct Disk<'a>(&'a Node);

impl<'a> Disk<'a> {
    fn new(node: &'a Node) -> Self {
        fs::create_dir_all(node.ledger()).unwrap();
        let disk = Self(node);
        disk.mount("size=64k,mode=0700");
        disk
    }

    fn mount(&self, options: &str) {
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(self.0.ledger())
            .status()
            .unwrap();
        assert!(done.success());
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.0.ledger())
            .status()
            .unwrap();
        assert!(done.success());
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.ledger().join("filler")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.ledger().join("filler")).unwrap();
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.0.ledger())
            .status();
    }
}

fn status(node: &Node) -> Answer {
    let mut call = node.call("STATUS", "", None);
    call.config = node.config_with(json!({ "cniVersion": "1.1.0" }));
    node.run(&call)
}

/// A meshd that is ready but for what the plugin tells; gives what it was told.
fn meshd(node: &Node) -> mpsc::Receiver<Value> {
    let socket = UnixListener::bind(node.folder.join("run/meshd.sock")).unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut waits = false;
        for stream in socket.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let question: Value = serde_json::from_str(&line).unwrap();
            let answer = if question["request"] == "Ready" {
                json!({
                    "response": "Ready",
                    "ready": !waits,
                    "connected": true,
                    "reason": waits.then_some("the ledger"),
                    "waits_for_ledger": waits,
                })
            } else {
                waits = question["trouble"].is_string();
                json!({ "response": "Done", "message": "noted" })
            };
            writeln!(stream, "{answer}").unwrap();
            if tell.send(question).is_err() {
                return;
            }
        }
    });
    told
}

#[test]
fn a_full_disk_is_told_before_a_pod_finds_out() {
    let node = Node::new("diskfull");
    let disk = Disk::new(&node);
    let told = meshd(&node);
    let pods = [pod(), pod(), pod()];
    node.add("one", &pods[0]).expect_success();
    node.add("two", &pods[1]).expect_success();
    status(&node).expect_success();
    assert_eq!(told.recv().unwrap(), json!({ "request": "Ready" }));
    disk.fill();
    let full = status(&node);
    assert_eq!(full.code(), 50, "{full:?}");
    let sentence = full.output["msg"].as_str().unwrap().to_owned();
    assert!(sentence.contains("make room there"), "{sentence}");
    // meshd is told the same, so that its own readiness agrees.
    let news = told.recv().unwrap();
    assert_eq!(news, json!({ "request": "Ledger", "trouble": sentence }));
    assert_eq!(node.add("three", &pods[2]).code(), 106);
    assert_eq!(told.recv().unwrap()["request"], "Ledger");
    // A pod that runs needs nothing written, and one that ends goes.
    node.add("one", &pods[0]).expect_success();
    node.del("two").expect_success();
    assert_eq!(node.interfaces().len(), 1);
    disk.make_room();
    status(&node).expect_success();
    let questions: Vec<_> = told.try_iter().map(|one| one["request"].clone()).collect();
    assert_eq!(questions, ["Ready", "Ledger", "Ready"]);
    node.add("three", &pods[2]).expect_success();
    assert_eq!(told.try_iter().count(), 0, "no ADD asks meshd anything");
    // Without anybody who asks for the state, the next pod that is attached takes the trouble back.
    node.del("two").expect_success();
    disk.fill();
    assert_eq!(node.add("two", &pods[1]).code(), 106);
    disk.make_room();
    node.add("two", &pods[1]).expect_success();
    node.del("two").expect_success();
    node.add("two", &pods[1]).expect_success();
    let troubles: Vec<_> = told
        .try_iter()
        .map(|one| one["trouble"].is_string())
        .collect();
    assert_eq!(troubles, [true, false]);
}

#[test]
fn a_pod_leaves_a_read_only_ledger_and_is_booked_out_later() {
    let node = Node::new("diskro");
    let disk = Disk::new(&node);
    let mut pods = vec![pod(), pod(), pod()];
    let first = node.add("one", &pods[0]).expect_success().addresses();
    node.add("two", &pods[1]).expect_success();
    disk.remount("ro");
    assert_eq!(status(&node).code(), 50);
    for _ in 0..2 {
        let gone = node.del("one").expect_success();
        assert!(gone.remarks.contains("freed later"), "{gone:?}");
    }
    assert_eq!((node.interfaces().len(), node.records()), (1, 2));
    let check = node.call("CHECK", "two", Some(&pods[1].path()));
    node.run(&check).expect_success();
    node.add("two", &pods[1]).expect_success();
    assert_eq!(node.add("three", &pods[2]).code(), 106);
    node.gc(&["two"]).expect_success();
    // The sandbox goes; whoever comes next, once the disk takes it, books the pod out.
    drop(pods.remove(0));
    disk.remount("rw");
    let code = status(&node).code();
    assert_eq!((code, node.records()), (50, 1), "there is no meshd");
    let other = node.add("three", &pods[1]).expect_success().addresses();
    assert_ne!(other, first, "it rests");
    assert_eq!(node.records(), 2);
}

#[test]
fn a_range_that_is_full_of_the_dead_is_free_at_once() {
    let node = Node::new("dead");
    let mut file = node.node_file();
    file["pod_cidrs"] = json!(["10.42.4.0/29"]);
    node.write_node_file(&file);
    let mut pods: Vec<_> = (0..6).map(|_| pod()).collect();
    for (id, pod) in ["a", "b", "c", "d", "e", "f"].iter().zip(&pods) {
        node.add(id, pod).expect_success();
    }
    let late = pod();
    let full = node.add("late", &late);
    assert_eq!(full.code(), 101, "{full:?}");
    let sentence = full.output["msg"].as_str().unwrap().to_owned();
    assert!(sentence.contains("6 by pods of this node"), "{sentence}");
    assert!(sentence.contains("larger pod CIDR"), "{sentence}");
    // A runtime has crashed: three sandboxes are gone, and nobody says DEL.
    let started = Instant::now();
    let living: Vec<_> = pods.drain(3..).collect();
    pods.clear();
    let new = [late, pod(), pod()];
    for (id, pod) in ["late", "later", "latest"].iter().zip(&new) {
        node.add(id, pod).expect_success();
    }
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_secs(30), "by waiting: {elapsed:?}");
    for pod in living.iter().chain(&new) {
        pod.command("ping -c1 -W10 10.77.0.3");
    }
    let addresses = node.namespace.command("ip route show table 7077 proto 178");
    assert_eq!(addresses.lines().count(), 6, "{addresses}");
}

#[test]
fn what_waits_for_its_end_is_named_when_the_range_is_full() {
    let node = Node::new("waits");
    let mut file = node.node_file();
    file["pod_cidrs"] = json!(["10.42.4.0/30"]);
    node.write_node_file(&file);
    let pods = [pod(), pod(), pod()];
    node.add("a", &pods[0]).expect_success();
    node.add("b", &pods[1]).expect_success();
    // Its sandbox lives, so it may be in the middle of an ADD.
    let name = node.interfaces()[0].clone();
    node.namespace.command(&format!("ip link del {name}"));
    let full = node.add("c", &pods[2]);
    assert_eq!(full.code(), 101);
    let sentence = full.output["msg"].as_str().unwrap().to_owned();
    assert!(sentence.contains("1 by pods of this node"), "{sentence}");
    assert!(
        sentence.contains("1 by pods without an interface"),
        "{sentence}"
    );
    assert!(sentence.contains("after a minute at most"), "{sentence}");
}

#[test]
fn a_living_pod_keeps_its_address_when_the_ledger_is_lost() {
    let node = Node::new("lostledger");
    let pods: Vec<_> = (0..4).map(|_| pod()).collect();
    let names = ["one", "two", "three", "four"];
    let add = |number: usize| node.add(names[number], &pods[number]).expect_success();
    let given: Vec<_> = (0..3).map(|number| add(number).addresses()).collect();
    let ends = || {
        node.namespace
            .command("ip -o link | grep -o '^[0-9]*: pm[0-9a-f]*'")
    };
    let before = ends();
    fs::remove_dir_all(node.ledger()).unwrap();
    // Not in the order in which they came, so that no luck helps.
    for number in [2, 0] {
        assert_eq!(add(number).addresses(), given[number]);
    }
    // Somebody new doesn't get the address of a pod that has no record yet.
    let fourth = add(3).addresses();
    assert!(!given.contains(&fourth), "{fourth:?}");
    // A record that the disk has spoiled is as good as none.
    for file in fs::read_dir(node.ledger()).unwrap().flatten() {
        fs::write(file.path(), "spoiled").unwrap();
    }
    for (number, addresses) in given.iter().enumerate() {
        assert_eq!(add(number).addresses(), *addresses);
    }
    let after = ends();
    assert!(after.starts_with(&before), "{before}\n{after}");
    pods[0].command(&format!("ping -c1 -W10 {}", given[1][0]));
}
