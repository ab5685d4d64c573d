//! Editions of the network are never lost: whoever makes one builds on the newest.

use crate::book::Book;
use crate::desk::Desk;
use crate::fake_daemon::{FakeDaemon, failed};

fn planet(name: &str, byte: &str) -> String {
    format!("{name}={}@{name}.example:7077", byte.repeat(32))
}

fn names(network: &podmesh_proto::network::Network) -> Vec<&str> {
    let planets = network.planets.iter();
    planets.map(|planet| planet.name.as_str()).collect()
}

/// The network has an edition that this folder doesn't know, as after a restored backup.
fn behind(book: &Book, desk: &Desk) {
    book.edition(desk, |network| {
        network.version += 1;
        let mut second = network.planets[0].clone();
        second.id.0[0] ^= 1;
        second.name = "two".parse().unwrap();
        second.address = "192.0.2.2:7077".to_owned();
        network.planets.push(second);
    });
}

#[test]
fn a_change_is_made_to_the_newest_edition_that_somebody_here_has() {
    let desk = Desk::with_network();
    let book = Book::of(&desk);
    behind(&book, &desk);
    let meshd = book.serve(&desk.socket());
    let said = desk.run(&["network", "add-planet", &planet("three", "cd")]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.err
            .contains("edition 2 of network lab taken from meshd"),
        "{said:?}"
    );
    assert_eq!(names(&book.network()), ["planet-1", "two", "three"]);
    assert_eq!(book.network().version, 3);
    assert_eq!(desk.network(), book.network());
    drop(meshd);
    // The same where only a planet is.
    behind(&book, &desk);
    let socket = desk.at("planet.sock");
    let _planet = book.serve(&desk.path("planet.sock"));
    let words = [
        "network",
        "retire-planet",
        "three",
        "--yes",
        "--planet-socket",
        &socket,
    ];
    desk.good(&words);
    assert_eq!(book.network().version, 5);
    assert_eq!(names(&book.network()), ["planet-1", "two", "two"]);
}

#[test]
fn two_editions_of_one_number_are_told_apart_and_none_is_lost() {
    let desk = Desk::with_network();
    let book = Book::of(&desk);
    behind(&book, &desk);
    // Made where nobody could be asked.
    let out = desk.at("edition");
    let said = desk.run(&[
        "network",
        "add-planet",
        &planet("three", "cd"),
        "--out",
        &out,
    ]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("nobody here could be asked"), "{said:?}");
    let own = std::fs::read_to_string(desk.lab("network.podmesh")).unwrap();
    let _meshd = book.serve(&desk.socket());
    for change in [
        ["network", "publish", &out],
        ["network", "add-planet", &planet("four", "ef")],
    ] {
        desk.refused(&change, 1, "another edition");
        assert_eq!(book.network().version, 2);
        assert_eq!(
            std::fs::read_to_string(desk.lab("network.podmesh")).unwrap(),
            own
        );
    }
    let said = desk.run(&["network", "pull"]);
    assert_eq!(said.code, 0, "{said:?}");
    let kept = desk.lab("network.podmesh.set-aside");
    assert!(said.err.contains(&kept.display().to_string()), "{said:?}");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), own);
    assert_eq!(desk.network(), book.network());
    desk.good(&["network", "add-planet", &planet("three", "cd")]);
    assert_eq!(names(&book.network()), ["planet-1", "two", "three"]);
    let said = desk.run(&["network", "pull"]);
    assert!(said.err.contains("is the newest"), "{said:?}");
}

#[test]
fn a_second_edition_that_nobody_has_could_overtake_a_strangers_and_is_not_made() {
    let desk = Desk::with_network();
    let (book, out) = (Book::of(&desk), desk.at("two"));
    desk.good(&["network", "add-planet", &planet("two", "cd"), "--out", &out]);
    let third = [
        "network",
        "add-planet",
        &planet("three", "ef"),
        "--out",
        &desk.at("three"),
    ];
    desk.refused(&third, 4, "nobody is known to have it");
    assert_eq!(desk.network().version, 2);
    // It has been carried there, and what the network has is carried back.
    let meshd = book.serve(&desk.socket());
    desk.good(&["network", "publish", &out]);
    drop(meshd);
    desk.good(&["network", "pull", "--document", &out]);
    desk.good(&third);
    assert_eq!(desk.network().version, 3);
    desk.refused(
        &["network", "pull", "--document", &out],
        1,
        "the folder has edition 3",
    );
    desk.refused(&["network", "pull"], 4, "nobody here could be asked");
    // Published by its own folder, it is known to be had.
    let meshd = book.serve(&desk.socket());
    desk.good(&["network", "publish"]);
    drop(meshd);
    desk.good(&[
        "network",
        "add-planet",
        &planet("four", "12"),
        "--out",
        &desk.at("four"),
    ]);
}

#[test]
fn a_daemon_of_another_network_or_of_none_is_no_source() {
    let (desk, other) = (Desk::with_network(), Desk::with_network());
    let foreign = Book::of(&other);
    {
        let _meshd = foreign.serve(&desk.socket());
        desk.refused(&["network", "pull"], 4, "in another network than lab");
    }
    let _meshd = FakeDaemon::start(&desk.socket(), |_| failed("not-ready", "has not joined"));
    desk.refused(&["network", "pull"], 4, "has not joined");
    let _planet = Book::of(&desk).serve(&desk.path("planet.sock"));
    desk.good(&[
        "network",
        "pull",
        "--planet-socket",
        &desk.at("planet.sock"),
    ]);
}
