//! Rules of somebody else that come before ours and could take packets off the mesh. Pure.

use std::fmt;

use ipnet::IpNet;

use crate::route::TABLE;
use crate::rule::{PresentRule, RANGE_PRIORITY, Verdict};

/// The kernel's table of the node's own addresses, which no packet for another node is in.
const LOCAL_TABLE: u32 = 255;
/// The number of the action that does nothing.
const ACTION_NOP: u8 = 3;

/// The interfaces by which packets for the mesh come in.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// The mesh interface.
    pub device: &'a str,
    /// What the names of the node's ends of pods begin with.
    pub veth_prefix: &'a str,
    /// Other interfaces whose containers may use the mesh, with addresses of any range.
    pub local_devices: &'a [String],
}

/// A rule that is asked before ours and could match packets to a protected range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule(PresentRule);

impl fmt::Display for ForeignRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "somebody else's routing rule \"{}\" is asked before those of podmesh, so that packets to the \
             mesh may take its way and be lost",
            self.0
        )
    }
}

impl ForeignRule {
    /// What helps.
    #[must_use]
    pub fn next(&self) -> String {
        let rule = &self.0.rule;
        let (family, priority) = (if rule.is_ipv4 { 4 } else { 6 }, rule.priority);
        format!(
            "remove it with `ip -{family} rule del pref {priority}`, or give it a priority above \
             {RANGE_PRIORITY}"
        )
    }
}

/// Those of the rules, given in the kernel's order, that stand before ours and for which it is not
/// sure that no packet to these ranges matches.
pub(super) fn before_ours(
    present: &[PresentRule],
    protected: &[IpNet],
    inside: &Inside<'_>,
) -> Vec<ForeignRule> {
    let mut found = Vec::new();
    for is_ipv4 in [true, false] {
        let of_family = |range: &&IpNet| range.addr().is_ipv4() == is_ipv4;
        let ranges: Vec<IpNet> = protected.iter().filter(of_family).copied().collect();
        let rules: Vec<_> = present
            .iter()
            .filter(|other| other.rule.is_ipv4 == is_ipv4)
            .collect();
        let last_of_ours = rules
            .iter()
            .rposition(|other| other.ours && other.rule.priority == RANGE_PRIORITY);
        let earlier = rules.iter().enumerate().filter(|(position, other)| {
            let priority = other.rule.priority;
            priority < RANGE_PRIORITY
                || priority == RANGE_PRIORITY && last_of_ours.is_some_and(|last| *position < last)
        });
        found.extend(
            earlier
                .filter(|(_, other)| can_take(other, &ranges, inside))
                .map(|(_, other)| ForeignRule((*other).clone())),
        );
    }
    found
}

fn can_take(other: &PresentRule, ranges: &[IpNet], inside: &Inside<'_>) -> bool {
    let (rule, more) = (&other.rule, &other.conditions);
    let leads_nowhere_else = match rule.verdict {
        Verdict::Lookup(table) => table == LOCAL_TABLE || table == TABLE,
        Verdict::Unreachable => other.ours && !other.narrower,
        Verdict::Other(action) => action == ACTION_NOP,
    };
    if leads_nowhere_else || more.vrf || ranges.is_empty() {
        return false;
    }
    let overlaps = |prefix: &IpNet| {
        ranges
            .iter()
            .any(|range| range.contains(prefix) || prefix.contains(range))
    };
    if more.inverted {
        // Spares the ranges for sure only if they are all that it asks about.
        let asks_more =
            more.others || more.from.is_some() || more.incoming.is_some() || more.outgoing;
        let spared = |to: IpNet| ranges.iter().all(|range| to.contains(range));
        return asks_more || rule.mark.is_some() || !rule.to.is_some_and(spared);
    }
    // Packets of pods carry no mark and are bound to no interface.
    let is_marked = rule.mark.is_some_and(|mark| !mark.is_carried_by_all());
    let from_inside = more
        .from
        .is_none_or(|from| overlaps(&from) || !inside.local_devices.is_empty());
    !is_marked
        && !more.outgoing
        && rule.to.is_none_or(|to| overlaps(&to))
        && from_inside
        && more.incoming.as_ref().is_none_or(|name| inside.has(name))
}

impl Inside<'_> {
    fn has(&self, interface: &str) -> bool {
        // The kernel's name for what the node itself sends.
        interface == "lo"
            || interface == self.device
            || interface.starts_with(self.veth_prefix)
            || self.local_devices.iter().any(|name| name == interface)
    }
}
