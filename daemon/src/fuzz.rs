//! The fuzz target of the configuration with kept and generated inputs.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test asks the environment, reads files and talks"
)]

#[path = "../../tests/fuzz/replay.rs"]
mod replay;
#[path = "../tests/fuzz/targets.rs"]
mod targets;

#[test]
fn configuration() {
    let target = ("configuration", targets::configuration as fn(&[u8]));
    replay::replay(target);
    replay::play(target, 1_000);
}
