//! A node joins and leaves.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podmesh_proto::id::{NetworkId, NodeId};
use podmesh_proto::key::SigningKey;
use podmesh_proto::local_api::{HealthView, Request, Response, StatusView};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use podmesh_proto::token::JoinToken;
use serde_json::Value;

use crate::desk::{Desk, set_mode};
use crate::fake_daemon::{FakeDaemon, done, failed, status};

/// A meshd that takes a token and then shows these states, the last one for ever.
fn meshd(
    socket: &Path,
    network: NetworkId,
    states: &'static [&'static str],
) -> (FakeDaemon, Arc<Mutex<Option<String>>>) {
    let (looks, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
    let seen_so_far = Arc::clone(&looks);
    let keep = Arc::clone(&taken);
    let daemon = FakeDaemon::start(socket, move |request| match request {
        Request::Join { token, name } => {
            assert_eq!(name.unwrap().as_str(), "w1");
            *keep.lock().unwrap() = Some(token);
            for _ in 0..30 {
                if seen_so_far.load(Ordering::Relaxed) >= states.len() && states.len() > 1 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            match states.last() {
                Some(&"online") => done("joined"),
                Some(&"not-joined") => failed("failed", "planet-1 says: the token is used up"),
                _ => failed("timeout", "planet-1: no answer from 198.51.100.1:7077"),
            }
        }
        Request::Status => {
            let look = looks.fetch_add(1, Ordering::Relaxed);
            let state = states.get(look).or(states.last()).unwrap();
            Response::Status(Box::new(seen(state, network)))
        }
        Request::Leave { .. } => done("left the network"),
        _ => failed("failed", "not asked for"),
    });
    (daemon, taken)
}

fn seen(state: &str, network: NetworkId) -> StatusView {
    let mut status = status(state, "planet-1 says no: the token is used up");
    match &mut status.network {
        Some(of) if state == "online" => of.id = network,
        _ => status.network = None,
    }
    status
}

fn token(desk: &Desk) -> String {
    desk.good(&["token", "create"]).trim().to_owned()
}

#[test]
fn a_join_waits_until_the_node_is_online_and_says_so() {
    let desk = Desk::with_network();
    let states = &["not-joined", "joining", "joining", "online"];
    let (_daemon, taken) = meshd(&desk.socket(), desk.network().id, states);
    let file = token(&desk);
    let said = desk.run(&["join", &file, "--name", "w1"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.out
            .starts_with("home-1 is online in network lab: addresses 10.77.0.2"),
        "{said:?}"
    );
    assert!(said.err.contains("joining network lab"), "{said:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(taken.lock().unwrap().as_deref(), Some(text.trim()));
    assert!(!(said.out + &said.err).contains("podmesh1-"));

    desk.good(&["leave", "--yes"]);
}

#[test]
fn a_refused_join_names_the_reason() {
    let desk = Desk::with_network();
    let states = &["joining", "not-joined"];
    let (_daemon, _) = meshd(&desk.socket(), desk.network().id, states);
    desk.refused(
        &["join", &token(&desk), "--name", "w1"],
        1,
        "the token is used up",
    );
}

#[test]
fn a_member_of_this_network_is_not_mistaken_for_one_that_has_just_joined() {
    let desk = Desk::with_network();
    let network = desk.network().id;
    let asked = AtomicBool::new(false);
    // Somebody else's join ends just before this one begins.
    let _daemon = FakeDaemon::start(&desk.socket(), move |request| match request {
        Request::Join { .. } => {
            std::thread::sleep(Duration::from_millis(500));
            failed("failed", "this node is a member already")
        }
        _ if asked.swap(true, Ordering::SeqCst) => {
            Response::Status(Box::new(seen("online", network)))
        }
        _ => Response::Status(Box::new(seen("not-joined", network))),
    });
    desk.refused(&["join", &token(&desk)], 1, "this node is a member already");
}

#[test]
fn a_member_is_told_so_and_not_that_it_joins() {
    let desk = Desk::with_network();
    let (_daemon, _) = meshd(&desk.socket(), desk.network().id, &["online"]);
    let said = desk.run(&["join", &token(&desk)]);
    assert_eq!(said.code, 1, "{said:?}");
    let words = "already a member of network lab as home-1\nnext: to join anew: meshctl leave\n";
    assert!(said.err.ends_with(words), "{said:?}");
    assert!(!said.err.contains("joining"), "{said:?}");
}

#[test]
fn waiting_ends_when_the_join_was_refused() {
    let desk = Desk::with_network();
    let network = desk.network().id;
    let _daemon = FakeDaemon::start(&desk.socket(), move |_| {
        let mut status = seen("not-joined", network);
        status.health = vec![HealthView {
            code: "MESH-JOIN-001".to_owned(),
            message: "the token is used up".to_owned(),
            next: Some("ask for another".to_owned()),
        }];
        Response::Status(Box::new(status))
    });
    let started = Instant::now();
    desk.refused(&["wait"], 1, "the token is used up");
    desk.refused(&["wait", "--for", "planet"], 1, "the token is used up");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_join_without_an_end_is_a_timeout() {
    let desk = Desk::with_network();
    let (_daemon, _) = meshd(&desk.socket(), desk.network().id, &["joining"]);
    let words = ["join", &token(&desk), "--name", "w1", "--timeout", "2s"];
    let said = desk.run(&words);
    assert!(
        said.err.contains("no answer from 198.51.100.1:7077"),
        "{said:?}"
    );
    assert!(
        said.err.contains("next: ") && said.err.contains("meshctl leave"),
        "{said:?}"
    );
    desk.refused(&words, 7, "this node is not online");

    let text = desk.good(&["token", "create", "--out", "-"]);
    let said = desk.run_with(&["join", "-", "--name", "w1", "--no-wait"], &text);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("next: meshctl wait"), "{said:?}");
}

#[test]
fn a_join_that_does_not_wait_has_handed_over_the_token() {
    let desk = Desk::with_network();
    let (network, taken) = (desk.network().id, Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&taken);
    // An earlier join is under way, which must not be mistaken for this one.
    let daemon = FakeDaemon::start(&desk.socket(), move |request| match request {
        Request::Join { .. } => {
            count.fetch_add(1, Ordering::Relaxed);
            done("joined")
        }
        _ => Response::Status(Box::new(seen("joining", network))),
    });
    let file = token(&desk);
    for _ in 0..40 {
        desk.good(&["join", &file, "--name", "w1", "--no-wait"]);
    }
    // Its end waits for whatever was sent.
    drop(daemon);
    assert_eq!(taken.load(Ordering::Relaxed), 40);
}

/// The same token, signed anew with an end in the past.
fn expired(desk: &Desk, token: &str) -> String {
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(desk.lab("root.key")).unwrap()).unwrap();
    let root = file["seed"]["seed"].as_str().unwrap();
    let root = SigningKey::from_seed(root.parse::<NodeId>().unwrap().0);
    let mut token: JoinToken = token.parse().unwrap();
    let (_, mut grant) = token.verify().unwrap();
    grant.expires = UnixSeconds(1_000_000_000);
    token.grant = Signed::seal(&grant, &root).unwrap();
    token.to_text().unwrap().to_string()
}

#[test]
fn a_bad_token_is_refused_before_meshd_is_asked() {
    let desk = Desk::with_network();
    let file = token(&desk);
    let text = std::fs::read_to_string(&file).unwrap();
    let damaged = desk.write("damaged", &text.replacen('A', "B", 1));
    desk.refused(&["join", &damaged], 3, "the join token can't be used");
    let cut = desk.write("cut", &text[..text.len() / 2]);
    desk.refused(&["join", &cut], 3, "the join token can't be used");
    desk.refused(&["join", &desk.at("nowhere")], 6, "can't read");
    let expired = desk.write("expired", &expired(&desk, &text));
    desk.refused(
        &["join", &expired],
        3,
        "the join token expired at 2001-09-09T01:46:40Z",
    );
    let said = desk.run(&["join", &expired]);
    assert!(said.err.contains("next: put the clock right"), "{said:?}");
    // Readable by others: a remark, because it is only one use of one hour.
    set_mode(Path::new(&file), 0o644);
    let said = desk.run(&["join", &file]);
    assert_eq!(said.code, 4);
    assert!(said.err.contains("may be read by others"), "{said:?}");
}
