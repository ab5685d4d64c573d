//! What a node shows: tables, JSON and pings.

use podmesh_proto::local_api::Response;
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::fake_daemon::{FakeDaemon, failed, pong, status, views};

const HOSTILE: &str = "x\u{1b}]0;pwned\u{7}\r\n\u{9b}31m\u{202e}y";

fn shown() -> (Desk, FakeDaemon) {
    let desk = Desk::new();
    let daemon = FakeDaemon::start(&desk.socket(), views("hard-nat"));
    (desk, daemon)
}

#[test]
fn peers_are_sorted_and_aligned() {
    let (desk, _daemon) = shown();
    let expected = "\
NAME    SITE  ADDRESS     STATE  PATH            RTT     LOSS  MTU   HANDSHAKE  RX/TX          WHY
do-w1   do    10.77.2.11  up     direct4         24.1ms  0%    1380  41s        1.2GiB/880MiB  -
old-w3  do    10.77.2.13  down   -               -       -     -     3h11m      -              hard-nat
lab-w9  lab   10.77.4.19  up     relay:hard-nat  58.7ms  0.2%  1280  8s         12MiB/9MiB     hard-nat
";
    assert_eq!(desk.good(&["peers"]), expected);
}

#[test]
fn peers_are_filtered_and_widened() {
    let (desk, _daemon) = shown();
    let names = |words: &[&str]| -> Vec<String> {
        let table = desk.good(&[&["peers"], words].concat());
        let rows = table.lines().skip(1);
        rows.map(|row| row.split_whitespace().next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&["--site", "do"]), ["do-w1", "old-w3"]);
    assert_eq!(names(&["--path", "relay"]), ["lab-w9"]);
    assert_eq!(names(&["--path", "direct"]), ["do-w1"]);
    assert_eq!(names(&["--active"]), ["do-w1", "lab-w9"]);
    let wide = desk.good(&["peers", "--wide"]);
    for expected in ["203.0.113.7:51820", "10.42.2.0/24", "fd00::5", "external"] {
        assert!(wide.contains(expected), "{wide}");
    }
}

#[test]
fn status_names_every_part_and_ends_with_health() {
    let (desk, _daemon) = shown();
    let text = desk.good(&["status"]);
    for expected in [
        "state      online",
        "node       home-1 (0202",
        "groups   a (shown, not enforced)",
        "network    lab (0101",
        "planets    1 of 2 connected",
        "connected 24.1ms, sees this node at 203.0.113.5:40000",
        "down: hard-nat",
        "hard-nat (index 7), MTU 1380, shards 2",
        "3 (1 direct, 1 relayed, 1 down)",
        "up 1h02m",
        "# Health\n# hard-nat hard-nat\n#   next: hard-nat\n",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn no_control_byte_of_a_peer_reaches_the_terminal() {
    let desk = Desk::new();
    let _daemon = FakeDaemon::start(&desk.socket(), views(HOSTILE));
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--check", "ready"],
        &["peers"],
        &["peers", "--wide"],
        &["peers", "--json"],
        &["peer", "x"],
        &["peer", "x", "--json"],
        &["routes"],
        &["routes", "--json"],
        &["ping", "x", "-c", "1"],
        &["ping", "x", "-c", "1", "--json"],
        &["wait", "--for", "cni", "--timeout", "1ms"],
        &["leave", "--yes"],
        &["version"],
        &["version", "--json"],
    ] {
        let said = desk.run(words);
        let dangerous = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        for text in [&said.out, &said.err] {
            assert!(!text.contains(dangerous), "{words:?}: {text:?}");
            assert!(
                !text.contains("\n31m"),
                "{words:?}: a line was forged: {text:?}"
            );
        }
        assert!((said.out + &said.err).contains("pwned"), "{words:?}");
    }
}

/// The keys of every object, with lists shown by their first item.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| (name.clone(), shape(field)))
            .collect(),
        Value::Array(items) => items
            .first()
            .map_or(json!([]), |first| json!([shape(first)])),
        _ => json!("."),
    }
}

#[track_caller]
fn keeps_its_keys(words: &[&str], schema: &str, mut expected: Value) {
    let (desk, _daemon) = shown();
    let document = desk.json(words);
    assert_eq!(document["schema"], schema);
    assert!(
        document["generated"].as_str().unwrap().ends_with('Z'),
        "{document}"
    );
    expected["schema"] = json!(".");
    expected["generated"] = json!(".");
    assert_eq!(shape(&document), expected, "{words:?}");
    let text = desk.good(&[words, &["-o", "json"]].concat());
    assert_eq!(text.matches("\"generated\"").count(), 1);
}

fn peer_keys(path: &Value) -> Value {
    json!({"id": ".", "name": ".", "site": ".", "addresses": ["."], "pod_cidrs": ["."],
        "external": ".", "state": ".", "path": path, "rtt_ms": ".", "loss_percent": ".",
        "mtu": ".", "handshake_s": ".", "rx_bytes": ".", "tx_bytes": ".", "why": "."})
}

#[test]
fn json_of_peers_keeps_its_schema() {
    let direct = json!({"kind": ".", "endpoint": "."});
    let relay = json!({"kind": ".", "planet": "."});
    keeps_its_keys(
        &["peers"],
        "podmesh.peers/v1",
        json!({"items": [peer_keys(&direct)]}),
    );
    let detail = json!({"peer": peer_keys(&relay), "wireguard": ".", "groups": ["."],
        "expires": ".", "serial": ".",
        "candidates": [{"kind": ".", "endpoint": ".", "from": ".", "state": ".", "rtt_ms": "."}],
        "history": [{"time": ".", "from": ".", "to": ".", "reason": "."}]});
    keeps_its_keys(&["peer", "x"], "podmesh.peer/v1", detail);
    let ping = json!({"target": ".", "sent": ".", "received": ".", "loss_percent": ".",
        "min_ms": ".", "avg_ms": ".", "max_ms": ".",
        "items": [{"name": ".", "address": ".", "path": relay, "rtt_ms": "."}]});
    keeps_its_keys(&["ping", "x", "-c", "1"], "podmesh.ping/v1", ping);
}

#[test]
fn json_of_the_node_keeps_its_schema() {
    let routes = json!({"items": [{"prefix": ".", "via": ".", "peer": ".", "mtu": "."}]});
    keeps_its_keys(&["routes"], "podmesh.routes/v1", routes);
    let version = json!({"meshctl": ".", "meshd": "."});
    keeps_its_keys(&["version"], "podmesh.version/v1", version);
    let status = json!({"state": ".", "version": ".", "uptime_s": ".",
        "network": {"id": ".", "name": ".", "version": ".", "overlay": ["."], "pods": ["."],
            "services": []},
        "node": {"id": ".", "name": ".", "site": ".", "groups": ["."], "addresses": ["."],
            "pod_cidrs": ["."], "wireguard": ".", "port": ".", "expires": ".",
            "serial": ".", "renews": "."},
        "planets": [{"id": ".", "name": ".", "address": ".", "connected": ".", "rtt_ms": ".",
            "observed": ".", "error": "."}],
        "interface": {"name": ".", "index": ".", "mtu": ".", "shards": ".", "offloads": ["."],
            "tunnel": "."},
        "peers": {"total": ".", "direct": ".", "relayed": ".", "down": "."},
        "candidates": [{"kind": ".", "endpoint": "."}],
        "drops": [{"reason": ".", "count": "."}],
        "health": [{"code": ".", "message": ".", "next": "."}],
        "memory": {"resident": ".", "peak": "."}, "pods": "."});
    keeps_its_keys(&["status"], "podmesh.status/v1", status);
}

#[test]
fn a_ping_says_the_way_and_sums_up() {
    let desk = Desk::new();
    let direct = || pong(json!({"kind": "direct4", "endpoint": "203.0.113.7:51820"}));
    let _daemon = FakeDaemon::start(&desk.socket(), move |_| direct());
    let out = desk.good(&["ping", "do-w1", "-c", "2", "--interval", "1ms"]);
    let line = "pong from do-w1, the node of 10.77.2.11, via 203.0.113.7:51820 in 24.1 ms\n";
    let sum = "2 sent, 2 received, 0% loss, min/avg/max 24.1/24.1/24.1 ms\n";
    assert_eq!(out, format!("{line}{line}{sum}"));
    let once = desk.good(&["ping", "do-w1", "--until-direct"]);
    assert!(once.ends_with("1 sent, 1 received, 0% loss, min/avg/max 24.1/24.1/24.1 ms\n"));
}

#[test]
fn a_ping_without_answers_or_without_a_direct_path_has_its_own_exit_code() {
    let desk = Desk::new();
    let ping = [
        "ping",
        "do-w1",
        "-c",
        "2",
        "--interval",
        "1ms",
        "--until-direct",
    ];
    let relayed = FakeDaemon::start(&desk.socket(), |_| {
        pong(json!({"kind": "relay", "planet": "planet-1"}))
    });
    let said = desk.run(&ping);
    assert_eq!(said.code, 8);
    assert!(
        said.out.contains("via relay:planet-1 in 24.1 ms"),
        "{}",
        said.out
    );
    drop(relayed);
    let _silent = FakeDaemon::start(&desk.socket(), |_| failed("timeout", "no echo"));
    let said = desk.run(&ping);
    assert_eq!(said.code, 7);
    assert!(
        said.out.contains("2 sent, 0 received, 100% loss\n"),
        "{}",
        said.out
    );
}

#[test]
fn waiting_ends_when_the_state_is_reached() {
    let desk = Desk::new();
    let looks = std::sync::atomic::AtomicU32::new(0);
    let _daemon = FakeDaemon::start(&desk.socket(), move |_| {
        let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let state = if look == 0 { "joining" } else { "online" };
        Response::Status(Box::new(status(state, "x")))
    });
    for goal in ["online", "planet", "peers=2"] {
        desk.good(&["wait", "--for", goal, "--timeout", "5s"]);
    }
    desk.refused(
        &["wait", "--for", "peers=3", "--timeout", "300ms"],
        7,
        "2 of 3 peers are reached (waited 0.3 s)",
    );
}

#[test]
fn completions_and_man_pages_are_made_from_the_command_line() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(desk.good(&["completions", shell]).contains("until-direct"));
    }
    desk.good(&["man", &desk.at("man")]);
    let page = std::fs::read_to_string(desk.path("man/meshctl.1")).unwrap();
    assert!(page.contains("Exit codes"));
    assert!(desk.path("man/meshctl-network-create.1").exists());
}
