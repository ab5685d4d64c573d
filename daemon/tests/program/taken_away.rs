//! What others take away from a meshd that runs, or put in its place: sockets, folder, interface.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::REQUESTS;
use crate::node::{Meshd, Node, wait_until};

const PATIENCE: Duration = Duration::from_secs(10);

fn answers(node: &Node) -> bool {
    UnixStream::connect(node.path("run/meshd.sock")).is_ok()
        && node.ask(REQUESTS[0]).contains("not-joined")
}

/// A meshd that has opened everything: one that starts can't go on without its folder.
fn started(node: &Node) -> Meshd {
    let meshd = node.start();
    wait_until(PATIENCE, || answers(node));
    meshd
}

fn mode(path: &Path) -> u32 {
    let found = fs::metadata(path).expect("a file");
    found.permissions().mode() & 0o777
}

fn log(node: &Node) -> String {
    fs::read_to_string(node.path("log")).expect("a log")
}

#[test]
fn sockets_and_runtime_folder_come_back_without_a_restart() {
    let node = Node::new();
    let meshd = started(&node);
    let (run, socket) = (node.path("run"), node.path("run/meshd.sock"));
    let damages: [&dyn Fn(); 5] = [
        &|| fs::remove_dir_all(&run).expect("a folder"),
        &|| fs::remove_file(&socket).expect("a socket"),
        &|| fs::remove_file(node.path("run/handover.sock")).expect("a socket"),
        &|| {
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).expect("a socket");
        },
        &|| {
            fs::remove_dir_all(&run).expect("a folder");
            fs::create_dir(&run).expect("a folder");
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        wait_until(PATIENCE, || {
            let handover = fs::metadata(node.path("run/handover.sock"));
            let is_back = handover.is_ok_and(|found| found.file_type().is_socket());
            is_back && socket.exists() && mode(&socket) == 0o660 && answers(&node)
        });
        assert_eq!(mode(&node.path("run/handover.sock")), 0o600, "{number}");
        if number == 0 {
            assert_eq!(mode(&run), 0o750);
        }
    }
    // The one behind the new socket is the same meshd, and hands over through it.
    let mut heir = node.replace(meshd);
    wait_until(PATIENCE, || answers(&node));
    heir.signal("TERM");
    assert_eq!(heir.wait(), Some(0));
    assert!(!socket.exists(), "the new socket is removed at the end");
}

#[test]
fn a_folder_that_cannot_be_made_is_logged_once_and_waited_for() {
    let node = Node::new();
    let _meshd = started(&node);
    fs::remove_dir_all(node.path("run")).expect("a folder");
    fs::write(node.path("run"), "somebody's file").expect("a file");
    let said = || log(&node).matches("meshctl can't reach this meshd").count();
    wait_until(PATIENCE, || said() > 0);
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(said(), 1, "{}", log(&node));
    assert!(log(&node).contains("meshd tries again each second"));
    fs::remove_file(node.path("run")).expect("a file");
    wait_until(PATIENCE, || answers(&node));
}

#[test]
fn what_another_program_puts_in_the_place_of_a_socket_is_left_alone_and_named() {
    let node = Node::new();
    let _meshd = started(&node);
    let handover = node.path("run/handover.sock");
    fs::remove_file(&handover).expect("a socket");
    fs::write(&handover, "somebody's file").expect("a file");
    wait_until(PATIENCE, || node.ask(REQUESTS[0]).contains("MESH-HOST-003"));
    let status = node.ask(REQUESTS[0]);
    assert!(status.contains("handover.sock"), "{status}");
    assert_eq!(fs::read(&handover).expect("a file"), b"somebody's file");
    fs::remove_file(&handover).expect("a file");
    wait_until(PATIENCE, || {
        !node.ask(REQUESTS[0]).contains("MESH-HOST-003")
    });
}

#[test]
fn an_interface_of_somebody_else_is_refused_by_the_key_that_avoids_it() {
    let node = Node::new();
    for make in [
        &["link", "add", "mesh0", "type", "bridge"][..],
        &["tuntap", "add", "mesh0", "mode", "tun"],
        &["tuntap", "add", "mesh0", "mode", "tap"],
    ] {
        node.ip(make);
        let (code, words) = node.run_to_end(&[]);
        assert_eq!(code, Some(1), "{words}");
        let (key, removal) = (words.find("set `device`"), words.find("ip link del"));
        assert!(key.is_some() && key < removal, "{words}");
        node.ip(&["link", "del", "mesh0"]);
    }
}

#[test]
fn an_interface_that_takes_the_place_of_ours_is_named_in_health() {
    let node = Node::new();
    let meshd = started(&node);
    // Before meshd can make its own anew.
    meshd.signal("STOP");
    node.ip(&["link", "del", "mesh0"]);
    node.ip(&["link", "add", "mesh0", "type", "bridge"]);
    meshd.signal("CONT");
    wait_until(PATIENCE, || {
        node.ask(REQUESTS[0]).contains("set `device` in meshd's")
    });
    assert!(
        node.ask(r#"{"request":"Ready"}"#)
            .contains("\"ready\":false")
    );
    node.ip(&["link", "del", "mesh0"]);
    wait_until(PATIENCE, || {
        !node.ask(REQUESTS[0]).contains("MESH-HOST-001")
            && node.ip(&["-d", "link", "show", "mesh0"]).contains("tun")
    });
}

#[test]
fn a_firewall_that_cuts_the_tunnels_off_is_named_and_forgotten_in_time() {
    let node = Node::new();
    let _meshd = started(&node);
    let refused = || node.ask(REQUESTS[0]).contains("MESH-FIREWALL-001");
    assert!(!refused());
    let rules =
        "table inet theirs { chain out { type filter hook output priority 0; policy drop; }\n}";
    node.run(&["nft", rules]);
    wait_until(PATIENCE, refused);
    let status = node.ask(REQUESTS[0]);
    assert!(
        status.contains("chain out of table inet theirs"),
        "{status}"
    );
    // The command as it is told to people.
    let command = status.split('`').find(|part| part.contains("insert rule"));
    let command = command.expect("a command").replace("\\\"", "\"");
    node.run(&["sh", "-c", &command]);
    wait_until(PATIENCE, || !refused());
}

#[test]
fn a_node_that_waits_for_a_network_sleeps() {
    let node = Node::new();
    let meshd = started(&node);
    std::thread::sleep(Duration::from_millis(500));
    let before = meshd.worked();
    std::thread::sleep(Duration::from_secs(2));
    let worked = meshd.worked() - before;
    assert!(
        worked < Duration::from_millis(400),
        "{worked:?} of two seconds"
    );
}
