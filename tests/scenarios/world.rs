//! What several scenarios begin with.

use std::time::Duration;

use podmesh_lab::{Lab, Mesh, Node, mesh, story};

/// How often a story is told: `short` times, or `long` times in the long form.
pub(crate) fn times(short: usize, long: usize) -> usize {
    if std::env::var_os("LAB_LONG").is_some() {
        long
    } else {
        short
    }
}

/// All nodes of a lab.
pub(crate) fn nodes(lab: &Lab) -> Vec<&Node> {
    lab.nodes().collect()
}

/// The three sites of the demo, all nodes joined and direct.
pub(crate) fn three_sites(name: &str) -> Lab {
    let lab = story::three_sites(name).up().unwrap();
    let mesh = Mesh::found(&lab, "planet-1").unwrap();
    mesh.join_all().unwrap();
    let limit = Duration::from_secs(20);
    mesh.wait_for(&nodes(&lab), "direct paths", limit, mesh::is_direct)
        .unwrap();
    lab
}
