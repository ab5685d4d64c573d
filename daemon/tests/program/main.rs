//! The program as its service manager and its users meet it, in a network namespace of its own.
//!
//! Needs root, `/dev/net/tun` and iproute2, as all tests of this kind in the workspace do.

mod node;
mod taken_away;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use node::{Node, ask_if_open, wait_until};

const REQUESTS: [&str; 11] = [
    r#"{"request":"Status"}"#,
    r#"{"request":"Peers"}"#,
    r#"{"request":"Peer","target":"a"}"#,
    r#"{"request":"Routes"}"#,
    r#"{"request":"Ready"}"#,
    r#"{"request":"Ping","target":"a","timeout_ms":10}"#,
    r#"{"request":"Network"}"#,
    r#"{"request":"Join","token":"x"}"#,
    r#"{"request":"Leave"}"#,
    r#"{"request":"Leave","forget_keys":true}"#,
    r#"{"request":"Statement","statement":"x"}"#,
];

#[test]
fn a_second_meshd_ends_with_one_sentence_and_touches_nothing() {
    let node = Node::new();
    let first = node.start();
    let is_up = || {
        node.ip(&["link", "show", "mesh0"])
            .contains("LOWER_UP> mtu 1440")
    };
    wait_until(Duration::from_secs(3), is_up);
    let before = (node.ip(&["-d", "link"]), node.ip(&["rule"]), node.files());
    let (code, words) = node.run_to_end(&[]);
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains("another meshd uses the state folder"),
        "{words}"
    );
    assert_eq!(words.lines().count(), 1, "{words}");
    assert_eq!(
        before,
        (node.ip(&["-d", "link"]), node.ip(&["rule"]), node.files())
    );
    assert!(node.ask(REQUESTS[0]).contains("not-joined"));
    drop(first);
}

#[test]
fn a_stop_by_the_service_manager_is_quick_and_leaves_the_interface() {
    let node = Node::new();
    let mut meshd = node.start();
    let link = node.ip(&["-o", "link", "show", "mesh0"]);
    meshd.signal("HUP");
    meshd.signal("HUP");
    assert!(
        node.ask(REQUESTS[0]).contains("not-joined"),
        "a hang-up must not end it"
    );
    let start = Instant::now();
    meshd.signal("TERM");
    meshd.signal("TERM");
    assert_eq!(meshd.wait(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(
        !node.path("run/meshd.sock").exists(),
        "nobody is to wait at a socket that nobody serves"
    );
    let after = node.ip(&["-o", "link", "show", "mesh0"]);
    assert_eq!(
        link.split(':').next(),
        after.split(':').next(),
        "the index must stay"
    );
    drop(node.start());
}

#[test]
fn a_node_that_has_not_joined_has_no_keys_on_disk() {
    let node = Node::new();
    let mut meshd = node.start();
    let keyless = || {
        let of_keys = |(path, _): &(PathBuf, Vec<u8>)| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("identity"))
        };
        !node.files().iter().any(of_keys)
    };
    assert!(keyless(), "{:?}", node.files());
    let said = node.ask(r#"{"request":"Leave","forget_keys":true}"#);
    assert!(said.contains("has forgotten its keys"), "{said}");
    let said = node.ask(r#"{"request":"Leave"}"#);
    assert!(said.contains("\"code\":\"failed\""), "{said}");
    meshd.signal("KILL");
    meshd.wait();
    let _meshd = node.start();
    assert!(node.ask(REQUESTS[0]).contains("not-joined"));
    assert!(keyless() && !node.log().contains("node="), "{}", node.log());
}

#[test]
fn a_state_folder_that_takes_nothing_keeps_no_node_off() {
    let node = Node::new();
    drop(node.start());
    for has_lock in [true, false] {
        let meshd = node.start_read_only();
        assert!(node.ask(REQUESTS[0]).contains("not-joined"));
        let (code, words) = node.run_to_end(&[]);
        assert_eq!(code, Some(1), "{words}");
        if has_lock {
            assert!(words.contains("another meshd uses the state"), "{words}");
        }
        drop(meshd);
        fs::remove_file(node.path("state/lock")).expect("a lock");
    }
}

#[test]
fn a_service_whose_start_fails_for_a_while_starts_as_soon_as_it_can() {
    let node = Node::new();
    drop(node.start());
    let state = node.path("state");
    let mode =
        |mode| fs::set_permissions(&state, fs::Permissions::from_mode(mode)).expect("a mode");
    let foreign = || {
        fs::write(state.join("identity"), [7; 300]).expect("a file");
        let file = state.join("identity");
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("a mode");
    };
    type Step<'a> = &'a dyn Fn();
    let faults: [(&str, Step<'_>, Step<'_>); 4] = [
        ("chmod 700", &|| mode(0o755), &|| mode(0o700)),
        ("did you mean", &|| node.configure("prot = 7\n"), &|| {
            node.configure("");
        }),
        ("is damaged", &foreign, &|| {
            fs::remove_file(state.join("identity")).expect("a file");
        }),
        (
            "ip link del mesh0",
            &|| {
                node.ip(&["link", "del", "mesh0"]);
                node.ip(&["link", "add", "mesh0", "type", "bridge"]);
            },
            &|| drop(node.ip(&["link", "del", "mesh0"])),
        ),
    ];
    for (word, begin, end) in faults {
        begin();
        fs::remove_file(node.path("log")).expect("a log");
        let (mut meshd, ear) = node.start_as_service();
        let said = ear.hear();
        assert!(said.starts_with("STATUS=") && said.contains(word), "{said}");
        std::thread::sleep(Duration::from_millis(600));
        end();
        while !ear.hear().starts_with("READY=1") {}
        assert!(node.ask(REQUESTS[0]).contains("not-joined"));
        let log = node.log();
        let told = log.lines().filter(|line| line.contains("can't start yet"));
        assert_eq!(told.count(), 1, "{log}");
        // What the journal reads has its priorities, and no second time.
        for line in log.lines() {
            let known = ["<3>meshd: ", "<4>", "<6>"];
            assert!(known.iter().any(|start| line.starts_with(start)), "{line}");
        }
        meshd.signal("TERM");
        assert_eq!(meshd.wait(), Some(0));
        assert!(!node.path("starts").exists());
    }
}

#[test]
fn a_deleted_interface_is_made_anew() {
    let node = Node::new();
    let _meshd = node.start();
    node.ip(&["link", "del", "mesh0"]);
    let start = Instant::now();
    wait_until(Duration::from_secs(3), || {
        node.ip(&["link"]).contains("mesh0")
    });
    wait_until(Duration::from_secs(3), || {
        node.ask(REQUESTS[0]).contains("\"index\":3")
    });
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_start_with_another_number_of_shards_keeps_the_interface() {
    let node = Node::new();
    for shards in ["1", "3", "2"] {
        node.configure(&format!("shards = {shards}\n"));
        let mut meshd = node.start();
        assert_queues(&node, shards);
        meshd.signal("KILL");
        meshd.wait();
    }
}

#[test]
fn an_heir_that_names_no_port_has_that_which_there_is() {
    let node = Node::new();
    node.configure("port = 41007\n");
    let mut meshd = node.start();
    let listens = || node.run(&["ss", "-Hlun"]).contains(":41007 ");
    assert!(listens());
    for port in ["", "port = 41007\n", "port = 0\n"] {
        node.configure(port);
        meshd = node.replace(meshd);
        assert!(listens(), "{port}");
    }
    drop(meshd);
    let _meshd = node.start();
    assert!(!listens(), "a new start has the kept port");
}

#[test]
fn an_heir_that_names_no_number_of_shards_has_those_that_there_are() {
    let node = Node::new();
    let meshd = node.start();
    assert_queues(&node, "8");
    drop(meshd);
    node.configure("shards = 3\n");
    let mut meshd = node.start();
    assert_queues(&node, "3");
    for shards in ["", "shards = 3\n", "shards = 0\n"] {
        node.configure(shards);
        meshd = node.replace(meshd);
        assert_queues(&node, "3");
    }
    node.configure("shards = 2\n");
    let (code, words) = node.run_to_end(&["--replace"]);
    assert_eq!(
        (code, words.contains("shards = 3, not 2")),
        (Some(1), true),
        "{words}"
    );
    assert_queues(&node, "3");
}

#[test]
fn who_goes_on_after_failed_heirs_holds_no_buffers_of_former_lives() {
    let node = Node::new();
    let meshd = node.start();
    let before = meshd.memory();
    for _ in 0..4 {
        node.fail_to_replace();
    }
    let after = meshd.memory();
    assert!(after < before + 8 * 1_024, "{before} KiB, then {after} KiB");
}

/// The device is the first one, and has so many queues in use.
fn assert_queues(node: &Node, count: &str) {
    let link = node.ip(&["-d", "link", "show", "mesh0"]);
    let words = format!("numqueues {count} ");
    assert!(link.starts_with("2: ") && link.contains(&words), "{link}");
}

#[test]
fn each_bad_start_gets_one_sentence_and_its_exit_code() {
    let node = Node::new();
    drop(node.start());
    let state = node.path("state");
    let identity = [7; 300];

    node.configure("prot = 7\n");
    let (code, words) = node.run_to_end(&["--check"]);
    assert_eq!(
        (code, words.contains("did you mean 'port'?")),
        (Some(3), true),
        "{words}"
    );
    node.configure("log = \"what=ever=\"\n");
    assert_eq!(node.run_to_end(&["--check"]).0, Some(3));
    node.configure("port = 41000\n");
    assert_eq!(node.run_to_end(&["--check"]), (Some(0), String::new()));
    for (line, word) in [
        ("log = \"verbose\"\n", "'verbose' is no level"),
        ("join-token-file = \"/no/such/token\"\n", "/no/such/token"),
    ] {
        node.configure(line);
        let (code, words) = node.run_to_end(&["--check"]);
        assert_eq!((code, words.contains(word)), (Some(3), true), "{words}");
    }
    node.configure("port = 41000\n");
    assert_eq!(node.run_to_end(&["--no-such-flag"]).0, Some(3));
    assert_eq!(node.run_to_end(&["--config", "/no/such/file"]).0, Some(3));

    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).expect("a changed mode");
    let (code, words) = node.run_to_end(&[]);
    assert_eq!(
        (code, words.contains("chmod 700")),
        (Some(5), true),
        "{words}"
    );
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("a changed mode");

    for cut in (0..identity.len()).step_by(64) {
        fs::write(state.join("identity"), &identity[..cut]).expect("a torn file");
        let file = state.join("identity");
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("a mode");
        let (code, words) = node.run_to_end(&[]);
        assert_eq!(
            (code, words.contains("is damaged")),
            (Some(1), true),
            "{words}"
        );
        assert_eq!(words.lines().count(), 1, "{words}");
    }
    fs::remove_file(state.join("identity")).expect("a file");

    node.ip(&["link", "del", "mesh0"]);
    node.ip(&["link", "add", "mesh0", "type", "bridge"]);
    let (code, words) = node.run_to_end(&[]);
    assert_eq!(
        (code, words.contains("ip link del mesh0")),
        (Some(1), true),
        "{words}"
    );
    node.ip(&["link", "del", "mesh0"]);
    drop(node.start());
}

#[test]
fn strangers_are_refused_whatever_the_modes_are() {
    let node = Node::new();
    let _meshd = node.start();
    // A stranger may not enter the folder that this was built in, if that lies in root's home; a process
    // may always run what it is itself.
    let before = node.files();
    let mut stranger = Command::new("/proc/self/exe")
        .args(["--ignored", "--exact", "stranger", "--nocapture"])
        .env("PODMESH_TEST_SOCKET", node.path("run/meshd.sock"))
        .uid(65_534)
        .gid(65_534)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process of another user");
    // meshd closes its socket again each second, and makes it anew for that.
    while stranger.try_wait().expect("a child").is_none() {
        for path in [node.root(), node.path("run"), node.path("run/meshd.sock")] {
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o777));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = stranger.wait_with_output().expect("its words");
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && words.contains("1 passed"),
        "{words}"
    );
    assert_eq!(before, node.files());
}

/// Run by `strangers_are_refused_whatever_the_modes_are`, as another user.
#[test]
#[ignore = "only makes sense as another user"]
fn stranger() {
    let socket = std::env::var_os("PODMESH_TEST_SOCKET").expect("a socket to try");
    for request in REQUESTS {
        let mut answer = String::new();
        // While it is made anew there is no socket, or none that answers.
        wait_until(Duration::from_secs(20), || {
            answer = ask_if_open(socket.as_ref(), request).unwrap_or_default();
            !answer.is_empty()
        });
        assert!(
            answer.contains("\"code\":\"permission\""),
            "{request}: {answer}"
        );
    }
}
