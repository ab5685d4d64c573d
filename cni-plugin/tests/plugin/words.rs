//! The protocol itself: versions, wrong calls, and how they are answered.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::node::{Answer, Node, pod};

#[test]
fn versions_are_named() {
    let node = Node::new("version");
    let mut call = node.call("VERSION", "", None);
    for config in [r#"{"cniVersion":"1.0.0"}"#, ""] {
        call.config = config.to_owned();
        let answer = node.run(&call).expect_success();
        assert_eq!(
            answer.output["supportedVersions"],
            json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        );
    }
}

#[test]
fn the_list_that_is_shipped_reaches_every_verb() {
    let node = Node::new("shipped");
    let pod = pod();
    let list = include_str!("../../../packaging/cni/10-podmesh.conflist");
    let list: Value = serde_json::from_str(list).unwrap();
    // As libcni does it: one of the versions that both speak, the plugin's keys, the list's name.
    let versions = list["cniVersions"].as_array().unwrap();
    assert!(versions.contains(&list["cniVersion"]));
    let mut understood = Vec::new();
    for version in versions {
        let mut config = node.config();
        for (key, value) in list["plugins"][0].as_object().unwrap() {
            config[key] = value.clone();
        }
        config["name"] = list["name"].clone();
        config["cniVersion"] = version.clone();
        config["cni.dev/valid-attachments"] = json!([{ "containerID": "one", "ifname": "eth0" }]);
        for verb in ["ADD", "CHECK", "GC", "STATUS", "DEL"] {
            let mut call = node.call(verb, "one", Some(&pod.path()));
            call.config = config.to_string();
            // There is no meshd here, which is another answer than that of an unknown verb.
            match node.run(&call).code() {
                0 | 50 => understood.push(verb),
                code => assert_eq!((code, version.as_str()), (1, Some("1.0.0")), "{verb}"),
            }
        }
    }
    assert!(
        ["ADD", "CHECK", "GC", "STATUS", "DEL"]
            .iter()
            .all(|verb| understood.contains(verb))
    );
    assert_eq!(understood.iter().filter(|verb| **verb == "ADD").count(), 2);
}

#[test]
fn every_version_gets_its_own_answer() {
    let node = Node::new("forms");
    let pod = pod();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut call = node.call("ADD", version, Some(&pod.path()));
        call.config = node.config_with(json!({
            "cniVersion": version,
            "dns": { "nameservers": ["10.96.0.10"] },
            "capabilities": { "portMappings": true },
            "runtimeConfig": { "portMappings": [] },
        }));
        let answer = node.run(&call).expect_success().output;
        assert_eq!(answer["cniVersion"], version);
        assert_eq!(answer["dns"]["nameservers"][0], "10.96.0.10");
        assert_eq!(
            answer["ips"][0].get("version").is_some(),
            version.starts_with("0.")
        );
        node.del(version).expect_success();
    }
}

#[test]
fn wrong_calls_are_answered_by_one_object_with_a_code() {
    let node = Node::new("wrong");
    let pod = pod();
    let good = || node.call("ADD", "one", Some(&pod.path()));
    let with = |name: &'static str, value: &str| {
        let mut call = good();
        call.variables.retain(|(known, _)| *known != name);
        call.variables.push((name, value.to_owned()));
        node.run(&call)
    };
    let config = |config: &str| {
        let mut call = good();
        call.config = config.to_owned();
        node.run(&call)
    };
    let verb = |verb| {
        let mut call = good();
        call.verb = verb;
        node.run(&call)
    };
    let long = "x".repeat(300);
    let cases: Vec<(Answer, u64)> = vec![
        (with("CNI_CONTAINERID", "../../etc/passwd"), 4),
        (with("CNI_CONTAINERID", ""), 4),
        (with("CNI_CONTAINERID", &long), 4),
        (with("CNI_CONTAINERID", "a b;reboot"), 4),
        (with("CNI_IFNAME", "../eth0"), 4),
        (with("CNI_IFNAME", &long), 4),
        (with("CNI_NETNS", ""), 4),
        (with("CNI_NETNS", "/run/netns/no-such"), 4),
        (with("CNI_NETNS", "/etc/passwd"), 4),
        (with("CNI_NETNS", "/dev/zero"), 4),
        (with("CNI_NETNS", "/proc/self/ns/mnt"), 4),
        (with("CNI_NETNS", "/proc/self/ns/net"), 4),
        (config(""), 6),
        (config("{"), 6),
        (config(&format!("[{}]", "[".repeat(5000))), 6),
        (config(&" ".repeat(2_000_000)), 6),
        (config(r#"{"cniVersion":"0.2.0","name":"x"}"#), 1),
        (config(r#"{"cniVersion":"1.0.0","name":"../x"}"#), 7),
        (verb("EXPLODE"), 4),
        (verb("STATUS"), 1),
    ];
    for (position, (answer, code)) in cases.iter().enumerate() {
        assert!(!answer.success, "{position}: {answer:?}");
        assert_eq!(answer.code(), *code, "{position}: {answer:?}");
        let sentence = answer.output["msg"].as_str().unwrap();
        assert!(
            sentence.len() > 10 && !sentence.ends_with('.'),
            "{sentence:?}"
        );
        assert!(answer.output["cniVersion"].is_string());
    }
    assert_eq!((node.interfaces().len(), node.records()), (0, 0));
}

#[test]
fn the_status_follows_meshd() {
    let node = Node::new("status");
    let mut call = node.call("STATUS", "", None);
    call.config = node.config_with(json!({ "cniVersion": "1.1.0" }));
    assert_eq!(node.run(&call).code(), 50);
    let socket = UnixListener::bind(node.folder.join("run/meshd.sock")).unwrap();
    let answers = [(true, true, 0), (true, false, 51), (false, false, 50)];
    thread::scope(|scope| {
        scope.spawn(|| {
            for (ready, connected, _) in answers {
                let (mut stream, _) = socket.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let question: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(question, json!({ "request": "Ready" }));
                let answer = json!({
                    "response": "Ready",
                    "ready": ready,
                    "connected": connected,
                    "reason": "the test says so",
                });
                writeln!(stream, "{answer}").unwrap();
            }
        });
        for (_, _, code) in answers {
            let answer = node.run(&call);
            assert_eq!(answer.code(), code, "{answer:?}");
        }
    });
    // A meshd that hangs is given two seconds, and one that is gone none.
    assert_eq!(node.run(&call).code(), 50);
    fs::remove_file(node.folder.join("run/node.json")).unwrap();
    assert_eq!(node.run(&call).code(), 50);
}

#[test]
fn a_call_that_waits_for_ever_ends_at_its_deadline() {
    let node = Node::new("late");
    let pod = pod();
    node.add("one", &pod).expect_success();
    let started = Instant::now();
    let mut holder = Command::new("flock")
        .arg(node.ledger().join("lock"))
        .args(["sleep", "60"])
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(200));
    let late = node.del("one");
    // The lock is the sleeping grandchild's too.
    node.namespace.command(&format!(
        "kill $(ps -o pid= --ppid {pid}) {pid}",
        pid = holder.id()
    ));
    let _ = holder.wait();
    assert_eq!(late.code(), 104, "{late:?}");
    assert!((19..25).contains(&started.elapsed().as_secs()));
    node.del("one").expect_success();
    assert_eq!(node.records(), 0);
}

#[test]
fn an_ordinary_user_is_told_to_be_root() {
    let node = Node::new("user");
    let script = format!(
        "echo {{}} | CNI_COMMAND=DEL CNI_CONTAINERID=a CNI_IFNAME=eth0 \
         setpriv --reuid=65534 --clear-groups {} || true",
        copy_for_everybody(&node).display()
    );
    let answer: Value = serde_json::from_str(&node.namespace.command(&script)).unwrap();
    assert_eq!(answer["code"], 100);
}

/// A stranger may not enter the folder that the program was built in, if that lies in root's home. A process
/// of its own writes the copy: whatever this one has open, a thread that forks meanwhile passes on, and
/// nobody can run a file that somebody has open for writing.
fn copy_for_everybody(node: &Node) -> std::path::PathBuf {
    let copy = node.folder.join("podmesh");
    let status = Command::new("install")
        .args(["-m", "0755", env!("CARGO_BIN_EXE_podmesh")])
        .arg(&copy)
        .status();
    assert!(status.unwrap().success());
    copy
}
