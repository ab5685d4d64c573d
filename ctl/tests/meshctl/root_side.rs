//! What the root makes: networks, tokens, statements, and their way back from paper.

use std::path::Path;
use std::sync::{Arc, Mutex};

use podmesh_proto::local_api::Request;
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::token::JoinToken;

use crate::desk::{Desk, PLANET, mode, statement};
use crate::fake_daemon::{FakeDaemon, KEY, done, failed};

fn token(path: &Path) -> JoinToken {
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

#[test]
fn a_created_network_verifies_and_its_files_are_private() {
    let desk = Desk::new();
    let said = desk.good(&[
        "network",
        "create",
        "lab",
        "--planet",
        PLANET,
        "--no-passphrase",
        "--overlay",
        "10.1.0.0/16",
        "--services",
        "10.43.0.0/16",
        "--second-root",
    ]);
    assert_eq!(said.matches("Recovery form of").count(), 2);
    assert!(said.contains("planet adopt network.podmesh"), "{said}");
    let network = desk.network();
    assert_eq!((network.name.as_str(), network.version), ("lab", 1));
    assert_eq!(network.ranges.overlay4.to_string(), "10.1.0.0/16");
    assert_eq!(network.ranges.pods4.to_string(), "10.42.0.0/16");
    assert_eq!(network.planets[0].name.as_str(), "planet-1");
    assert_eq!(network.planets[0].address, "198.51.100.1:7077");
    assert_eq!(mode(&desk.lab("")), 0o700);
    for file in ["root.key", "root-2.key", "network.podmesh"] {
        assert_eq!(mode(&desk.lab(file)), 0o600, "{file}");
    }
    let second = desk.lab("root-2.key");
    let out = desk.at("by-second");
    desk.good(&[
        "token",
        "create",
        "--root-key",
        second.to_str().unwrap(),
        "--out",
        &out,
    ]);
    token(Path::new(&out)).verify().unwrap();
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let desk = Desk::with_network();
    let before = std::fs::read(desk.lab("root.key")).unwrap();
    let again = [
        "network",
        "create",
        "lab",
        "--planet",
        PLANET,
        "--no-passphrase",
    ];
    desk.refused(&again, 1, "exists already and is not empty");
    assert_eq!(std::fs::read(desk.lab("root.key")).unwrap(), before);
    let file = desk.write("token", "precious");
    desk.refused(&["token", "create", "--out", &file], 1, "exists already");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(
        desk.json(&["token", "list"])["items"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    // An empty folder is nothing: it is taken over and closed to others.
    let empty = desk.path("empty");
    std::fs::create_dir(&empty).unwrap();
    desk.good(&[&again[..], &["--dir", empty.to_str().unwrap()]].concat());
    assert_eq!(mode(&empty), 0o700);
}

#[test]
fn a_token_verifies_and_grants_what_was_asked() {
    let desk = Desk::with_network();
    let out = desk.at("home.token");
    let words = [
        "token",
        "create",
        "--uses",
        "3",
        "--expires",
        "10m",
        "--site",
        "home",
        "--group",
        "b",
        "--group",
        "a",
        "--range",
        "10.42.0.0/20",
        "--membership",
        "90d",
        "--out",
        &out,
    ];
    desk.good(&words);
    assert_eq!(mode(Path::new(&out)), 0o600);
    let (network, grant) = token(Path::new(&out)).verify().unwrap();
    assert_eq!(network, desk.network());
    assert_eq!(
        (grant.uses, grant.relay, grant.membership),
        (3, false, Some(7_776_000))
    );
    assert_eq!(grant.expires.0 - grant.issued.0, 600);
    assert_eq!(grant.site.unwrap().as_str(), "home");
    assert_eq!(
        grant
            .groups
            .iter()
            .map(|name| name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(grant.ranges[0].to_string(), "10.42.0.0/20");

    let old = "ab".repeat(32);
    let text = desk.good(&[
        "token",
        "create",
        "--for",
        "w1",
        "--replaces",
        &old,
        "--out",
        "-",
    ]);
    let (_, grant) = text.parse::<JoinToken>().unwrap().verify().unwrap();
    assert_eq!((grant.uses, grant.for_name.unwrap().as_str()), (1, "w1"));
    assert_eq!(grant.replaces.unwrap().to_string(), old);
    let default = desk.good(&["token", "create"]);
    assert_eq!(mode(Path::new(default.trim())), 0o600);
}

#[test]
fn tokens_are_listed_without_their_secrets_and_can_be_revoked() {
    let desk = Desk::with_network();
    let text = desk.good(&["token", "create", "--out", "-"]);
    let listed = desk.json(&["token", "list"]);
    let item = &listed["items"][0];
    assert_eq!(
        (&listed["schema"], &item["state"]),
        (&"podmesh.tokens/v1".into(), &"not-expired".into())
    );
    let record = std::fs::read_to_string(desk.lab("tokens.json")).unwrap();
    let seed = text.parse::<JoinToken>().unwrap();
    let seed: String = seed
        .key
        .seed()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(!record.contains(&seed));
    let id = item["id"].as_str().unwrap();
    let out = desk.at("revocation");
    desk.good(&["token", "revoke", &id[..6], "--yes", "--out", &out]);
    let said = desk.network().verify(&statement(Path::new(&out))).unwrap();
    let revoked =
        matches!(said, RootStatement::RevokeToken { token, .. } if token.to_string() == id);
    assert!(revoked, "{said:?}");
    assert_eq!(
        desk.json(&["token", "list"])["items"][0]["state"],
        "revoked"
    );
}

#[test]
fn a_sealed_root_key_opens_by_its_passphrase_and_comes_back_from_paper() {
    let desk = Desk::new();
    let right = desk.write("right", "correct horse\n");
    let wrong = desk.write("wrong", "correct horsf\n");
    let said = desk.good(&[
        "network",
        "create",
        "lab",
        "--planet",
        PLANET,
        "--passphrase-file",
        &right,
    ]);
    desk.refused(
        &["token", "create", "--passphrase-file", &wrong],
        1,
        "wrong passphrase",
    );
    desk.good(&["token", "create", "--passphrase-file", &right]);

    let form = desk.write("form", &said);
    let (network, document) = (desk.network(), desk.at("document"));
    desk.good(&["network", "show", "--out", &document]);
    std::fs::remove_dir_all(desk.lab("")).unwrap();
    let recover = [
        "network",
        "recover",
        "--document",
        &document,
        "--no-passphrase",
        "--form-file",
    ];
    let other = Desk::with_network();
    let elsewhere = other.lab("network.podmesh");
    let foreign = [
        &recover[..2],
        &["--document", elsewhere.to_str().unwrap()],
        &recover[4..],
        &[&form],
    ]
    .concat();
    desk.refused(&foreign, 1, "of another network");
    let damaged = desk.write("damaged", &said.replace("    ", "    7").replace("70", "0"));
    desk.refused(&[&recover[..], &[&damaged]].concat(), 1, "recovery form");
    desk.good(&[&recover[..], &[&form]].concat());
    assert_eq!(desk.network(), network);
    let out = desk.at("after");
    desk.good(&["token", "create", "--out", &out]);
    token(Path::new(&out)).verify().unwrap();
}

#[test]
fn a_network_comes_back_from_its_backup() {
    let desk = Desk::with_network();
    desk.good(&["token", "create"]);
    let (network, file) = (desk.network(), desk.at("backup"));
    desk.good(&["network", "backup", &file]);
    assert_eq!(mode(Path::new(&file)), 0o600);
    desk.refused(
        &["network", "restore", &file],
        1,
        "exists already and is not empty",
    );
    // The key may be kept elsewhere; then the backup is none of it.
    let elsewhere = desk.at("root.key");
    std::fs::rename(desk.lab("root.key"), &elsewhere).unwrap();
    let said = desk.run(&["network", "backup", &desk.at("keyless")]);
    assert!(
        said.code == 0 && said.err.contains("the root key is not in it"),
        "{said:?}"
    );
    std::fs::rename(&elsewhere, desk.lab("root.key")).unwrap();
    std::fs::remove_dir_all(desk.lab("")).unwrap();
    let garbage = desk.write("garbage", "no backup\n");
    desk.refused(
        &["network", "restore", &garbage],
        1,
        "it is no backup of a network",
    );
    desk.good(&["network", "restore", &file]);
    assert_eq!(desk.network(), network);
    assert_eq!(
        desk.json(&["token", "list"])["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    desk.good(&["token", "create"]);
    let evil = std::fs::read_to_string(&file)
        .unwrap()
        .replace("tokens.json", "../evil.key");
    let evil = desk.write("evil", &evil);
    desk.refused(
        &["network", "restore", &evil, "--dir", &desk.at("x")],
        1,
        "holds no file",
    );
}

/// A daemon that keeps the statements it is given.
fn collector(socket: &Path) -> (FakeDaemon, Arc<Mutex<Vec<Signed<RootStatement>>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    let daemon = FakeDaemon::start(socket, move |request| match request {
        Request::Statement { statement } => {
            keep.lock()
                .unwrap()
                .push(Signed::from_base64(&statement).unwrap());
            done("taken")
        }
        _ => failed("failed", "not asked for"),
    });
    (daemon, kept)
}

#[test]
fn statements_reach_meshd_or_a_planet_signed() {
    let desk = Desk::with_network();
    let (_meshd, kept) = collector(&desk.socket());
    let (_planet, kept_by_planet) = collector(&desk.path("planet.sock"));
    let (node, planet) = ("cd".repeat(32), desk.at("planet.sock"));
    desk.good(&["node", "revoke", &node, "--yes"]);
    desk.good(&["node", "resolve", &node]);
    desk.good(&[
        "peer",
        "add-external",
        "phone",
        "--key",
        KEY,
        "--address",
        "10.77.9.9",
        "--endpoint",
        "192.0.2.1:51820",
    ]);
    desk.good(&[
        "peer",
        "remove-external",
        KEY,
        "-y",
        "--planet-socket",
        &planet,
    ]);
    let network = desk.network();
    let said = kept.lock().unwrap();
    let said: Vec<RootStatement> = said
        .iter()
        .map(|said| network.verify(said).unwrap())
        .collect();
    let [
        RootStatement::RevokeNode { node: revoked, .. },
        RootStatement::Resolve { .. },
        RootStatement::External(phone),
    ] = said.as_slice()
    else {
        panic!("{said:?}");
    };
    assert_eq!(revoked.to_string(), node);
    assert_eq!(phone.prefixes[0].to_string(), "10.77.9.9/32");
    let by_planet = network.verify(&kept_by_planet.lock().unwrap()[0]).unwrap();
    assert!(matches!(by_planet, RootStatement::RevokeExternal { .. }));
}

#[test]
fn planets_change_by_new_editions_that_need_no_new_join() {
    let desk = Desk::with_network();
    let (daemon, kept) = collector(&desk.socket());
    let (old, new) = (
        desk.network(),
        format!("b={}@[2001:db8::1]:7077", "cd".repeat(32)),
    );
    desk.good(&["network", "add-planet", &new]);
    desk.good(&["network", "retire-planet", "planet-1", "--yes"]);
    let third = format!("c={}@planet.example.org:443", "ef".repeat(32));
    desk.good(&["network", "add-planet", &third, "--replaces", "b"]);
    for (number, said) in kept.lock().unwrap().iter().enumerate() {
        let RootStatement::Network(network) = old.verify(said).unwrap() else {
            panic!("no network");
        };
        assert_eq!(network.version, u64::try_from(number).unwrap() + 2);
    }
    let network = desk.network();
    assert_eq!(network.planets.len(), 1);
    assert_eq!(network.planets[0].address, "planet.example.org:443");
    assert_eq!(network.retired.len(), 2);
    drop(daemon);
    // Signed and kept, also if nobody can take it yet.
    desk.refused(
        &["network", "add-planet", &new],
        4,
        "edition 5 of network lab is signed and kept",
    );
    let (_daemon, kept) = collector(&desk.socket());
    desk.good(&["network", "publish"]);
    desk.refused(
        &["network", "add-planet", &new],
        3,
        "planet b is in edition 5 of network lab already",
    );
    let published = Network::from_statement(&kept.lock().unwrap()[0]).unwrap();
    assert_eq!((published.version, published.retired.len()), (5, 1));
}

#[test]
fn of_several_statement_files_the_good_ones_are_published() {
    let desk = Desk::with_network();
    let (_daemon, kept) = collector(&desk.socket());
    let good = desk.at("good");
    desk.good(&["node", "revoke", &"cd".repeat(32), "--yes", "--out", &good]);
    let bad = desk.write("bad", "podmesh-statement1-AAAA");
    assert_eq!(desk.run(&["network", "publish", &good, &bad]).code, 9);
    assert_eq!(desk.run(&["network", "publish", &bad, &bad]).code, 1);
    let other = Desk::with_network();
    let foreign = other.lab("network.podmesh").display().to_string();
    desk.refused(
        &["network", "publish", &foreign],
        1,
        "it is of another network",
    );
    let said = desk.run(&[
        "node",
        "revoke",
        &"cd".repeat(32),
        "--yes",
        "--out",
        &desk.at("later"),
    ]);
    assert!(said.err.contains("not in force yet"), "{said:?}");
    assert_eq!(kept.lock().unwrap().len(), 1);
}
