//! The fuzz targets of the engine with kept and generated inputs: what `make fuzz` searches with a
//! coverage-guided engine, this tries a little of in every test run.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test asks the environment, reads files and talks; the engine itself doesn't"
)]

#[path = "../../benches/stages/pair.rs"]
#[allow(dead_code, reason = "benchmarks use more of it")]
mod pair;
#[path = "../../../tests/fuzz/replay.rs"]
mod replay;
mod targets;

use targets::TARGETS;

/// Inputs per target.
const RUNS: u64 = 1_500;

macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let name = stringify!($name);
            let target = *TARGETS.iter().find(|target| target.0 == name).expect("a target");
            replay::replay(target);
            replay::play(target, RUNS);
        })*

        #[test]
        fn every_target_is_tried() {
            let tried = [$(stringify!($name)),*];
            assert!(TARGETS.iter().all(|target| tried.contains(&target.0)));
        }
    };
}

tests! { cut merge through arrive words }
