//! Scenarios: real namespaces, real binaries, one story per test.
//!
//! They need root, `/dev/net/tun` and the release binaries; the scenarios in [`the_lab`] judge
//! the laboratory itself and need no binaries. `LAB_LONG=1` plays the long forms, which repeat
//! often enough for percentiles.
#![allow(
    clippy::unwrap_used,
    reason = "in a scenario every surprise is a failure, wherever it is"
)]

mod bad_input;
mod bad_wires;
mod checked;
mod cni;
mod cold_boot;
mod ended;
mod first_start;
mod host_faults;
mod interop;
mod kube_proxy;
mod many_peers;
mod many_statements;
mod memory;
mod nat_grid;
mod path_mtu;
mod planet_loss;
mod puppet;
mod rekey;
mod renewal;
mod restarts;
mod revocation;
mod settings;
mod storms;
mod the_lab;
mod trust;
mod world;
