//! What one node may ask of a planet. It belongs to the node and not to one of its connections, so that
//! coming back is no way to more.

use std::collections::BTreeMap;
use std::time::Duration;

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::id::NodeId;
use podmesh_proto::limits::PUSHED_PER_SECOND;
use podmesh_proto::planet_api::NodeMessage;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::Moment;

use crate::rules::bucket::Bucket;

/// An allowance that wasn't used for this long is forgotten; it would be full again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Nodes whose allowance is remembered; of more, strangers have to come later.
const MAX_NODES: usize = 16_384;
/// Connections a second of one node, and at once: each is told what changed among all members.
const HELLOS: (u64, u64) = (1, 20);
/// Seconds that a claim or an endpoint record stands for in the long run, and how many such seconds there
/// are at once. What is taken of them is told to everybody.
pub(super) const PAUSE: u64 = 5;
const CLAIMS: u64 = 4 * PAUSE;
/// A start of a node brings about four editions of its record, a move as many.
const RECORDS: u64 = 8 * PAUSE;
/// Statements that a node passes on by itself, a second and at once: the limit of an honest one, whose
/// seconds begin when they like.
const STATEMENTS: (u64, u64) = (PUSHED_PER_SECOND as u64, 2 * PUSHED_PER_SECOND as u64);
/// Work a second, and at once, in about so many signatures to verify.
const WORK: (u64, u64) = (10, 300);
/// Memberships of a report that cost a proof and taught nothing, a second and at once.
const IN_VAIN: (u64, u64) = (2, 256);
/// Lines in the log for what a node causes: seconds that each stands for, and such seconds at once.
pub(super) const LINE: u64 = 20;
const LINES: u64 = 3 * LINE;

/// Seconds that a stranger's petition stands for: each costs the planet several signatures to verify.
pub(super) const PETITION: u64 = 2;
/// Of such seconds, what a stranger may use at once: to join, claim and correct a mistake.
const PETITIONS: u64 = 5 * PETITION;

/// What each node has left.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    nodes: BTreeMap<NodeId, Allowance>,
}

/// What one node has left.
#[derive(Debug)]
pub(super) struct Allowance {
    pub(super) hellos: Bucket,
    pub(super) messages: Bucket,
    /// What it may ask for as long as it isn't a member.
    pub(super) petitions: Bucket,
    pub(super) introductions: Bucket,
    pub(super) claims: Bucket,
    pub(super) records: Bucket,
    pub(super) work: Bucket,
    pub(super) statements: Bucket,
    pub(super) in_vain: Bucket,
    pub(super) lines: Bucket,
    /// The last record that came too early.
    pub(super) late: Option<Signed<EndpointRecord>>,
    used: Moment,
}

impl Allowance {
    fn new(now: Moment) -> Self {
        let bucket = |(rate, burst)| Bucket::new(rate, burst, now);
        Self {
            hellos: bucket(HELLOS),
            messages: bucket((200, 2_000)),
            petitions: bucket((1, PETITIONS)),
            introductions: bucket((50, 100)),
            claims: bucket((1, CLAIMS)),
            records: bucket((1, RECORDS)),
            work: bucket(WORK),
            statements: bucket(STATEMENTS),
            in_vain: bucket(IN_VAIN),
            lines: bucket((1, LINES)),
            late: None,
            used: now,
        }
    }
}

impl Allowances {
    /// What a node has left.
    pub(super) fn of(&mut self, node: NodeId, now: Moment) -> &mut Allowance {
        let allowance = self
            .nodes
            .entry(node)
            .or_insert_with(|| Allowance::new(now));
        allowance.used = now;
        allowance
    }

    /// Whether there is room for a stranger of whom nothing is remembered.
    pub(super) fn has_room_for(&self, node: &NodeId) -> bool {
        self.nodes.len() < MAX_NODES || self.nodes.contains_key(node)
    }

    /// Forgets whoever would have everything again.
    pub(super) fn sweep(&mut self, now: Moment) {
        self.nodes
            .retain(|_, allowance| now.since(allowance.used) < REMEMBERED);
    }

    /// Records that came too early and whose time has come.
    pub(super) fn due_records(&mut self, now: Moment) -> Vec<(NodeId, Signed<EndpointRecord>)> {
        let nodes = self.nodes.iter_mut();
        let late = nodes.filter(|(_, allowance)| allowance.late.is_some());
        let due = late.filter_map(|(node, allowance)| {
            let due = allowance.records.take(PAUSE, now);
            let record = allowance.late.take_if(|_| due)?;
            Some((*node, record))
        });
        due.collect()
    }
}

/// What a message costs, in about so many signatures to verify. What has a limit of its own costs
/// nothing here.
pub(super) fn work_of(message: &NodeMessage) -> u64 {
    match message {
        NodeMessage::Hello(_)
        | NodeMessage::Publish(_)
        | NodeMessage::Introduce { .. }
        | NodeMessage::Statement(_)
        | NodeMessage::Statements(_)
        | NodeMessage::Report { .. }
        | NodeMessage::Heartbeat => 0,
        NodeMessage::Claim(_) => 5,
        NodeMessage::Held(_) => 10,
        NodeMessage::Join(_)
        | NodeMessage::Leave(_)
        | NodeMessage::Renew(_)
        | NodeMessage::Membership(_) => 20,
    }
}
