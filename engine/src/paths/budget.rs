//! How many probes may leave towards endpoints that have not answered.
//!
//! A member may lie about its endpoints and so aim the probes of all its peers at a victim: at an
//! address, at many of one network, or from many memberships at once. What a node sends is bounded by
//!
//! - member and address: 17 in any 30 s, however many candidates and rounds there are;
//! - member and network (an IPv4 /24, an IPv6 /64): 34;
//! - network, over all members, until something in it has answered: 68, and in a mesh of more than 250
//!   nodes so few that all of them together send less than 2 MB (of probes of 116 bytes); what is
//!   beyond half of them, and beyond 17, is for members that have had fewer than 4, so that peers that can't
//!   be reached don't use up what would reach their neighbour, who answers and so speaks for the network;
//! - member: what a new record of sixteen candidates needs, and 4.5 a second after that;
//! - the node as a whole: 200 a second, and 400 at once.
//!
//! Places that a peer was heard from are counted apart in the first two, so that false candidates don't use
//! up the answer to a true knock, and not at all in the third: a rack of hundreds behind one address or in
//! one network comes up as soon as the first of them has answered, or knocks itself. Places that once
//! worked and openers, which die on the way, don't count in the third, either.
//!
//! Whoever can send with a false source aims answers, too: pongs, echoes that would prove the way back,
//! responses to handshakes. Until the peer has answered from there, member and network have 34 units of
//! [`UNIT`] bytes at once for them, and one in two seconds after that; [`RESERVE`] of them are for what is
//! short. When it does answer, what went to that address is given back: it is there, whoever else is, and
//! a peer that comes and goes has its answers each time. Who hasn't even said who it is gets
//! cookies, 32 at once and 8 a second to a network that no member has answered from.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use podmesh_proto::id::NodeId;
use podmesh_proto::time::Moment;

use crate::membership::holdings::MemberId;
use crate::mutation::{self, Mutant};

const WINDOW: Duration = Duration::from_secs(30);
/// Probes on behalf of one member to one address within [`WINDOW`].
const PER_ADDRESS: usize = 17;
/// The same to one network.
const PER_NETWORK: usize = 34;
/// Probes on behalf of anybody to a network in which nothing has answered, within [`WINDOW`].
const MOST_UNKNOWN: usize = 68;
/// So many of them a member may have of the part that is left to those who had none: as many as leave within half a
/// second of a try for one candidate.
const FIRST: usize = 4;
/// Probes to such a network of all nodes of the mesh together, as long as each of them has a burst to an address.
const ALL_NODES: usize = 17_000;
/// Probes that one member may cause at once, and thousandths of a probe in each second after that: less
/// than sixteen times seventeen in any [`WINDOW`].
const MEMBER: Rate = Rate {
    burst: 136,
    refill: 4_500,
};
/// The same for the node as a whole.
const NODE: Rate = Rate {
    burst: 400,
    refill: 200_000,
};
/// Bytes of a probe, by which answers and echoes are counted.
const UNIT: u16 = 116;
/// Units of what one member's messages cause to be sent to one network.
const ANSWERS: Rate = Rate {
    burst: 34,
    refill: 500,
};
/// Units that long answers leave to short ones, by which the peer can show that it is there.
const RESERVE: u64 = 8;
/// Cookies to one network in which nothing has answered. Each is less than half as long as what it answers.
const COOKIES: Rate = Rate {
    burst: 32,
    refill: 8_000,
};
/// Pairs of member and network that are remembered; more than the node may probe within a window.
const MAX_PAIRS: usize = 8_192;
/// How long an answer out of a network speaks for it. Paths in use are asked more often than this.
const PROVEN: Duration = Duration::from_secs(600);
/// Networks that one member's answers can speak for.
const MAX_PROVEN: usize = 16;

/// What speaks for somebody being where a probe goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The peer answers from there: nothing is charged.
    Answers,
    /// Something that the peer sealed came from there.
    Heard,
    /// The peer answered there in former times; or its word alone, but the probe doesn't get there, because
    /// it is an opener.
    Spared,
    /// The peer's word alone.
    Claimed,
}

/// Addresses that one party may hold all of: an IPv4 /24, an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Network(IpAddr);

impl Network {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & !0xff).into()),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u64,
    /// Thousandths per second.
    refill: u64,
}

#[derive(Debug)]
struct Bucket {
    thousandths: u64,
    at: Moment,
}

impl Bucket {
    fn full(rate: Rate, now: Moment) -> Self {
        Self {
            thousandths: rate.burst * 1_000,
            at: now,
        }
    }

    fn refill(&mut self, rate: Rate, now: Moment) {
        let millis = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        if millis > 0 {
            let more = millis.saturating_mul(rate.refill) / 1_000;
            let full = rate.burst * 1_000;
            self.thousandths = self.thousandths.saturating_add(more).min(full);
            self.at = now;
        }
    }

    fn has(&self, count: u64) -> bool {
        self.thousandths >= count * 1_000
    }

    fn take(&mut self, count: u64) {
        self.thousandths = self.thousandths.saturating_sub(count * 1_000);
    }

    fn give_back(&mut self, rate: Rate, count: u64) {
        let full = rate.burst * 1_000;
        self.thousandths = self.thousandths.saturating_add(count * 1_000).min(full);
    }

    fn is_full(&mut self, rate: Rate, now: Moment) -> bool {
        self.refill(rate, now);
        self.has(rate.burst)
    }
}

/// A probe that left.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Moment,
    to: IpAddr,
    claimed: bool,
}

#[derive(Debug)]
struct MemberUse {
    bucket: Bucket,
    /// Networks that its answers came from, the newest last.
    proven: VecDeque<Network>,
}

/// The node's budget of unproven probes.
#[derive(Debug)]
pub struct ProbeBudget {
    bucket: Bucket,
    unknown: usize,
    members: BTreeMap<NodeId, MemberUse>,
    sent: BTreeMap<(NodeId, Network), Vec<Sent>>,
    claimed: BTreeMap<Network, Vec<Moment>>,
    proven: BTreeMap<(Network, NodeId), Moment>,
    answers: BTreeMap<(MemberId, Network), Answers>,
    cookies: BTreeMap<Network, Bucket>,
}

/// What went to one address, without an answer from there, of what may go to its network.
#[derive(Debug)]
struct Answers {
    bucket: Bucket,
    target: IpAddr,
    units: u64,
}

impl ProbeBudget {
    /// A full budget.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            bucket: Bucket::full(NODE, now),
            unknown: MOST_UNKNOWN,
            members: BTreeMap::new(),
            sent: BTreeMap::new(),
            claimed: BTreeMap::new(),
            proven: BTreeMap::new(),
            answers: BTreeMap::new(),
            cookies: BTreeMap::new(),
        }
    }

    /// The mesh has so many nodes, which a liar may aim all at the same network.
    pub fn set_nodes(&mut self, nodes: usize) {
        let share = ALL_NODES / nodes.max(1);
        self.unknown = share.clamp(PER_ADDRESS, MOST_UNKNOWN);
    }

    /// Takes one probe to `target`, on behalf of `member`, out of the budget, if it is in it.
    pub fn take(
        &mut self,
        member: NodeId,
        target: IpAddr,
        evidence: Evidence,
        now: Moment,
    ) -> bool {
        if evidence == Evidence::Answers || mutation::is(Mutant::NoBudget) {
            return true;
        }
        let target = target.to_canonical();
        let network = Network::of(target);
        self.bucket.refill(NODE, now);
        let user = self.user(member, now);
        user.bucket.refill(MEMBER, now);
        if !user.bucket.has(1) || !self.bucket.has(1) || !self.has_room(member, network, now) {
            return false;
        }
        let one = Sent {
            at: now,
            to: target,
            claimed: evidence != Evidence::Heard,
        };
        let sent = self.sent.entry((member, network)).or_default();
        sent.retain(|before| now.since(before.at) < WINDOW);
        let alike = || sent.iter().filter(|before| before.claimed == one.claimed);
        let (to_network, to_address) = (
            alike().count(),
            alike().filter(|before| before.to == target).count(),
        );
        if to_network >= PER_NETWORK || to_address >= PER_ADDRESS {
            return false;
        }
        if evidence == Evidence::Claimed && !self.take_unknown(network, to_network, now) {
            return false;
        }
        self.sent.entry((member, network)).or_default().push(one);
        self.user(member, now).bucket.take(1);
        self.bucket.take(1);
        true
    }

    /// Takes an answer to `member`, or an echo, of `length` bytes to `target` out of the budget, if it is
    /// in it.
    pub fn take_answer(
        &mut self,
        member: MemberId,
        (target, length): (IpAddr, u16),
        evidence: Evidence,
        now: Moment,
    ) -> bool {
        if evidence == Evidence::Answers || mutation::is(Mutant::NoBudget) {
            return true;
        }
        let target = target.to_canonical();
        let key = (member, Network::of(target));
        let units = u64::from(length.div_ceil(UNIT).max(1));
        if !has_room_for(&mut self.answers, &key, |it| {
            it.bucket.is_full(ANSWERS, now)
        }) {
            return false;
        }
        let answers = self.answers.entry(key).or_insert_with(|| Answers {
            bucket: Bucket::full(ANSWERS, now),
            target,
            units: 0,
        });
        let reserve = if units > 1 { RESERVE } else { 0 };
        answers.bucket.refill(ANSWERS, now);
        let granted = answers.bucket.has(units + reserve);
        if granted {
            answers.bucket.take(units);
            if answers.target != target {
                (answers.target, answers.units) = (target, 0);
            }
            answers.units += units;
        }
        granted
    }

    /// Takes a cookie to somebody at `target` who hasn't said yet who it is out of the budget, if it is in
    /// it.
    pub fn take_cookie(&mut self, target: IpAddr, now: Moment) -> bool {
        let network = Network::of(target);
        if mutation::is(Mutant::NoBudget) || self.is_proven(network, now) {
            return true;
        }
        if !has_room_for(&mut self.cookies, &network, |it| it.is_full(COOKIES, now)) {
            return false;
        }
        let full = || Bucket::full(COOKIES, now);
        let bucket = self.cookies.entry(network).or_insert_with(full);
        bucket.refill(COOKIES, now);
        let granted = bucket.has(1);
        if granted {
            bucket.take(1);
        }
        granted
    }

    /// A probe or an echo of this node was answered by `member` from `address`.
    pub fn answered(&mut self, member: NodeId, address: IpAddr, now: Moment) {
        let address = address.to_canonical();
        let network = Network::of(address);
        if let Some(answers) = self.answers.get_mut(&(member.into(), network))
            && answers.target == address
        {
            answers
                .bucket
                .give_back(ANSWERS, std::mem::take(&mut answers.units));
        }
        if self.proven.insert((network, member), now).is_some() {
            return;
        }
        let user = self.user(member, now);
        user.proven.push_back(network);
        if user.proven.len() > MAX_PROVEN
            && let Some(oldest) = user.proven.pop_front()
        {
            self.proven.remove(&(oldest, member));
        }
    }

    /// Somebody is no member any more.
    pub fn forget(&mut self, member: &NodeId) {
        let user = self.members.remove(member);
        for network in user.into_iter().flat_map(|user| user.proven) {
            self.proven.remove(&(network, *member));
        }
    }

    /// This node left its network: nobody there speaks for a place any more. What was sent stays counted,
    /// or who leaves and joins again would send a victim as much once more.
    pub fn leave(&mut self, now: Moment) {
        self.proven.clear();
        self.unknown = MOST_UNKNOWN;
        self.members.retain(|_, user| {
            user.proven.clear();
            user.bucket.refill(MEMBER, now);
            !user.bucket.has(MEMBER.burst)
        });
    }

    fn user(&mut self, member: NodeId, now: Moment) -> &mut MemberUse {
        self.members.entry(member).or_insert_with(|| MemberUse {
            bucket: Bucket::full(MEMBER, now),
            proven: VecDeque::new(),
        })
    }

    /// Whether the pair may be remembered; what is over is forgotten if there are too many.
    fn has_room(&mut self, member: NodeId, network: Network, now: Moment) -> bool {
        if self.sent.len() >= MAX_PAIRS && !self.sent.contains_key(&(member, network)) {
            let recent = |at: &Moment| now.since(*at) < WINDOW;
            self.sent
                .retain(|_, sent| sent.last().is_some_and(|one| recent(&one.at)));
            self.claimed
                .retain(|_, sent| sent.last().is_some_and(recent));
        }
        self.sent.len() < MAX_PAIRS || self.sent.contains_key(&(member, network))
    }

    /// Whether a member has answered from there of late.
    fn is_proven(&self, network: Network, now: Moment) -> bool {
        let (first, last) = (NodeId([0; 32]), NodeId([u8::MAX; 32]));
        let mut answers = self.proven.range((network, first)..=(network, last));
        answers.any(|(_, at)| now.since(*at) < PROVEN)
    }

    /// Takes one out of what may go to a network that nothing speaks for, for a member that has had so many.
    fn take_unknown(&mut self, network: Network, had: usize, now: Moment) -> bool {
        if self.is_proven(network, now) {
            return true;
        }
        let sent = self.claimed.entry(network).or_default();
        sent.retain(|at| now.since(*at) < WINDOW);
        // Whoever is alone there has a burst to an address in the largest mesh, too.
        let anybodys = (self.unknown / 2).max(PER_ADDRESS);
        let granted = sent.len() < self.unknown && (had < FIRST || sent.len() < anybodys);
        if granted {
            sent.push(now);
        }
        granted
    }
}

/// Whether one more may be remembered. Those that are full again are forgotten when there are too many; a new
/// one has to wait if that doesn't help.
fn has_room_for<K: Ord, V>(
    buckets: &mut BTreeMap<K, V>,
    key: &K,
    mut is_full: impl FnMut(&mut V) -> bool,
) -> bool {
    if buckets.len() >= MAX_PAIRS && !buckets.contains_key(key) {
        buckets.retain(|_, one| !is_full(one));
    }
    buckets.len() < MAX_PAIRS || buckets.contains_key(key)
}

#[cfg(test)]
mod tests;
