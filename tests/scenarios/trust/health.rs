//! What nodes say about lies that they were told.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use podmesh_lab::{Node, wait};
use podmesh_proto::local_api::{HealthView, StatusView};

/// How long a node may take to name a lie.
const PATIENCE: Duration = Duration::from_secs(8);

/// A node's status.
pub(super) fn status(node: &Node) -> Result<StatusView> {
    Ok(serde_json::from_value(node.meshctl_json(&["status"])?)?)
}

/// What a node complains about.
pub(super) fn complaints(node: &Node) -> Result<Vec<HealthView>> {
    Ok(status(node)?.health)
}

/// Waits until the node names a lie with one of these codes and all of these words that it did not
/// name `before`; returns the sentence.
pub(super) fn must_name(
    node: &Node,
    (codes, words): (&[&str], &[String]),
    before: &[HealthView],
) -> Result<String> {
    wait::until(
        &format!("{} to name the lie", node.name()),
        PATIENCE,
        || {
            let all = complaints(node)?;
            let named = all.iter().find(|view| {
                codes.contains(&view.code.as_str())
                    && words.iter().all(|word| view.message.contains(word))
                    && !before.contains(view)
            });
            Ok(match named {
                Some(view) => wait::Now(format!("{}: {}", view.code, view.message)),
                None => wait::NotYet(format!("{all:?}")),
            })
        },
    )
}

/// Packets that the node has dropped so far, by reason.
pub(super) fn drops(node: &Node) -> Result<BTreeMap<String, u64>> {
    let drops = status(node)?.drops.into_iter();
    Ok(drops.map(|view| (view.reason, view.count)).collect())
}
