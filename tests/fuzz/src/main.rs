//! All fuzz targets under libFuzzer: those of `engine/tests/fuzz`, `planet/tests/fuzz`, `daemon/tests/fuzz`
//! and `cni-plugin/tests/fuzz`. `FUZZ_TARGET` names one; see `make fuzz`.
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

#[path = "../../../daemon/tests/fuzz/targets.rs"]
mod daemon;
// meshd is a program; its configuration has modules of its own, and knows some of meshd's from the root.
#[path = "../../../daemon/src"]
mod meshd {
    #[allow(dead_code, unused_imports, reason = "meshd uses more of it")]
    pub(crate) mod config;
    #[allow(dead_code, reason = "meshd uses more of it")]
    pub(crate) mod device_mtu;
    #[allow(dead_code, reason = "meshd uses more of it")]
    pub(crate) mod offloads;
}
use meshd::{config, device_mtu, offloads};

/// What the configuration asks of the command line.
mod cli {
    /// Nothing of it is fuzzed.
    #[allow(
        dead_code,
        reason = "nobody calls a fuzz target by a command line of meshd"
    )]
    pub(crate) struct Cli {
        pub(crate) config: Option<std::path::PathBuf>,
        pub(crate) name: Option<podmesh_proto::id::Name>,
        pub(crate) log: Option<String>,
    }
}

// So is the plugin; its modules know each other from its root.
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
    ("configuration", daemon::configuration),
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
