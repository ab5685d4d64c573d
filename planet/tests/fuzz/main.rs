//! The fuzz targets about what planets and members prove, with kept and generated inputs.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test asks the environment, reads files and talks"
)]

#[path = "../../../tests/fuzz/edits.rs"]
mod edits;
#[path = "../../../tests/fuzz/replay.rs"]
mod replay;
mod targets;

/// Inputs per target.
const RUNS: u64 = 300;

macro_rules! tests {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            let target = (stringify!($name), targets::$name as fn(&[u8]));
            replay::replay(target);
            replay::play(target, RUNS);
        }
    )*};
}

tests! { chains planet json settings }
