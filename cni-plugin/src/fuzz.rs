//! The fuzz targets of the plugin with kept and generated inputs.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test asks the environment, reads files and talks"
)]

#[path = "../../tests/fuzz/replay.rs"]
mod replay;
#[path = "../tests/fuzz/targets.rs"]
mod targets;

use std::fs;

use crate::ledger::{Ledger, Moment};

#[test]
fn plugin() {
    let target = ("plugin", targets::plugin as fn(&[u8]));
    replay::replay(target);
    replay::play(target, 1_500);
}

#[test]
fn ledger() {
    let target = ("ledger", spoiled_ledger as fn(&[u8]));
    replay::replay(target);
    replay::play(target, 60);
}

/// A ledger of which the disk has spoiled anything opens, keeps nothing that it doesn't understand, and
/// opens the same again.
fn spoiled_ledger(input: &[u8]) {
    let name = format!("podmesh-fuzz-ledger-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    let _ = fs::remove_dir_all(&folder);
    let Ok(moment) = Moment::read() else {
        return;
    };
    let opened = |what: &str| {
        let ledger = Ledger::open(&folder, moment.clone(), &[]);
        ledger.unwrap_or_else(|failure| panic!("{what}: {failure}"))
    };
    drop(opened("a new one"));
    let (record, released) = input.split_at(input.len() / 2);
    for (file, bytes) in [("pm0123456789ab.json", record), ("released.json", released)] {
        fs::write(folder.join(file), bytes).expect("a file");
    }
    let kept = |ledger: &Ledger| -> Vec<(String, bool)> {
        let records = ledger.records();
        records
            .map(|(name, record)| (name.to_owned(), record.is_some()))
            .collect()
    };
    let first = kept(&opened("a spoiled one"));
    assert!(first.iter().all(|(_, understood)| *understood), "{first:?}");
    assert_eq!(first, kept(&opened("a repaired one")));
    let _ = fs::remove_dir_all(&folder);
}
