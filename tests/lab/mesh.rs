//! A network in a lab: founding it, letting nodes join, and looking at their paths.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podmesh_proto::local_api::{PathView, PeerState, PeerView};

use crate::lab::Lab;
use crate::node::Node;
use crate::operator::Operator;
use crate::wait;

/// A founded network with its operator.
#[derive(Debug)]
pub struct Mesh<'lab> {
    lab: &'lab Lab,
    operator: Operator,
}

/// How one node reaches another one.
#[derive(Debug, Clone, PartialEq)]
pub struct Reach {
    /// Name of the looking node.
    pub from: String,
    /// Name of the peer.
    pub to: String,
    /// What the looking node says, if it knows the peer at all.
    pub view: Option<PeerView>,
}

impl<'lab> Mesh<'lab> {
    /// Founds a network called `lab` with the planet of this name.
    ///
    /// # Errors
    ///
    /// If a program refuses.
    pub fn found(lab: &'lab Lab, planet: &str) -> Result<Self> {
        Self::found_with(lab, planet, &[])
    }

    /// The same with options of `meshctl network create`.
    ///
    /// # Errors
    ///
    /// If a program refuses.
    pub fn found_with(lab: &'lab Lab, planet: &str, options: &[&str]) -> Result<Self> {
        let operator = Operator::found(lab, "lab", lab.planet(planet)?, options)?;
        Ok(Self { lab, operator })
    }

    /// The same with an address by which nodes shall look for the planet.
    ///
    /// # Errors
    ///
    /// If a program refuses.
    pub fn found_at(lab: &'lab Lab, planet: &str, address: &str) -> Result<Self> {
        let planet = (lab.planet(planet)?, address);
        let operator = Operator::found_at(lab, "lab", planet, &[])?;
        Ok(Self { lab, operator })
    }

    /// The operator of the network.
    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Starts meshd on a node and lets it join with a fresh token; returns how long the join took.
    ///
    /// # Errors
    ///
    /// If a program refuses, or the node is not online within 15 seconds.
    pub fn join(&self, node: &Node) -> Result<Duration> {
        let token = self
            .operator
            .token(node.name(), &["--site", node.site().name()])?;
        node.start()?;
        let start = Instant::now();
        let token = token.to_str().context("the lab's folder is not UTF-8")?;
        node.meshctl(&["join", token])?;
        node.wait_online(Duration::from_secs(15))?;
        Ok(start.elapsed())
    }

    /// Lets every node of the lab join, one after the other.
    ///
    /// # Errors
    ///
    /// As [`Mesh::join`].
    pub fn join_all(&self) -> Result<()> {
        for node in self.lab.nodes() {
            self.join(node)
                .with_context(|| format!("{} can't join", node.name()))?;
        }
        Ok(())
    }

    /// How each of these nodes reaches each other one.
    ///
    /// # Errors
    ///
    /// If a meshd does not answer.
    pub fn reach(&self, nodes: &[&Node]) -> Result<Vec<Reach>> {
        let mut all = Vec::new();
        for from in nodes {
            let peers = from.peers()?;
            for to in nodes.iter().filter(|to| to.name() != from.name()) {
                let view = peers.iter().find(|peer| peer.name.to_string() == to.name());
                all.push(Reach {
                    from: from.name().to_owned(),
                    to: to.name().to_owned(),
                    view: view.cloned(),
                });
            }
        }
        Ok(all)
    }

    /// Waits until every one of these nodes reaches every other one as `good` wants it, and
    /// returns how long that took.
    ///
    /// # Errors
    ///
    /// After `patience`, with the paths that are not good.
    pub fn wait_for(
        &self,
        nodes: &[&Node],
        what: &str,
        patience: Duration,
        good: impl Fn(&PeerView) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        wait::until(what, patience, || {
            let mut bad = self.reach(nodes)?;
            bad.retain(|reach| !reach.view.as_ref().is_some_and(&good));
            if bad.is_empty() {
                return Ok(wait::Now(start.elapsed()));
            }
            let words: Vec<String> = bad.iter().map(Reach::words).collect();
            Ok(wait::NotYet(words.join("; ")))
        })
    }
}

impl Reach {
    /// The path in words.
    pub fn words(&self) -> String {
        let Self { from, to, view } = self;
        let Some(view) = view else {
            return format!("{from} does not know {to}");
        };
        let path = match &view.path {
            None => "no path".to_owned(),
            Some(PathView::Lan { endpoint }) => format!("lan {endpoint}"),
            Some(PathView::Direct4 { endpoint } | PathView::Direct6 { endpoint }) => {
                format!("direct {endpoint}")
            }
            Some(PathView::Relay { planet }) => format!("relayed by {planet}"),
        };
        let why = view.why.as_deref().unwrap_or("no reason given");
        format!("{from} to {to}: {:?}, {path}, {why}", view.state)
    }
}

/// Whether a peer is up over a direct path.
pub fn is_direct(peer: &PeerView) -> bool {
    peer.state == PeerState::Up && peer.path.as_ref().is_some_and(PathView::is_direct)
}

/// Whether a peer is up over a relay.
pub fn is_relayed(peer: &PeerView) -> bool {
    peer.state == PeerState::Up && peer.path.as_ref().is_some_and(|path| !path.is_direct())
}

/// Whether a peer is up over any path.
pub fn is_up(peer: &PeerView) -> bool {
    peer.state == PeerState::Up && peer.path.is_some()
}
