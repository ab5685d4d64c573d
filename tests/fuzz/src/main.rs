//! All fuzz targets under libFuzzer: those of `engine/tests/fuzz`, `planet/tests/fuzz` and
//! `cni-plugin/tests/fuzz`. `FUZZ_TARGET` names one; see `make fuzz`.
#![no_main]

#[path = "../../../engine/benches/stages/pair.rs"]
#[allow(dead_code, reason = "benchmarks use more of it")]
mod pair;
#[path = "../../../engine/tests/fuzz/targets/mod.rs"]
mod targets;

#[path = "../edits.rs"]
mod edits;
#[path = "../../../planet/tests/fuzz/targets.rs"]
mod planet;

// The plugin is a program; its modules know each other from its root.
#[path = "../../../cni-plugin/src/attachment.rs"]
#[allow(dead_code, reason = "the plugin uses more of it")]
mod attachment;
#[path = "../../../cni-plugin/tests/fuzz/targets.rs"]
mod plugin;
#[path = "../../../cni-plugin/src/reply.rs"]
#[allow(dead_code, reason = "the plugin uses more of it")]
mod reply;
#[path = "../../../cni-plugin/src/request.rs"]
#[allow(dead_code, reason = "the plugin uses more of it")]
mod request;

use std::env;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use targets::TARGETS;

const OTHERS: &[(&str, fn(&[u8]))] = &[
    ("chains", planet::chains),
    ("planet", planet::planet),
    ("json", planet::json),
    ("settings", planet::settings),
    ("plugin", plugin::plugin),
];

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let all = || TARGETS.iter().chain(OTHERS);
    let names: Vec<&str> = all().map(|(name, _)| *name).collect();
    let wanted = env::var("FUZZ_TARGET").unwrap_or_default();
    let found = all().find(|(name, _)| *name == wanted);
    found
        .unwrap_or_else(|| panic!("set FUZZ_TARGET to one of {names:?}"))
        .1
});

fuzz_target!(|input: &[u8]| TARGET(input));
