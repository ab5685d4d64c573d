//! The fuzz targets of `engine/tests/fuzz` under libFuzzer. `FUZZ_TARGET` names one; see `make fuzz`.
#![no_main]

#[path = "../../../engine/benches/stages/pair.rs"]
#[allow(dead_code, reason = "benchmarks use more of it")]
mod pair;
#[path = "../../../engine/tests/fuzz/targets/mod.rs"]
mod targets;

use std::env;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use targets::TARGETS;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let wanted = env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    found
        .unwrap_or_else(|| panic!("set FUZZ_TARGET to one of {names:?}"))
        .1
});

fuzz_target!(|input: &[u8]| TARGET(input));
