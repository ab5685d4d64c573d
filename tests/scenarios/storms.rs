//! One rogue member that does what members do, far too often: what the others notice of it, and what
//! reaches a network that has nothing to do with any of this.
//!
//! The short form plays the worst kinds for seconds. The long ones play all kinds for a minute each, in a
//! mesh of ten. `STORM_SECONDS` makes them longer or shorter; in less than a minute the first places that are
//! tried in a wide network are more than may come in that time.
#![allow(
    clippy::print_stdout,
    reason = "the figures are what a scenario is read for"
)]

mod measure;
mod stage;

use serde_json::{Value, json};

use measure::Figures;
use stage::{BYSTANDER4, BYSTANDER6, Stage, THICKET};

/// A storm: what it is called, what the rogue is told, and how often in a second.
struct Kind {
    name: &'static str,
    order: Value,
    rate: u32,
    /// By the rogue that answers nobody.
    mute: bool,
}

fn kind(name: &'static str, order: Value, rate: u32) -> Kind {
    Kind {
        name,
        order,
        rate,
        mute: false,
    }
}

/// Places at which the rogue isn't, told twenty times a second.
fn places(name: &'static str, range: &str, punch: bool) -> Kind {
    let order = json!({ "kind": "candidates", "range": range, "punch": punch });
    Kind {
        mute: true,
        ..kind(name, order, 20)
    }
}

fn handshakes() -> Value {
    json!({ "kind": "handshakes", "to": "alice", "from": BYSTANDER4 })
}

fn words(word: &'static str, from: Option<&str>) -> Value {
    json!({ "kind": "words", "to": "alice", "word": word, "from": from })
}

#[test]
fn a_member_that_storms_is_hardly_noticed() {
    let stage = Stage::of_three();
    let kinds = [
        kind("claims", json!({ "kind": "claims" }), 1_500),
        places("candidates in a /24", BYSTANDER4, true),
        kind("handshakes from elsewhere", handshakes(), 1_000),
    ];
    play(&stage, &kinds);
}

#[test]
#[ignore = "a minute for each kind; `make soak` plays it"]
fn storms_at_the_planet() {
    let kinds = [
        kind("claims", json!({ "kind": "claims" }), 1_500),
        kind("departures of nobody", json!({ "kind": "departures" }), 150),
        kind("memberships", json!({ "kind": "memberships" }), 150),
        kind("comings", json!({ "kind": "comings" }), 50),
    ];
    play(&Stage::of_ten(), &kinds);
}

#[test]
#[ignore = "a minute for each kind; `make soak` plays it"]
fn storms_of_false_candidates() {
    let kinds = [
        places("candidates at an address", "198.18.0.9/32", false),
        places("candidates in a /24", BYSTANDER4, false),
        places("candidates in a /64", BYSTANDER6, false),
        places("candidates to punch", BYSTANDER4, true),
        places("candidates in a /16", "198.18.0.0/16", false),
        places("candidates in a /48", "2001:db8:ffff::/48", true),
    ];
    play(&Stage::of_ten(), &kinds);
}

#[test]
#[ignore = "a minute for each kind; `make soak` plays it"]
fn storms_in_a_tunnel() {
    let words = |word| kind(word, words(word, None), 5_000);
    let kinds = [
        words("statement"),
        words("endpoints"),
        words("left"),
        words("echo"),
        words("reply"),
        words("size"),
        words("summary"),
        words("lacking"),
    ];
    play(&Stage::of_ten(), &kinds);
}

#[test]
#[ignore = "a minute for each kind; `make soak` plays it"]
fn storms_at_the_door_of_a_member() {
    let from = |kind: &str, range: &str| json!({ "kind": kind, "to": "alice", "from": range });
    let kinds = [
        kind(
            "echoes from elsewhere",
            words("echo", Some(BYSTANDER4)),
            5_000,
        ),
        kind(
            "sizes from elsewhere",
            words("size", Some(BYSTANDER4)),
            5_000,
        ),
        kind("probes from elsewhere", from("probes", BYSTANDER4), 2_000),
        kind("handshakes from elsewhere", handshakes(), 1_000),
        kind("strangers' handshakes", from("strangers", THICKET), 5_000),
        kind(
            "strangers' handshakes from elsewhere",
            from("strangers", BYSTANDER4),
            5_000,
        ),
    ];
    play(&Stage::of_ten(), &kinds);
}

#[test]
#[ignore = "a minute for each kind; `make soak` plays it"]
fn storms_over_the_relay_and_in_the_doorway() {
    let kinds = [
        kind(
            "sessions",
            json!({ "kind": "sessions", "count": 10 }),
            5_000,
        ),
        kind(
            "a place elsewhere",
            json!({ "kind": "place", "victim": "198.18.0.9:9999" }),
            2_000,
        ),
        kind(
            "questions from elsewhere",
            json!({ "kind": "observe", "from": BYSTANDER4 }),
            2_000,
        ),
        kind(
            "the doorway",
            json!({ "kind": "doorway", "from": THICKET, "count": 1_280 }),
            200,
        ),
    ];
    play(&Stage::of_ten(), &kinds);
}

/// Each after the other. What happens in peace is seen before all of them, and in the long forms again before
/// each, as the machine may have other work from time to time.
fn play(stage: &Stage, kinds: &[Kind]) {
    let mut peace = stage.watch(None);
    let mut all: Vec<(&Kind, Figures, Figures)> = Vec::new();
    for kind in kinds {
        if stage.is_long() && !all.is_empty() {
            peace = stage.watch(None);
        }
        all.push((kind, peace.clone(), stage.watch(Some(kind))));
    }
    let mut complaints = Vec::new();
    for (kind, peace, figures) in &mut all {
        stage.count_pings(peace);
        stage.count_pings(figures);
        println!("figure in peace: {peace}");
        println!("figure {}, {} a second: {figures}", kind.name, kind.rate);
        let heard = figures.complaints(peace).into_iter();
        complaints.extend(heard.map(|complaint| format!("{}: {complaint}", kind.name)));
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}
