//! Plays fuzz targets without a fuzzer: the inputs that are kept, and some of a seeded generator. `FUZZ_RUNS` and
//! `FUZZ_SEED` set how much and where it begins.

use std::env;
use std::panic;
use std::path::{Path, PathBuf};

/// Bytes of the longest input.
const LONGEST: u64 = 6_000;

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// As many short ones as long ones; small bytes are more frequent than others, as most fields
    /// choose between a few things.
    pub(crate) fn input(&mut self) -> Vec<u8> {
        let length = (LONGEST >> (self.next() % 8)).max(1);
        let length = self.next() % length;
        let byte = |word: u64| if word & 0x100 == 0 { word % 24 } else { word };
        (0..length)
            .map(|_| byte(self.next()).to_le_bytes()[0])
            .collect()
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// So many generated inputs, unless `FUZZ_RUNS` says otherwise.
pub(crate) fn play((name, target): (&str, fn(&[u8])), runs: u64) {
    let seed = number("FUZZ_SEED", 1);
    for run in 0..number("FUZZ_RUNS", runs) {
        let input = Random(seed.wrapping_add(run << 32)).input();
        let outcome = panic::catch_unwind(|| target(&input));
        assert!(
            outcome.is_ok(),
            "target {name} fails with FUZZ_SEED={seed} in run {run}, on {input:?}"
        );
    }
}

/// Inputs that once failed, and such as are worth keeping.
pub(crate) fn replay((name, target): (&str, fn(&[u8]))) {
    let kept = kept().join(name);
    for file in kept.read_dir().into_iter().flatten() {
        let path = file.expect("a file").path();
        eprintln!("{}", path.display());
        target(&std::fs::read(&path).expect("an input"));
    }
}

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/kept")
}
