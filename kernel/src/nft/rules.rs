//! What the guard wants, as chains of rules: pure, so that it can be read.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    GuardRules,
    expression::{
        Expression::{self, Address, Counter, Interface},
        Family, Side, Verdict, Want,
    },
};

const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMPV6: u8 = 58;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// A chain that hangs on one of netfilter's hooks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) rules: Vec<Rule>,
}

/// Where on a packet's way a chain is asked; the values are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Postrouting = 4,
}

/// One rule, with the sentence that `nft list` shows next to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) comment: String,
    pub(super) expressions: Vec<Expression>,
}

/// All chains, in a fixed order.
pub(super) fn chains(guard: &GuardRules) -> Vec<Chain> {
    vec![
        Chain {
            name: "pod-source",
            kind: "filter",
            hook: Hook::Prerouting,
            // Before connection tracking, so that forged packets leave no trace in it.
            priority: -310,
            rules: pod_source(guard),
        },
        Chain {
            name: "foreign-arrival",
            kind: "filter",
            hook: Hook::Prerouting,
            priority: -305,
            rules: foreign_arrival(guard),
        },
        Chain {
            name: "segment-size",
            kind: "filter",
            hook: Hook::Forward,
            priority: -150,
            rules: segment_size(guard),
        },
        Chain {
            name: "source-nat",
            kind: "nat",
            hook: Hook::Postrouting,
            priority: 100,
            rules: source_nat(guard),
        },
        Chain {
            name: "fail-closed",
            kind: "filter",
            hook: Hook::Postrouting,
            // After every translation of addresses: what is judged here is what would be sent.
            priority: 320,
            rules: fail_closed(guard),
        },
    ]
}

/// Drops what a pod sends under another address than its own, and what only routers may say.
fn pod_source(guard: &GuardRules) -> Vec<Rule> {
    let from_pod = || Interface(Side::From, Want::Equal, guard.pods());
    let icmpv6 = |kind| {
        vec![
            from_pod(),
            Expression::Family(Family::V6),
            Expression::Protocol(IPPROTO_ICMPV6),
            Expression::IcmpType(kind),
        ]
    };
    vec![
        rule(
            "not from a pod",
            [
                Interface(Side::From, Want::Different, guard.pods()),
                accept(),
            ],
        ),
        rule(
            "a pod is no router",
            icmpv6(ROUTER_ADVERTISEMENT).into_iter().chain(drop()),
        ),
        rule(
            "a pod redirects nobody",
            icmpv6(REDIRECT).into_iter().chain(drop()),
        ),
        // Node and pod know each other's hardware address from the start. A pod that could announce
        // others on its link would fill the one neighbour table that all interfaces share.
        rule(
            "a pod has nothing to say about its link",
            [from_pod(), Address(Side::From, Want::Equal, link_local())]
                .into_iter()
                .chain(drop()),
        ),
        rule(
            "a source that is not this pod's",
            [from_pod(), Expression::SpoofedSource]
                .into_iter()
                .chain(drop()),
        ),
    ]
}

/// Drops what claims to be from or for the network but did not come through it.
fn foreign_arrival(guard: &GuardRules) -> Vec<Rule> {
    let mut rules: Vec<_> = guard
        .own_devices()
        .map(|name| {
            rule(
                "own interface",
                [Interface(Side::From, Want::Equal, name), accept()],
            )
        })
        .collect();
    for range in &guard.protected {
        for (side, comment) in [
            (Side::From, "pretends to come from the network"),
            (Side::To, "reaches for the network from outside"),
        ] {
            let address = [Address(side, Want::Equal, *range)];
            rules.push(rule(comment, address.into_iter().chain(drop())));
        }
    }
    rules
}

/// Makes TCP fit into the tunnel where path MTU discovery is broken.
fn segment_size(guard: &GuardRules) -> Vec<Rule> {
    [Side::From, Side::To]
        .map(|side| {
            rule(
                "TCP segments that fit the tunnel",
                [
                    Interface(side, Want::Equal, guard.device.clone()),
                    Expression::Protocol(IPPROTO_TCP),
                    Expression::TcpSyn,
                    Expression::ClampMss,
                ],
            )
        })
        .into()
}

/// Keeps sources inside the network, gives foreign ones this node's, and hides pods from the rest.
fn source_nat(guard: &GuardRules) -> Vec<Rule> {
    let mesh = |want| Interface(Side::To, want, guard.device.clone());
    let own = guard.own_pod_cidrs.iter().copied();
    let own = own.chain(guard.own_overlay.iter().copied().map(IpNet::from));
    let mut rules: Vec<_> = own
        .map(|range| {
            rule(
                "this node's own source",
                [
                    mesh(Want::Equal),
                    Address(Side::From, Want::Equal, range),
                    accept(),
                ],
            )
        })
        .collect();
    for family in [Family::V4, Family::V6] {
        let overlay = guard.own_overlay.iter();
        if let Some(address) = overlay.copied().find(|own| Family::of(own) == family) {
            rules.push(rule(
                "a foreign source enters the network as this node",
                [
                    mesh(Want::Equal),
                    Expression::Family(family),
                    Counter,
                    Expression::SourceNat(address),
                ],
            ));
        }
    }
    for range in inside(guard) {
        rules.push(rule(
            "stays in the network",
            [Address(Side::To, Want::Equal, range), accept()],
        ));
    }
    for cidr in &guard.own_pod_cidrs {
        rules.push(rule(
            "a pod talks to the world outside as this node",
            [
                mesh(Want::Different),
                Interface(Side::To, Want::Different, guard.pods()),
                Address(Side::From, Want::Equal, *cidr),
                Counter,
                Expression::Masquerade,
            ],
        ));
    }
    rules
}

/// Drops packets for the network that are about to leave this machine unencrypted, and packets that
/// still carry one of its addresses as their source: translation passes over what belongs to no
/// known connection, a stray TCP reset for instance.
fn fail_closed(guard: &GuardRules) -> Vec<Rule> {
    let mut rules = vec![rule(
        "no tunnel inside the tunnel",
        [
            Expression::Mark(guard.mark),
            Interface(Side::To, Want::Equal, guard.device.clone()),
        ]
        .into_iter()
        .chain(drop()),
    )];
    for name in [guard.device.clone(), guard.pods(), "lo".to_owned()] {
        rules.push(rule(
            "own interface",
            [Interface(Side::To, Want::Equal, name), accept()],
        ));
    }
    for device in &guard.local_devices {
        for cidr in &guard.own_pod_cidrs {
            rules.push(rule(
                "a pod of this node behind another plugin's interface",
                [
                    Interface(Side::To, Want::Equal, device.clone()),
                    Address(Side::To, Want::Equal, *cidr),
                    accept(),
                ],
            ));
        }
    }
    for range in &guard.protected {
        rules.push(rule(
            "would leave unencrypted",
            [Address(Side::To, Want::Equal, *range)]
                .into_iter()
                .chain(drop()),
        ));
    }
    for device in &guard.local_devices {
        rules.push(rule(
            "another plugin's interface",
            [Interface(Side::To, Want::Equal, device.clone()), accept()],
        ));
    }
    for range in &guard.protected {
        rules.push(rule(
            "would show an address of the network outside",
            [Address(Side::From, Want::Equal, *range)]
                .into_iter()
                .chain(drop()),
        ));
    }
    rules
}

/// Destinations towards which a pod keeps its address.
pub(super) fn inside(guard: &GuardRules) -> impl Iterator<Item = IpNet> + '_ {
    let multicast = [
        IpNet::new_assert(IpAddr::from([224, 0, 0, 0]), 4),
        IpNet::new_assert(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    ];
    guard.protected.iter().copied().chain(multicast)
}

fn link_local() -> IpNet {
    IpNet::new_assert(IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10)
}

fn rule(comment: &str, expressions: impl IntoIterator<Item = Expression>) -> Rule {
    Rule {
        comment: comment.to_owned(),
        expressions: expressions.into_iter().collect(),
    }
}

fn accept() -> Expression {
    Expression::Verdict(Verdict::Accept)
}

fn drop() -> [Expression; 2] {
    [Counter, Expression::Verdict(Verdict::Drop)]
}
