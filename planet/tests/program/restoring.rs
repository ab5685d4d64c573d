//! Which backup a planet takes, and what it says of what would go.

use std::fs;

use podmesh_planet::rules::records::{Change, Record};
use podmesh_planet::store::{self, DiskStore, Store as _};
use podmesh_proto::key::digest;
use podmesh_proto::network::RetiredPlanet;

use crate::Place;
use crate::story::{BEGINNING, Operator};

/// A backup of the planet in `place`, in a file.
fn backup(place: &Place, name: &str) -> String {
    let path = place.folder.join(name).display().to_string();
    place.succeed(&["backup", &path]);
    path
}

/// Tries to restore `backup` and gives what is said; nothing may have changed.
fn refused(place: &Place, backup: &str, code: i32) -> String {
    let files = || {
        let names = fs::read_dir(place.state()).unwrap();
        let mut names: Vec<_> = names.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = (
        files(),
        place
            .state()
            .join(store::FILE)
            .exists()
            .then(|| place.records()),
    );
    let (got, said) = place.fail(&["restore", backup]);
    assert_eq!(got, code, "{said}");
    let after = (
        files(),
        place
            .state()
            .join(store::FILE)
            .exists()
            .then(|| place.records()),
    );
    assert_eq!(before, after, "{said}");
    said
}

#[test]
fn a_backup_of_another_network_is_refused_before_anything_is_touched() {
    let (ours, theirs) = (Operator::new(210), Operator::new(211));
    let (place, other) = (Place::found(&ours), Place::found(&theirs));
    let foreign = backup(&other, "backup");
    let said = refused(&place, &foreign, 1);
    for word in [ours.network.id, theirs.network.id] {
        assert!(said.contains(&word.to_string()), "{said}");
    }
    // The word of the operator is no help: the planet would serve the other network.
    let (code, said) = place.fail(&["restore", &foreign, "--yes"]);
    assert!(code == 1 && said.contains("own backup"), "{said}");
    // Nor is it one where the books are gone and only the key is left.
    fs::remove_file(place.state().join(store::FILE)).unwrap();
    let said = refused(&place, &foreign, 1);
    for word in [
        theirs.network.id.to_string(),
        theirs.planet_key().planet_id().to_string(),
        ours.planet_key().planet_id().to_string(),
    ] {
        assert!(said.contains(&word), "{said}");
    }
    // A planet without a network takes any that knows it, and no backup of none takes a network away.
    let empty = Place::new();
    empty.succeed(&["init"]);
    let nothing = backup(&empty, "nothing");
    let said = refused(&other, &nothing, 1);
    assert!(said.contains("served no network"), "{said}");
    empty.succeed(&["restore", &nothing]);
}

#[test]
fn a_planet_that_was_named_later_or_retired_since_takes_its_own_backup() {
    let mut operator = Operator::new(212);
    let place = Place::with_key(&operator.other_planet_key(), &operator);
    let early = backup(&place, "early");
    place.succeed(&["restore", &early]);
    // With its books gone the backup vouches for itself. For one that doesn't say whose it is nothing does,
    // until the newest document does.
    fs::remove_file(place.state().join(store::FILE)).unwrap();
    place.succeed(&["restore", &early]);
    fs::remove_file(place.state().join(store::FILE)).unwrap();
    let early = of_first_format(&place, &early);
    let said = refused(&place, &early, 1);
    assert!(
        said.contains("planet adopt") && said.contains("planet-1"),
        "{said}"
    );
    operator.add_planet_in_front();
    place.adopt(&operator);
    let said = refused(&place, &early, 3);
    assert!(
        said.contains("edition 2") && said.contains("--yes"),
        "{said}"
    );
    place.succeed(&["restore", &early, "--yes"]);

    place.adopt(&operator);
    let gone = operator.network.planets.remove(0);
    operator.network.retired.push(RetiredPlanet {
        id: gone.id,
        until: BEGINNING,
    });
    operator.new_edition();
    place.adopt(&operator);
    let late = backup(&place, "late");
    fs::remove_file(place.state().join(store::FILE)).unwrap();
    place.succeed(&["restore", &late]);
}

/// The same backup as planets made it that said nothing of themselves in it.
fn of_first_format(place: &Place, backup: &str) -> String {
    let records = store::Backup::read(&fs::read(backup).unwrap())
        .unwrap()
        .records;
    let body = postcard::to_allocvec(&records).unwrap();
    let sum = digest("podmesh planet backup v1", &body);
    let content = [b"podmesh planet backup v1\n", sum.as_slice(), &body].concat();
    place.file("first", &content)
}

#[test]
fn a_backup_of_another_planet_of_the_network_wants_to_be_meant() {
    let mut operator = Operator::new(215);
    operator.add_planet_in_front();
    let first = Place::with_key(&operator.other_planet_key(), &operator);
    let second = Place::found(&operator);
    let saved = backup(&first, "saved");
    let said = refused(&second, &saved, 3);
    for part in [
        "planet-0 (",
        "planet-1 (",
        "--yes",
        &operator.other_planet_key().planet_id().to_string(),
    ] {
        assert!(said.contains(part), "{said}");
    }
    // Also where its own books are gone, and the network alone vouches for nothing.
    fs::remove_file(second.state().join(store::FILE)).unwrap();
    let said = refused(&second, &saved, 3);
    assert!(said.contains("of planet planet-0"), "{said}");
    second.succeed(&["restore", &saved, "--yes"]);
    first.succeed(&["restore", &saved]);
    let old = of_first_format(&second, &saved);
    let restored = second.run(&["restore", &old]);
    let said = String::from_utf8(restored.stderr).unwrap();
    assert!(
        restored.status.success() && said.contains("doesn't say"),
        "{said}"
    );
}

#[test]
fn an_older_backup_says_what_goes_and_wants_to_be_meant() {
    let mut operator = Operator::new(213);
    let place = Place::found(&operator);
    let old = backup(&place, "old");
    let token = operator.token(1);
    let revoked = Record::Statement(Box::new(operator.revoke_token(&token)));
    let mut store = DiskStore::open(&place.state()).unwrap();
    store.commit(&[Change::Put(revoked.clone())]).unwrap();
    drop(store);
    let said = refused(&place, &old, 3);
    assert!(said.contains("1 statement of the root"), "{said}");
    let new = backup(&place, "new");
    place.succeed(&["restore", &old, "--yes"]);
    assert!(!place.records().contains(&revoked));
    // What only adds is not asked about, and neither is one over books that nobody can read.
    place.succeed(&["restore", &new]);
    assert!(place.records().contains(&revoked));
    fs::write(place.state().join(store::FILE), b"rubble").unwrap();
    place.succeed(&["restore", &old]);
}

#[test]
fn books_without_their_key_are_never_offered_another_one() {
    let place = Place::found(&Operator::new(214));
    let saved = backup(&place, "saved");
    let key = place.state().join("planet.key");
    fs::remove_file(&key).unwrap();
    let other = place.folder.join("more").display().to_string();
    for arguments in [&["run"][..], &["key"], &["backup", &other], &["init"]] {
        let (code, said) = place.fail(arguments);
        assert!(
            code == 1 && said.contains("key is gone"),
            "{arguments:?}: {said}"
        );
        assert!(!said.contains("make one"), "{arguments:?}: {said}");
    }
    let (code, said) = place.fail(&["restore", &saved]);
    assert!(code == 1 && said.contains("key is gone"), "{said}");
    fs::remove_file(place.state().join(store::FILE)).unwrap();
    let (code, said) = place.fail(&["restore", &saved]);
    assert!(code == 6 && said.contains("planet.key"), "{said}");
    assert!(!said.contains("planet init"), "{said}");
}
