//! The fuzz targets with inputs of a seeded generator: what `make fuzz` searches with a coverage-guided
//! engine, this tries a little of in every test run. `FUZZ_RUNS` and `FUZZ_SEED` set how much and where
//! it begins.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test asks the environment, reads files and talks; the engine itself doesn't"
)]

#[path = "../../benches/stages/pair.rs"]
#[allow(dead_code, reason = "benchmarks use more of it")]
mod pair;
mod targets;

use std::env;
use std::panic;
use std::path::{Path, PathBuf};

use targets::{TARGETS, Target};

/// Inputs per target.
const RUNS: u64 = 1_500;
/// Bytes of the longest input.
const LONGEST: u64 = 6_000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// As many short ones as long ones; small bytes are more frequent than others, as most fields
    /// choose between a few things.
    fn input(&mut self) -> Vec<u8> {
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

fn play((name, target): Target) {
    let seed = number("FUZZ_SEED", 1);
    for run in 0..number("FUZZ_RUNS", RUNS) {
        let input = Random(seed.wrapping_add(run << 32)).input();
        let outcome = panic::catch_unwind(|| target(&input));
        assert!(
            outcome.is_ok(),
            "target {name} fails with FUZZ_SEED={seed} in run {run}, on {input:?}"
        );
    }
}

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/kept")
}

/// Inputs that once failed, and such as are worth keeping.
fn replay((name, target): Target) {
    let kept = kept().join(name);
    for file in kept.read_dir().into_iter().flatten() {
        let path = file.expect("a file").path();
        eprintln!("{}", path.display());
        target(&std::fs::read(&path).expect("an input"));
    }
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let name = stringify!($name);
            let target = *TARGETS.iter().find(|target| target.0 == name).expect("a target");
            replay(target);
            play(target);
        })*

        #[test]
        fn every_target_is_tried() {
            let tried = [$(stringify!($name)),*];
            assert!(TARGETS.iter().all(|target| tried.contains(&target.0)));
            for folder in kept().read_dir().expect("the kept inputs") {
                let name = folder.expect("a folder").file_name();
                assert!(tried.iter().any(|tried| name == *tried), "{name:?} is no target");
            }
        }
    };
}

tests! { cut merge through arrive words }
