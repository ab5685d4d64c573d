//! `IPsec` policies of others that take packets of the mesh.

use std::{fmt, io, net::IpAddr};

use ipnet::IpNet;

use crate::blocking_netlink::{Attributes, Conversation, Message, Reply};

// Of `linux/xfrm.h`.
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;
/// `struct xfrm_userpolicy_info`.
const POLICY_BYTES: usize = 168;
/// `struct xfrm_userpolicy_id`.
const QUESTION_BYTES: usize = 64;
const SOURCE: usize = 16;
const PORT_MASKS: [usize; 2] = [34, 38];
const FAMILY: usize = 40;
const PREFIX_LENGTHS: [usize; 2] = [42, 43];
const PROTOCOL: usize = 44;
const INTERFACE: usize = 48;
const PRIORITY: usize = 152;
const DIRECTION: usize = 160;
const ACTION: usize = 161;
const DIRECTIONS: [&str; 3] = ["in", "out", "fwd"];
const FAMILY_V4: u16 = 2;

/// A policy of `IPsec` that blocks packets between the mesh's ranges, or wants them to be sealed by `IPsec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    direction: &'static str,
    source: IpNet,
    destination: IpNet,
    /// The lowest is asked first.
    priority: u32,
    /// Lets packets go on as they are.
    allows: bool,
}

impl fmt::Display for Policy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "an IPsec policy of this machine takes packets of the mesh ({}), and they are lost",
            self.selector()
        )
    }
}

impl Policy {
    /// What helps.
    #[must_use]
    pub fn next(&self) -> String {
        format!(
            "take the mesh's ranges out of it where it is configured, or remove it with `ip xfrm policy delete {}`",
            self.selector()
        )
    }

    fn selector(&self) -> String {
        let Self {
            direction,
            source,
            destination,
            ..
        } = self;
        format!("dir {direction} src {source} dst {destination}")
    }
}

/// The policies that take packets between these ranges, in the kernel's order, but for those in front of which
/// another one lets them pass. Those that ask for ports, marks or interfaces are others' business.
///
/// # Errors
///
/// When the kernel has no `IPsec`, or doesn't say.
pub fn policies_in_the_way(protected: &[IpNet]) -> io::Result<Vec<Policy>> {
    let mut kernel = Conversation::ipsec()?;
    let question = Message::new(XFRM_MSG_GETPOLICY, 0, &[0; QUESTION_BYTES]);
    let replies = kernel.dump(question)?;
    let policies: Vec<Policy> = replies.iter().filter_map(read).collect();
    Ok(in_the_way(&policies, protected))
}

fn in_the_way(policies: &[Policy], protected: &[IpNet]) -> Vec<Policy> {
    let pairs = || {
        let sources = protected.iter();
        sources.flat_map(|source| {
            protected
                .iter()
                .map(move |destination| (source, destination))
        })
    };
    let takes = |policy: &&Policy| {
        pairs().any(|(source, destination)| {
            let overlaps =
                overlap(&policy.source, source) && overlap(&policy.destination, destination);
            let spares = |other: &Policy| {
                other.allows
                    && other.direction == policy.direction
                    && other.priority < policy.priority
                    && other.source.contains(source)
                    && other.destination.contains(destination)
            };
            overlaps && !policies.iter().any(spares)
        })
    };
    let harmful = policies.iter().filter(|policy| !policy.allows);
    harmful.filter(takes).cloned().collect()
}

fn read(reply: &Reply) -> Option<Policy> {
    let policy = reply.payload.get(..POLICY_BYTES)?;
    let attributes: Attributes<'_> = reply.attributes(POLICY_BYTES);
    let half = |at: usize| {
        let bytes = policy.get(at..)?.first_chunk()?;
        Some(u16::from_ne_bytes(*bytes))
    };
    let [for_destination, for_source] = PREFIX_LENGTHS;
    let asks_more = PORT_MASKS.iter().any(|at| half(*at) != Some(0))
        || *policy.get(PROTOCOL)? != 0
        || reply.header_number(INTERFACE)? != 0
        || attributes.find(XFRMA_MARK).is_some()
        || attributes.find(XFRMA_IF_ID).is_some();
    let net = |at: usize, length: usize| {
        let bytes = policy.get(at..)?;
        let address = if half(FAMILY)? == FAMILY_V4 {
            IpAddr::from(*bytes.first_chunk::<4>()?)
        } else {
            IpAddr::from(*bytes.first_chunk::<16>()?)
        };
        IpNet::new(address, *policy.get(length)?).ok()
    };
    let policy = Policy {
        direction: DIRECTIONS.get(usize::from(*policy.get(DIRECTION)?))?,
        source: net(SOURCE, for_source)?,
        destination: net(0, for_destination)?,
        priority: reply.header_number(PRIORITY)?,
        allows: *policy.get(ACTION)? == 0 && attributes.find(XFRMA_TMPL).is_none(),
    };
    (!asks_more).then_some(policy)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}
