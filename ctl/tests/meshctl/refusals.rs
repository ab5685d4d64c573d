//! The table of exit codes: each failure, its code, its sentence, and that a next step is named.

use std::time::Duration;

use crate::book::Book;
use crate::desk::{Desk, PLANET, set_mode};
use crate::fake_daemon::{FakeDaemon, failed, status};
use podmesh_proto::local_api::{Request, Response};

#[test]
fn every_failure_of_a_daemon_has_its_exit_code_and_a_next_step() {
    let desk = Desk::new();
    for (code, exit) in [
        ("failed", 1),
        ("not-ready", 2),
        ("usage", 3),
        ("permission", 5),
        ("not-found", 6),
        ("timeout", 7),
    ] {
        let _daemon = FakeDaemon::start(&desk.socket(), move |_| failed(code, "the sky is green"));
        desk.refused(&["status"], exit, "the sky is green");
    }
}

#[test]
fn a_daemon_that_is_absent_mute_or_mad_is_named() {
    let desk = Desk::new();
    desk.refused(&["status"], 4, "meshd is not running: there is no socket");
    let cases: [(&[u8], i32, &str); 3] = [
        (b"", 4, "closed the connection without an answer"),
        (
            b"{\"response\":\"Peers\",\"items\":[]}\n",
            1,
            "answered another question",
        ),
        (
            b"hello\x1b[31m\n",
            1,
            "doesn't understand the answer of meshd",
        ),
    ];
    for (answer, code, sentence) in cases {
        let _daemon = FakeDaemon::raw(&desk.socket(), move |_| answer.to_vec());
        desk.refused(&["status"], code, sentence);
    }
    // A socket that nobody listens at any more.
    drop(std::os::unix::net::UnixListener::bind(desk.socket()).unwrap());
    desk.refused(&["status"], 4, "nobody listens at");
    std::fs::remove_file(desk.socket()).unwrap();
    let _daemon = FakeDaemon::raw(&desk.socket(), |_| {
        std::thread::sleep(Duration::from_secs(6));
        Vec::new()
    });
    desk.refused(&["status"], 7, "meshd did not answer within 5 s");
}

#[test]
fn a_check_answers_by_exit_code() {
    let desk = Desk::new();
    let daemon = FakeDaemon::start(&desk.socket(), |request| match request {
        Request::Status => Response::Status(Box::new(status("joining", "x"))),
        _ => failed("failed", "not asked for"),
    });
    assert_eq!(desk.run(&["status", "--check", "live"]).code, 0);
    assert_eq!(desk.run(&["status", "--check", "startup"]).code, 2);
    drop(daemon);
    assert_eq!(desk.run(&["status", "--check", "live"]).code, 4);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let desk = Desk::with_network();
    for words in [
        &[][..],
        &["peers", "--path", "sideways"],
        &["status", "--check", "live", "--json"],
        &["wait", "--for", "godot"],
        &["ping", "x", "-c", "0"],
        &["ping", "x", "--timeout", "11s"],
        &["token", "create", "--uses", "0"],
        &["token", "create", "--expires", "0h"],
        &["token", "create", "--expires", "soon"],
        &["token", "create", "--replaces", &"ab".repeat(32)],
        &["token", "create", "--site", "Not A Name"],
        &["network", "create", "x"],
        &["network", "create", "x", "--planet", "here"],
        &["node", "revoke"],
        &[
            "network",
            "create",
            "x",
            "--planet",
            PLANET,
            "--overlay",
            "10.77.0.0/33",
        ],
        &["peer"],
        &["join", "podmesh1-abcdef"],
    ] {
        let said = desk.run(words);
        assert_eq!(said.code, 3, "{words:?}: {said:?}");
        assert!(!said.err.is_empty());
    }
    assert_eq!(desk.run(&["--help"]).code, 0);
    assert_eq!(desk.run(&["--version"]).code, 0);
}

#[test]
fn every_rule_for_a_token_is_told_in_one_sentence() {
    let desk = Desk::with_network();
    for (words, code, sentence) in [
        (
            &["--range", "10.99.0.0/16"][..],
            3,
            "10.99.0.0/16 is in no overlay or pod range",
        ),
        (&["--range", "10.42.1.1/24"], 3, "10.42.1.1/24 has bits set"),
        (
            &["--range", "10.0.0.0/8"],
            3,
            "10.0.0.0/8 is in no overlay or pod range",
        ),
        (&["--expires", "53w"], 3, "at most 366 days"),
        (
            &["--for", "w1", "--uses", "2"],
            3,
            "a token for one name has one use",
        ),
        (&["--dir", "/nonexistent"], 6, "/nonexistent"),
        (&["--out", "/nonexistent/x"], 6, "no folder /nonexistent"),
        (&["--out", "/proc/x"], 6, "/proc/x"),
    ] {
        desk.refused(&[&["token", "create"], words].concat(), code, sentence);
    }
    assert_eq!(
        desk.json(&["token", "list"])["items"],
        serde_json::json!([])
    );
    desk.refused(
        &["token", "revoke", "abc"],
        6,
        "no token made in this folder",
    );
}

#[test]
fn every_rule_for_peers_and_planets_is_told_in_one_sentence() {
    let desk = Desk::with_network();
    let key = crate::fake_daemon::KEY;
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let add = ["peer", "add-external", "phone", "--key"];
    for (words, sentence) in [
        (
            &[zero, "--address", "10.77.9.9"][..],
            "anybody could speak as the peer",
        ),
        (
            &[key, "--address", "192.168.1.0/24"],
            "is in no overlay or pod range",
        ),
        (
            &[
                key,
                "--address",
                "10.77.9.9",
                "--endpoint",
                "10.77.1.1:51820",
            ],
            "can't be where a peer listens",
        ),
    ] {
        desk.refused(&[&add[..], words].concat(), 3, sentence);
    }
    for (words, code, sentence) in [
        (
            &["network", "retire-planet", "planet-9"][..],
            6,
            "has no planet 'planet-9'",
        ),
        (
            &["network", "retire-planet", "planet-1"],
            3,
            "the only planet",
        ),
        (
            &["network", "add-planet", &PLANET.replace("100.1", "100.2")],
            3,
            "has the key, name or address of planet",
        ),
        (
            &["node", "revoke", "home-1"],
            4,
            "can't find the id of 'home-1'",
        ),
        (&["network", "publish"], 4, "meshd is not running"),
    ] {
        desk.refused(words, code, sentence);
    }
    assert_eq!(
        desk.network().version,
        1,
        "a refused edition leaves no trace"
    );
}

#[test]
fn names_that_lead_to_the_wrong_kind_of_peer_are_refused() {
    let desk = Desk::with_network();
    let book =
        Book::of(&desk)
            .node("do-w1", 1, "10.77.0.1/32")
            .external("old-w3", 2, "10.77.0.2/32");
    let _daemon = book.serve(&desk.socket());
    desk.refused(
        &["node", "revoke", "old-w3"],
        3,
        "old-w3 is an external peer",
    );
    desk.refused(&["peer", "remove-external", "do-w1"], 3, "do-w1 is a node");
}

#[test]
fn a_root_key_that_others_can_read_or_of_another_network_is_refused() {
    let (desk, other) = (Desk::with_network(), Desk::with_network());
    let foreign = other.lab("root.key");
    let foreign = foreign.to_str().unwrap();
    desk.refused(
        &["token", "create", "--root-key", foreign],
        1,
        "is no root key of the network",
    );
    set_mode(&desk.lab("root.key"), 0o640);
    desk.refused(
        &["token", "create"],
        5,
        "may be read by others than its owner (mode 0640)",
    );
    set_mode(&desk.lab("root.key"), 0o600);
    std::fs::write(desk.lab("root.key"), "{}").unwrap();
    desk.refused(&["token", "create"], 1, "the root key file is damaged");
    let text = std::fs::read_to_string(desk.lab("network.podmesh")).unwrap();
    std::fs::write(desk.lab("network.podmesh"), text.replace("AA", "AB")).unwrap();
    desk.refused(&["network", "show"], 1, "fails its integrity check");
}

#[test]
fn without_a_terminal_a_passphrase_comes_from_a_file_or_not_at_all() {
    let desk = Desk::new();
    let create = ["network", "create", "lab", "--planet", PLANET];
    let short = desk.write("short", "1234567\n");
    let empty = desk.write("empty", "\nnot this one\n");
    for (file, sentence) in [(&short, "fewer than 8"), (&empty, "holds no passphrase")] {
        desk.refused(
            &[&create[..], &["--passphrase-file", file]].concat(),
            3,
            sentence,
        );
    }
    set_mode(&desk.path("short"), 0o644);
    desk.refused(
        &[&create[..], &["--passphrase-file", &short]].concat(),
        5,
        "may be read by others",
    );
    assert!(
        !desk.lab("").exists(),
        "nothing is left of a refused creation"
    );
}

#[test]
fn several_networks_have_to_be_told_apart() {
    let desk = Desk::with_network();
    desk.good(&[
        "network",
        "create",
        "second",
        "--planet",
        PLANET,
        "--no-passphrase",
    ]);
    desk.refused(&["token", "create"], 3, "there are several networks");
    desk.good(&["token", "create", "--dir", desk.lab("").to_str().unwrap()]);
    let empty = Desk::new();
    empty.refused(&["token", "create"], 6, "there is no network in");
}
