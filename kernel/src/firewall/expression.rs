//! The steps of somebody else's rules, as far as they are understood.

use crate::blocking_netlink::Attributes;

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// What a rule ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// On with the next rule.
    Continue,
    Return,
    Jump(String),
    Goto(String),
    /// Somebody outside of the kernel decides, or something that isn't known.
    Unknown,
}

/// What a map's key leads to, if that is a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) verdict: Option<Verdict>,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Different,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Asks a set whether a key is in it, or a map what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) set: String,
    pub(super) from: usize,
    pub(super) is_inverted: bool,
    pub(super) is_map: bool,
    /// Where a map's value goes, if it is no verdict.
    pub(super) to: Option<usize>,
}

impl Lookup {
    fn read(data: Attributes<'_>) -> Option<Self> {
        Some(Self {
            set: data.text(1)?,
            from: register(data, 2)?,
            is_inverted: data.be32(5).unwrap_or(0) & 1 != 0,
            is_map: data.be32(3).is_some(),
            to: register(data, 3),
        })
    }
}

/// A step. Registers are counted in pieces of four bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Meta {
        key: u32,
        to: usize,
    },
    /// The number of an interface.
    Index {
        is_incoming: bool,
        to: usize,
    },
    SetMark {
        from: usize,
    },
    Payload {
        base: u32,
        offset: usize,
        length: usize,
        to: usize,
    },
    Connection {
        key: u32,
        to: usize,
    },
    Compare {
        from: usize,
        comparison: Comparison,
        value: Vec<u8>,
    },
    Range {
        from: usize,
        is_inside: bool,
        least: Vec<u8>,
        most: Vec<u8>,
    },
    Mask {
        from: usize,
        to: usize,
        mask: Vec<u8>,
        flip: Vec<u8>,
    },
    ByteOrder {
        from: usize,
        to: usize,
        size: usize,
    },
    Lookup(Lookup),
    Value {
        to: usize,
        value: Vec<u8>,
    },
    Verdict(Verdict),
    /// A match of iptables: name, revision and what it wants.
    Match {
        name: String,
        revision: u32,
        wants: Vec<u8>,
    },
    /// A target of iptables: its name and what it is to do.
    Target {
        name: String,
        wants: Vec<u8>,
    },
    /// The kernel tracks no connection of the packet.
    Untrack,
    /// Changes nothing that is judged here.
    Neutral,
    /// Fills this register with something that nobody knows here.
    Load {
        to: usize,
    },
    /// May let the packet pass or not.
    Unknown,
}

impl Expression {
    /// Reads one element of a rule's list.
    pub(super) fn read(element: &[u8]) -> Self {
        let element = Attributes::of(element);
        let data = element.nested(NFTA_EXPR_DATA);
        let name = element.text(NFTA_EXPR_NAME).unwrap_or_default();
        Self::named(&name, data).unwrap_or(Self::Unknown)
    }

    /// `None` for what lacks a part.
    fn named(name: &str, data: Attributes<'_>) -> Option<Self> {
        Some(match name {
            "meta" => meta(data)?,
            "payload" => payload(data)?,
            "ct" => connection(data)?,
            "cmp" => Self::Compare {
                from: register(data, 1)?,
                comparison: Comparison::of(data.be32(2)?)?,
                value: value(data, 3)?,
            },
            "range" => Self::Range {
                from: register(data, 1)?,
                is_inside: data.be32(2)? == 0,
                least: value(data, 3)?,
                most: value(data, 4)?,
            },
            // Another operation than masking, or with a second register.
            "bitwise" if data.be32(6).unwrap_or(0) != 0 => Self::Load {
                to: register(data, 2)?,
            },
            "bitwise" => Self::Mask {
                from: register(data, 1)?,
                to: register(data, 2)?,
                mask: value(data, 4)?,
                flip: value(data, 5)?,
            },
            "byteorder" => Self::ByteOrder {
                from: register(data, 1)?,
                to: register(data, 2)?,
                size: size(data, 5)?,
            },
            "lookup" => Self::Lookup(Lookup::read(data)?),
            "immediate" => immediate(data)?,
            "reject" => Self::Verdict(Verdict::Drop),
            "match" => Self::Match {
                name: data.text(1)?,
                revision: data.be32(2).unwrap_or(0),
                wants: data.find(3)?.to_vec(),
            },
            "target" => Self::Target {
                name: data.text(1)?,
                wants: data.find(3).unwrap_or_default().to_vec(),
            },
            "notrack" => Self::Untrack,
            "counter" | "log" | "objref" | "dynset" | "flow_offload" | "dup" | "last" => {
                Self::Neutral
            }
            "fib" | "rt" | "numgen" | "osf" | "xfrm" => Self::Load {
                to: register(data, 1)?,
            },
            "hash" | "socket" | "tunnel" => Self::Load {
                to: register(data, 2)?,
            },
            "exthdr" => register(data, 1).map_or(Self::Neutral, |to| Self::Load { to }),
            // Translates, and lets pass.
            "nat" | "masq" | "redir" => Self::Verdict(Verdict::Accept),
            "queue" | "fwd" => Self::Verdict(Verdict::Unknown),
            _ => Self::Unknown,
        })
    }
}

impl Comparison {
    fn of(number: u32) -> Option<Self> {
        let all = [
            Self::Equal,
            Self::Different,
            Self::Less,
            Self::LessOrEqual,
            Self::Greater,
            Self::GreaterOrEqual,
        ];
        all.get(usize::try_from(number).ok()?).copied()
    }

    /// Whether it holds; as the kernel does it, byte by byte from the first.
    pub(super) fn holds(self, found: &[u8], wanted: &[u8]) -> bool {
        let order = found.cmp(wanted);
        match self {
            Self::Equal => order.is_eq(),
            Self::Different => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

fn meta(data: Attributes<'_>) -> Option<Expression> {
    const MARK: u32 = 3;
    const INCOMING: u32 = 4;
    const OUTGOING: u32 = 5;
    let key = data.be32(2)?;
    Some(match (register(data, 1), key) {
        (Some(to), INCOMING | OUTGOING) => Expression::Index {
            is_incoming: key == INCOMING,
            to,
        },
        (Some(to), _) => Expression::Meta { key, to },
        (None, MARK) => Expression::SetMark {
            from: register(data, 3)?,
        },
        (None, _) => Expression::Neutral,
    })
}

/// Without a register to fill it writes into the packet.
fn payload(data: Attributes<'_>) -> Option<Expression> {
    let Some(to) = register(data, 1) else {
        return Some(Expression::Neutral);
    };
    Some(Expression::Payload {
        base: data.be32(2)?,
        offset: size(data, 3)?,
        length: size(data, 4)?,
        to,
    })
}

/// Without a register to fill it writes into the connection.
fn connection(data: Attributes<'_>) -> Option<Expression> {
    let Some(to) = register(data, 1) else {
        return Some(Expression::Neutral);
    };
    let key = data.be32(2)?;
    Some(Expression::Connection { key, to })
}

fn immediate(data: Attributes<'_>) -> Option<Expression> {
    let content = data.nested(2);
    if data.be32(1)? == 0 {
        return Some(Expression::Verdict(verdict(content)?));
    }
    let value = content.find(NFTA_DATA_VALUE)?.to_vec();
    Some(Expression::Value {
        to: register(data, 1)?,
        value,
    })
}

/// The verdict in an attribute that may hold one.
pub(super) fn verdict(data: Attributes<'_>) -> Option<Verdict> {
    let verdict = Attributes::of(data.find(NFTA_DATA_VERDICT)?);
    let chain = || verdict.text(NFTA_VERDICT_CHAIN);
    Some(match verdict.be32(NFTA_VERDICT_CODE)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => Verdict::Unknown,
    })
}

/// A register, as the number of its first piece of four bytes. The four of sixteen bytes have the
/// numbers 1 to 4, the pieces those from 8 on; 0 holds verdicts.
fn register(data: Attributes<'_>, kind: u16) -> Option<usize> {
    match size(data, kind)? {
        number @ 1..=4 => Some((number - 1) * 4),
        number @ 8..=23 => Some(number - 8),
        _ => None,
    }
}

fn size(data: Attributes<'_>, kind: u16) -> Option<usize> {
    usize::try_from(data.be32(kind)?).ok()
}

fn value(data: Attributes<'_>, kind: u16) -> Option<Vec<u8>> {
    Some(data.nested(kind).find(NFTA_DATA_VALUE)?.to_vec())
}
