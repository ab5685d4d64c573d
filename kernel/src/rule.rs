//! Policy routing rules: which table a packet is looked up in.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::mark::Mark;
use crate::netlink::{Mode, Netlink, NetlinkError, family};
use crate::route::PROTOCOL;

/// Our own datagrams, by their mark, to the main table.
pub const MARK_PRIORITY: u32 = 4990;
/// Our own datagrams for which the main table has no answer never get to [`RANGE_PRIORITY`].
pub const MARK_GUARD_PRIORITY: u32 = 4991;
/// Packets to our ranges, to our table.
pub const RANGE_PRIORITY: u32 = 5000;

/// What a rule does with a packet that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Look it up in this table, and go on with the next rule if that has no route.
    Lookup(u32),
    /// Drop it and tell the sender.
    Unreachable,
    /// Another of the kernel's actions, by its number.
    Other(u8),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Whether it is for IPv4, otherwise for IPv6.
    pub is_ipv4: bool,
    /// The lowest is asked first.
    pub priority: u32,
    /// Only packets to this prefix.
    pub to: Option<IpNet>,
    /// Only packets with this mark.
    pub mark: Option<Mark>,
    /// What happens to them.
    pub verdict: Verdict,
}

/// A rule that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentRule {
    /// The rule.
    pub rule: Rule,
    /// Whether it carries our protocol number.
    pub ours: bool,
    /// Whether it has conditions beyond those of [`Rule`].
    pub narrower: bool,
    /// These conditions.
    pub conditions: Conditions,
}

/// What a rule asks beyond the conditions of [`Rule`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Only packets from this prefix.
    pub from: Option<IpNet>,
    /// Only packets that came in by this interface; `lo` stands for the node's own.
    pub incoming: Option<String>,
    /// Only packets of sockets that are bound to some interface.
    pub outgoing: bool,
    /// Only packets of virtual routers.
    pub vrf: bool,
    /// The rule holds for all packets that it would not hold for otherwise.
    pub inverted: bool,
    /// Routes of the table count only if their prefixes are longer, in bits.
    pub suppressed: Option<u8>,
    /// Anything else.
    pub others: bool,
}

impl fmt::Display for PresentRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conditions {
            from,
            incoming,
            inverted,
            suppressed,
            ..
        } = &self.conditions;
        self.rule.fmt(out)?;
        if let Some(from) = from {
            write!(out, " from {from}")?;
        }
        if let Some(incoming) = incoming {
            write!(out, " iif {incoming}")?;
        }
        if let Some(suppressed) = suppressed {
            write!(out, " suppress_prefixlength {suppressed}")?;
        }
        out.write_str(if *inverted { " inverted" } else { "" })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} ipv{}",
            self.priority,
            if self.is_ipv4 { 4 } else { 6 }
        )?;
        if let Some(mark) = self.mark {
            write!(out, " mark {mark}")?;
        }
        if let Some(to) = self.to {
            write!(out, " to {to}")?;
        }
        match self.verdict {
            Verdict::Lookup(table) => write!(out, " lookup {table}"),
            Verdict::Unreachable => write!(out, " unreachable"),
            Verdict::Other(action) => write!(out, " action {action}"),
        }
    }
}

impl Netlink {
    /// All rules of both families.
    ///
    /// # Errors
    ///
    /// When the kernel can't be asked.
    pub async fn rules(&self) -> Result<Vec<PresentRule>, NetlinkError> {
        let mut rules = Vec::new();
        for is_ipv4 in [true, false] {
            let mut question = RuleMessage::default();
            question.header.family = family(is_ipv4);
            let question = RouteNetlinkMessage::GetRule(question);
            for answer in self.dump(question, "list the routing rules").await? {
                if let RouteNetlinkMessage::NewRule(message) = answer
                    && message.header.family == family(is_ipv4)
                {
                    rules.extend(read(&message, is_ipv4));
                }
            }
        }
        Ok(rules)
    }

    /// Adds a rule, marked as ours.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, also when there is an equal one.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRule(describe(rule));
        self.change(message, Mode::Create, format_args!("add rule {rule}"))
            .await
    }

    /// Removes a rule that is ours.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, also when there is none.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelRule(describe(rule));
        self.change(message, Mode::Existing, format_args!("remove rule {rule}"))
            .await
    }
}

fn describe(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.is_ipv4);
    message
        .attributes
        .push(RuleAttribute::Priority(rule.priority));
    message
        .attributes
        .push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    message.header.action = match rule.verdict {
        Verdict::Lookup(table) => {
            message.attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Verdict::Unreachable => RuleAction::Unreachable,
        Verdict::Other(action) => RuleAction::from(action),
    };
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        message
            .attributes
            .push(RuleAttribute::Destination(to.network()));
    }
    if let Some(mark) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark.value));
        message.attributes.push(RuleAttribute::FwMask(mark.mask));
    }
    message
}

fn read(message: &RuleMessage, is_ipv4: bool) -> Option<PresentRule> {
    let (mut priority, mut to, mut ours) = (0, None, false);
    // The kernel leaves out what is zero.
    let mut mark = Mark { value: 0, mask: 0 };
    let mut table = u32::from(message.header.table);
    // The lowest flag bits tell about the rule's state; "invert" is a condition.
    let mut more = Conditions {
        inverted: message.header.flags.bits() & 2 != 0,
        others: message.header.tos != 0,
        ..Conditions::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::FwMark(value) => mark.value = *value,
            RuleAttribute::FwMask(value) => mark.mask = *value,
            RuleAttribute::Destination(address) => {
                to = Some(IpNet::new(*address, message.header.dst_len).ok()?);
            }
            RuleAttribute::Source(address) => {
                more.from = Some(IpNet::new(*address, message.header.src_len).ok()?);
            }
            RuleAttribute::Iifname(name) => more.incoming = Some(name.clone()),
            RuleAttribute::Oifname(_) => more.outgoing = true,
            RuleAttribute::L3MDev(is_set) => more.vrf = *is_set,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            // What the kernel adds to each rule, without effect.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::SuppressPrefixLen(most) => more.suppressed = u8::try_from(*most).ok(),
            _ => more.others = true,
        }
    }
    let verdict = match message.header.action {
        RuleAction::ToTable => Verdict::Lookup(table),
        RuleAction::Unreachable => Verdict::Unreachable,
        other => Verdict::Other(other.into()),
    };
    Some(PresentRule {
        rule: Rule {
            is_ipv4,
            priority,
            to,
            mark: (mark.mask != 0).then_some(mark),
            verdict,
        },
        ours,
        narrower: more != Conditions::default(),
        conditions: more,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_survives_its_message() {
        let to = |text: &str| Some(text.parse().expect("a prefix"));
        let mark = |value, mask| Some(Mark { value, mask });
        for (to, mark, verdict) in [
            (to("10.42.0.0/16"), None, Verdict::Lookup(7077)),
            (to("fd00::/48"), mark(7, u32::MAX), Verdict::Unreachable),
            (None, mark(0x101c, 0x101c), Verdict::Lookup(254)),
            (None, mark(0, 1), Verdict::Lookup(254)),
        ] {
            let is_ipv4 = to.is_none_or(|to: IpNet| to.addr().is_ipv4());
            let rule = Rule {
                is_ipv4,
                priority: 5000,
                to,
                mark,
                verdict,
            };
            let present = PresentRule {
                rule: rule.clone(),
                ours: true,
                narrower: false,
                conditions: Conditions::default(),
            };
            assert_eq!(read(&describe(&rule), is_ipv4), Some(present));
        }
    }
}
