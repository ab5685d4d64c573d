//! Two machines with one node's identity, by the order in which their lives speak.
//!
//! Each start of a node is a new life with a later incarnation, and a life that another has followed speaks no
//! more. One that does runs beside the other: somebody's disk or state folder was copied. Which of the two
//! is meant can't be told here; the newest connection is the node's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use podmesh_proto::id::{Name, NodeId};
use podmesh_proto::time::{Moment, Now};

use crate::rules::{Event, Planet};

/// How long the last return of a life is worth a sentence.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Returns of a life to the other until it is said: a machine set back to a snapshot of its memory
/// returns once.
const RETURNS: u8 = 2;

/// The lives that nodes spoke with, of those that are members.
#[derive(Debug, Default)]
pub(super) struct Twins {
    nodes: BTreeMap<NodeId, Lives>,
}

/// The last two lives of a node.
#[derive(Debug, Clone, Copy)]
struct Lives {
    present: (u64, SocketAddr),
    other: Option<(u64, SocketAddr)>,
    returns: u8,
    returned: Moment,
}

impl Lives {
    /// Whether the same two take turns at this time.
    fn are_two(&self, now: Moment) -> bool {
        self.returns >= RETURNS && now.since(self.returned) < REMEMBERED
    }

    /// A life speaks from an address.
    fn speaks(&mut self, incarnation: u64, remote: SocketAddr, now: Moment) {
        if self.present.0 == incarnation {
            self.present.1 = remote;
            return;
        }
        if now.since(self.returned) >= REMEMBERED {
            self.returns = 0;
        }
        if self.other.is_some_and(|(other, _)| other == incarnation) {
            self.returns = self.returns.saturating_add(1);
            self.returned = now;
        }
        self.other = Some(self.present);
        self.present = (incarnation, remote);
    }

    /// What is said of the two, if they are two.
    fn sentence(&self, name: &Name, now: Moment) -> Option<String> {
        let (_, other) = self.other.filter(|_| self.are_two(now))?;
        let seconds = now.since(self.returned).as_secs();
        let present = self.present.1;
        Some(format!(
            "two machines use the identity of {name} by turns, at {present} and at {other}, {seconds} s ago the \
             last time; find the copy of its disk or state folder and give it keys of its own (MESH-IDENTITY-002)"
        ))
    }
}

impl Planet {
    /// A node has proven its identity; notes once if it is the other of two machines, and who they are.
    pub(super) fn watch_lives(
        &mut self,
        node: NodeId,
        (incarnation, remote): (u64, SocketAddr),
        now: Now,
    ) {
        let Some(name) = self
            .books
            .member(&node, now.unix)
            .map(|member| member.name.clone())
        else {
            return;
        };
        let lives = self.twins.nodes.entry(node).or_insert(Lives {
            present: (incarnation, remote),
            other: None,
            returns: 0,
            returned: now.moment,
        });
        let known = lives.are_two(now.moment);
        lives.speaks(incarnation, remote, now.moment);
        let sentence = lives.sentence(&name, now.moment);
        if let Some(sentence) = sentence.filter(|_| !known) {
            self.note(Event::Twins(node, sentence));
        }
    }

    /// Which nodes are two machines, as sentences for people.
    pub(super) fn twins_remarks(&self, now: Now) -> Vec<String> {
        let lives = self.twins.nodes.iter();
        let said = lives.filter_map(|(node, lives)| {
            let member = self.books.member(node, now.unix)?;
            lives.sentence(&member.name, now.moment)
        });
        said.collect()
    }

    /// Forgets the nodes that aren't members any more.
    pub(super) fn sweep_lives(&mut self, now: Now) {
        let books = &self.books;
        let lives = &mut self.twins.nodes;
        lives.retain(|node, _| books.member(node, now.unix).is_some());
    }
}
