//! What the root decides about somebody: who is meant, whether it is wanted, and what of it is said.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use podmesh_proto::id::NodeId;
use podmesh_proto::key::PublicKey;
use podmesh_proto::network::RootStatement;
use podmesh_proto::time::UnixSeconds;

use crate::book::Book;
use crate::desk::{Desk, PLANET, Said};
use crate::fake_daemon::KEY;

/// A network with a node, known to a planet at `planet.sock` alone, as on the machine of the README.
fn beside_a_planet() -> (Desk, Book) {
    let desk = Desk::with_network();
    let book = Book::of(&desk)
        .node("ram1", 0x1a, "10.77.0.7/32")
        .node("home", 0x2b, "10.42.3.0/24")
        .external("phone", 0x3c, "10.77.9.9/32");
    (desk, book)
}

#[test]
fn who_is_meant_is_found_by_name_or_short_id_where_only_a_planet_is() {
    let (desk, book) = beside_a_planet();
    let _planet = book.serve(&desk.path("planet.sock"));
    let socket = ["--planet-socket", &desk.at("planet.sock")];
    let say = |words: &[&str]| {
        let before = book.said().len();
        let said = desk.run(&[words, &socket].concat());
        assert_eq!(said.code, 0, "{words:?}: {said:?}");
        assert_eq!(book.said().len(), before + 1);
        (book.said().pop().unwrap(), said.err)
    };
    for meant in ["ram1", "1a1a1a1a", &"1a".repeat(32)] {
        let (said, words) = say(&["node", "revoke", meant, "--yes"]);
        let revoked =
            matches!(said, RootStatement::RevokeNode { node, .. } if node == NodeId([0x1a; 32]));
        assert!(revoked, "{meant}: {said:?}");
        assert!(words.contains("node ram1 (1a1a1a1a) revoked"), "{words}");
    }
    let (said, _) = say(&["node", "resolve", "home"]);
    assert!(matches!(said, RootStatement::Resolve { node, .. } if node == NodeId([0x2b; 32])));
    let (said, _) = say(&["peer", "remove-external", "phone", "--yes"]);
    let RootStatement::RevokeExternal {
        wireguard, issued, ..
    } = said
    else {
        panic!("{said:?}");
    };
    assert_eq!(wireguard, PublicKey([0x3c; 32]));
    assert!(
        issued > desk.network().issued,
        "not before the peer was named"
    );
    for (words, code, sentence) in [
        (
            &["node", "revoke", "1a1a1a1", "-y"][..],
            6,
            "no node is called '1a1a1a1'",
        ),
        (
            &["node", "revoke", "ram2", "-y"],
            6,
            "no node is called 'ram2'",
        ),
        (
            &["node", "revoke", "phone", "-y"],
            3,
            "phone is an external peer",
        ),
        (
            &["peer", "remove-external", "ram1", "-y"],
            3,
            "ram1 is a node",
        ),
        (
            &["peer", "remove-external", "tablet", "-y"],
            6,
            "known here: phone",
        ),
    ] {
        desk.refused(&[words, &socket].concat(), code, sentence);
    }
}

#[test]
fn an_external_peer_doesnt_get_what_somebody_has() {
    let (desk, book) = beside_a_planet();
    let add = |name: &str, key: &str, address: &str| {
        desk.run(&[
            "peer",
            "add-external",
            name,
            "--key",
            key,
            "--address",
            address,
        ])
    };
    let theirs = PublicKey([0x2b; 32]).to_string();
    {
        let _meshd = book.serve(&desk.socket());
        for (name, key, address, holder) in [
            ("thief", KEY, "10.77.0.7", "node ram1 has 10.77.0.7/32"),
            ("thief", KEY, "10.77.0.0/24", "node ram1 has 10.77.0.7/32"),
            ("thief", KEY, "10.42.3.64/26", "node home has 10.42.3.0/24"),
            ("thief", KEY, "10.77.9.9", "external peer phone has"),
            ("ram1", KEY, "10.77.9.1", "node ram1 has the name"),
            (
                "thief",
                &theirs,
                "10.77.9.1",
                "node home has the WireGuard key",
            ),
        ] {
            let said = add(name, key, address);
            assert_eq!(said.code, 3, "{said:?}");
            assert!(
                said.err.contains(holder) && said.err.contains("next: "),
                "{said:?}"
            );
        }
        assert!(book.said().is_empty());
        assert_eq!(add("tablet", KEY, "10.77.9.1").code, 0);
    }
    // The folder remembers, where nobody can be asked.
    let out = desk.at("out");
    let file = ["--out", &out];
    let again = [
        "peer",
        "add-external",
        "other",
        "--key",
        &theirs,
        "--address",
        "10.77.9.1",
    ];
    desk.refused(
        &[&again[..], &file].concat(),
        3,
        "external peer tablet has 10.77.9.1/32",
    );
    desk.good(&[&["peer", "remove-external", "tablet", "--yes"][..], &file].concat());
    std::fs::remove_file(&out).unwrap();
    let said = desk.run(&[&again[..], &file].concat());
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("nobody here could be asked"), "{said:?}");
}

const GRAVE: [&[&str]; 6] = [
    &["leave"],
    &["leave", "--forget-keys"],
    &["node", "revoke", "ram1"],
    &["token", "revoke", "TOKEN"],
    &["network", "retire-planet", "two"],
    &["peer", "remove-external", "phone"],
];

/// With a second planet and a join token, so that everything grave is possible; the token's id.
fn with_much_to_lose() -> (Desk, Book, String) {
    let (desk, book) = beside_a_planet();
    let second = format!("two={}@192.0.2.9:7077", "cd".repeat(32));
    let _meshd = book.serve(&desk.socket());
    desk.good(&["network", "add-planet", &second]);
    desk.good(&["token", "create"]);
    let token = desk.json(&["token", "list"])["items"][0]["id"].clone();
    let token = token.as_str().unwrap().to_owned();
    (desk, book, token)
}

#[test]
fn nothing_grave_happens_without_a_terminal_unless_it_is_said_twice() {
    let (desk, book, token) = with_much_to_lose();
    let _meshd = book.serve(&desk.socket());
    let before = book.said().len();
    for words in GRAVE {
        let words: Vec<&str> = words
            .iter()
            .map(|word| if *word == "TOKEN" { &token } else { *word })
            .collect();
        desk.refused(&words, 3, "asks for a confirmation");
        assert_eq!(book.said().len(), before, "{words:?}");
    }
    assert_eq!(desk.json(&["token", "list"])["items"][0]["state"], "open");
}

/// Runs meshctl at a terminal, where somebody types.
fn at_a_terminal(desk: &Desk, words: &[&str], typed: &str) -> Said {
    let program = env!("CARGO_BIN_EXE_meshctl");
    let command = format!(
        "{program} {} --socket {}",
        words.join(" "),
        desk.at("meshd.sock")
    );
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("HOME", desk.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(typed.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn at_a_terminal_everything_grave_is_asked_for_by_name() {
    let (desk, book, token) = with_much_to_lose();
    let _meshd = book.serve(&desk.socket());
    let before = book.said().len();
    let named = ["", "", "ram1", &token[..8], "two", "phone"];
    for (words, named) in GRAVE.iter().zip(named).skip(2) {
        let words: Vec<&str> = words
            .iter()
            .map(|word| if *word == "TOKEN" { &token } else { *word })
            .collect();
        for no in ["n\n", "\n", "yeah\n"] {
            let said = at_a_terminal(&desk, &words, no);
            assert_eq!(said.code, 1, "{words:?}: {said:?}");
            assert!(
                said.out.contains("Go on? [y/N]") && said.out.contains(named),
                "{said:?}"
            );
            assert!(said.out.contains("nothing was changed"), "{said:?}");
        }
        assert_eq!(book.said().len(), before, "{words:?}");
    }
    let said = at_a_terminal(&desk, GRAVE[2], "y\n");
    assert_eq!((said.code, book.said().len()), (0, before + 1), "{said:?}");
}

#[test]
fn a_passphrase_that_is_too_short_is_refused_before_it_is_typed_again() {
    let desk = Desk::new();
    let program = env!("CARGO_BIN_EXE_meshctl");
    let command = format!("{program} network create lab --planet {PLANET}");
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("HOME", desk.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // What is typed before the question is thrown away with the echo.
    let (mut screen, mut said) = (child.stdout.take().unwrap(), Vec::new());
    while !said.ends_with(b"root key: ") {
        let mut byte = [0];
        screen.read_exact(&mut byte).unwrap();
        said.extend(byte);
    }
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(b"short\n").unwrap();
    screen.read_to_end(&mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{said}");
    assert!(said.contains("fewer than 8"), "{said}");
    assert!(!said.contains("The same again"), "{said}");
    drop(keyboard);
}

#[test]
fn a_word_that_is_only_a_little_alike_leads_to_nothing_grave() {
    let desk = Desk::new();
    for (words, tip, offered) in [
        (&["rename"][..], "leave", false),
        (&["lease"], "leave", true),
        (&["node", "remove"], "revoke", false),
        (&["token", "rewoke"], "revoke", true),
        (&["statu"], "status", true),
        (&["doctor"], "status", true),
        (&["netcheck"], "peers", true),
        (&["check"], "leave", false),
        (&["network", "retire-planets"], "retire-planet", true),
    ] {
        let said = desk.run(words);
        assert_eq!(said.code, 3, "{said:?}");
        assert_eq!(
            said.err.contains(&format!("'{tip}'")),
            offered,
            "{words:?}: {said:?}"
        );
    }
}

#[test]
fn tokens_show_their_uses_as_far_as_somebody_knows_them() {
    let desk = Desk::with_network();
    desk.good(&["token", "create", "--uses", "2"]);
    let listed =
        |args: &[&str]| desk.json(&[&["token", "list"], args].concat())["items"][0].clone();
    let item = listed(&[]);
    assert_eq!(
        (&item["state"], &item["used"]),
        (&"not-expired".into(), &serde_json::Value::Null)
    );
    let said = desk.run(&["token", "list"]);
    assert!(said.out.contains("unknown of 2"), "{said:?}");
    assert!(said.err.contains("meshd is not running"), "{said:?}");
    let token = item["id"].as_str().unwrap().parse().unwrap();
    for (used, counts, state, words) in [
        (0, true, "open", "0 of 2"),
        (1, true, "open", "1 of 2"),
        (2, true, "spent", "2 of 2"),
        (0, false, "not-expired", "unknown of 2"),
        (1, false, "not-expired", "at least 1 of 2"),
        (2, false, "spent", "2 of 2"),
    ] {
        let book = Book::of(&desk).used(token, used);
        let book = if counts { book } else { book.without_counts() };
        let _planet = book.serve(&desk.path("planet.sock"));
        let socket = ["--planet-socket", &desk.at("planet.sock")];
        let item = listed(&socket);
        assert_eq!(
            (&item["state"], &item["used"]),
            (&state.into(), &used.into()),
            "{words}"
        );
        let text = desk.good(&[&["token", "list"][..], &socket].concat());
        assert!(text.contains(words), "{text}");
    }
    // A planet that took over since doesn't know of all uses, and refuses the tokens with a single one.
    desk.good(&["token", "create"]);
    let book = Book::of(&desk).unknown_until(UnixSeconds(u64::MAX));
    let _planet = book.serve(&desk.path("planet.sock"));
    let items = desk.json(&["token", "list", "--planet-socket", &desk.at("planet.sock")]);
    let mut states: Vec<(u64, &str)> = items["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (
                item["uses"].as_u64().unwrap(),
                item["state"].as_str().unwrap(),
            )
        })
        .collect();
    states.sort_unstable();
    assert_eq!(states, [(1, "spent"), (2, "open")]);
    let said = desk.run(&["token", "create", "--relay"]);
    assert_eq!(said.code, 3, "a switch that nobody reads is none: {said:?}");
}
