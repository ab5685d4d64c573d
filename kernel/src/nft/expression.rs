//! The few nftables expressions that the guard is made of, and their bytes.
//!
//! Numbers are those of the kernel's `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::blocking_netlink::Message;
use crate::mark::Mark;

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;

const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

const INTERFACE_NAME_BYTES: usize = 16;

/// Whether a comparison wants equality or its opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Equal,
    Different,
}

/// Which end of a packet's way an expression looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Source address, or the interface by which the packet came.
    From,
    /// Destination address, or the interface by which the packet goes.
    To,
}

/// A verdict that ends the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop,
    Accept,
}

/// One address family of the `inet` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// The interface's name is, or is not, exactly this; a trailing `*` compares the beginning.
    Interface(Side, Want, String),
    /// The packet carries this mark.
    Mark(Mark),
    /// The packet is of this address family.
    Family(Family),
    /// Source or destination lies, or does not lie, in this range.
    Address(Side, Want, IpNet),
    /// The transport protocol has this number.
    Protocol(u8),
    /// The first byte of the transport header, which is the type in ICMP and ICMPv6.
    IcmpType(u8),
    /// A TCP segment that opens a connection: SYN without RST.
    TcpSyn,
    /// The route back to the source does not lead to the interface by which the packet came.
    SpoofedSource,
    /// Lowers the MSS option to what the packet's route can carry.
    ClampMss,
    /// Counts.
    Counter,
    /// Ends the chain.
    Verdict(Verdict),
    /// Gives the packet this source address, and leaves it its port where nobody else has it.
    SourceNat(IpAddr),
    /// Gives the packet the address of the interface by which it leaves, and leaves it its port where
    /// nobody else has it: whoever asks from one port is seen behind one, and can be found by peers.
    /// Random ports would spare two connections that begin in the same instant a clash over the first
    /// packet, at the price of a symmetric NAT in front of every pod.
    Masquerade,
}

impl Expression {
    /// Appends what the kernel calls a list of expressions.
    pub(super) fn append_all(expressions: &[Self], list: &mut Message) {
        for expression in expressions {
            expression.append(list);
        }
    }

    fn append(&self, list: &mut Message) {
        match self {
            Self::Interface(side, want, name) => {
                let key = match side {
                    Side::From => META_IIFNAME,
                    Side::To => META_OIFNAME,
                };
                meta(list, key);
                compare(list, *want, &interface_name(name));
            }
            Self::Mark(mark) => {
                meta(list, META_MARK);
                mask(list, &mark.mask.to_ne_bytes());
                compare(list, Want::Equal, &mark.value.to_ne_bytes());
            }
            Self::Family(family) => {
                meta(list, META_NFPROTO);
                compare(list, Want::Equal, &[family.number()]);
            }
            Self::Address(side, want, range) => address(list, *side, *want, range),
            Self::Protocol(number) => {
                meta(list, META_L4PROTO);
                compare(list, Want::Equal, &[*number]);
            }
            Self::IcmpType(kind) => {
                payload(list, TRANSPORT_HEADER, 0, 1);
                compare(list, Want::Equal, &[*kind]);
            }
            Self::TcpSyn => {
                const SYN: u8 = 0x02;
                const RST: u8 = 0x04;
                payload(list, TRANSPORT_HEADER, 13, 1);
                mask(list, &[SYN | RST]);
                compare(list, Want::Equal, &[SYN]);
            }
            Self::SpoofedSource => spoofed_source(list),
            Self::ClampMss => clamp_mss(list),
            Self::Counter => element(list, "counter", |_| {}),
            Self::Verdict(verdict) => end(list, *verdict),
            Self::SourceNat(address) => source_nat(list, address),
            Self::Masquerade => element(list, "masq", |_| {}),
        }
    }
}

fn element(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nested(NFTA_LIST_ELEM, |element| {
        element.text(NFTA_EXPR_NAME, name);
        element.nested(NFTA_EXPR_DATA, fill);
    });
}

fn meta(list: &mut Message, key: u32) {
    const NFTA_META_DREG: u16 = 1;
    const NFTA_META_KEY: u16 = 2;
    element(list, "meta", |meta| {
        meta.be32(NFTA_META_KEY, key);
        meta.be32(NFTA_META_DREG, REGISTER);
    });
}

fn compare(list: &mut Message, want: Want, bytes: &[u8]) {
    const NFTA_CMP_SREG: u16 = 1;
    const NFTA_CMP_OP: u16 = 2;
    const NFTA_CMP_DATA: u16 = 3;
    let operation = match want {
        Want::Equal => 0,
        Want::Different => 1,
    };
    element(list, "cmp", |cmp| {
        cmp.be32(NFTA_CMP_SREG, REGISTER);
        cmp.be32(NFTA_CMP_OP, operation);
        cmp.nested(NFTA_CMP_DATA, |value| {
            value.bytes(NFTA_DATA_VALUE, bytes);
        });
    });
}

fn payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    const NFTA_PAYLOAD_DREG: u16 = 1;
    const NFTA_PAYLOAD_BASE: u16 = 2;
    const NFTA_PAYLOAD_OFFSET: u16 = 3;
    const NFTA_PAYLOAD_LEN: u16 = 4;
    element(list, "payload", |payload| {
        payload.be32(NFTA_PAYLOAD_DREG, REGISTER);
        payload.be32(NFTA_PAYLOAD_BASE, base);
        payload.be32(NFTA_PAYLOAD_OFFSET, offset);
        payload.be32(NFTA_PAYLOAD_LEN, length);
    });
}

fn mask(list: &mut Message, mask: &[u8]) {
    const NFTA_BITWISE_SREG: u16 = 1;
    const NFTA_BITWISE_DREG: u16 = 2;
    const NFTA_BITWISE_LEN: u16 = 3;
    const NFTA_BITWISE_MASK: u16 = 4;
    const NFTA_BITWISE_XOR: u16 = 5;
    let length = u32::try_from(mask.len()).unwrap_or(0);
    element(list, "bitwise", |bitwise| {
        bitwise.be32(NFTA_BITWISE_SREG, REGISTER);
        bitwise.be32(NFTA_BITWISE_DREG, REGISTER);
        bitwise.be32(NFTA_BITWISE_LEN, length);
        bitwise.nested(NFTA_BITWISE_MASK, |value| {
            value.bytes(NFTA_DATA_VALUE, mask);
        });
        bitwise.nested(NFTA_BITWISE_XOR, |value| {
            value.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]);
        });
    });
}

fn address(list: &mut Message, side: Side, want: Want, range: &IpNet) {
    let (offset, network, netmask) = match (range, side) {
        (IpNet::V4(range), Side::From) => (
            12,
            range.network().octets().to_vec(),
            range.netmask().octets().to_vec(),
        ),
        (IpNet::V4(range), Side::To) => (
            16,
            range.network().octets().to_vec(),
            range.netmask().octets().to_vec(),
        ),
        (IpNet::V6(range), Side::From) => (
            8,
            range.network().octets().to_vec(),
            range.netmask().octets().to_vec(),
        ),
        (IpNet::V6(range), Side::To) => (
            24,
            range.network().octets().to_vec(),
            range.netmask().octets().to_vec(),
        ),
    };
    Expression::Family(Family::of(&range.addr())).append(list);
    payload(
        list,
        NETWORK_HEADER,
        offset,
        u32::try_from(network.len()).unwrap_or(0),
    );
    if range.prefix_len() < range.max_prefix_len() {
        mask(list, &netmask);
    }
    compare(list, want, &network);
}

fn spoofed_source(list: &mut Message) {
    const NFTA_FIB_DREG: u16 = 1;
    const NFTA_FIB_RESULT: u16 = 2;
    const NFTA_FIB_FLAGS: u16 = 3;
    const RESULT_OIF: u32 = 1;
    const FLAG_SADDR: u32 = 1;
    const FLAG_IIF: u32 = 1 << 3;
    element(list, "fib", |fib| {
        fib.be32(NFTA_FIB_DREG, REGISTER);
        fib.be32(NFTA_FIB_RESULT, RESULT_OIF);
        fib.be32(NFTA_FIB_FLAGS, FLAG_SADDR | FLAG_IIF);
    });
    compare(list, Want::Equal, &0_u32.to_ne_bytes());
}

fn clamp_mss(list: &mut Message) {
    const NFTA_RT_DREG: u16 = 1;
    const NFTA_RT_KEY: u16 = 2;
    const RT_TCPMSS: u32 = 3;
    const NFTA_BYTEORDER_SREG: u16 = 1;
    const NFTA_BYTEORDER_DREG: u16 = 2;
    const NFTA_BYTEORDER_OP: u16 = 3;
    const NFTA_BYTEORDER_LEN: u16 = 4;
    const NFTA_BYTEORDER_SIZE: u16 = 5;
    const TO_NETWORK_ORDER: u32 = 1;
    const NFTA_EXTHDR_TYPE: u16 = 2;
    const NFTA_EXTHDR_OFFSET: u16 = 3;
    const NFTA_EXTHDR_LEN: u16 = 4;
    const NFTA_EXTHDR_OP: u16 = 6;
    const NFTA_EXTHDR_SREG: u16 = 7;
    const OP_TCP_OPTION: u32 = 1;
    const TCP_OPTION_MSS: u8 = 2;
    element(list, "rt", |rt| {
        rt.be32(NFTA_RT_DREG, REGISTER);
        rt.be32(NFTA_RT_KEY, RT_TCPMSS);
    });
    element(list, "byteorder", |order| {
        order.be32(NFTA_BYTEORDER_SREG, REGISTER);
        order.be32(NFTA_BYTEORDER_DREG, REGISTER);
        order.be32(NFTA_BYTEORDER_OP, TO_NETWORK_ORDER);
        order.be32(NFTA_BYTEORDER_LEN, 2);
        order.be32(NFTA_BYTEORDER_SIZE, 2);
    });
    element(list, "exthdr", |option| {
        option.be32(NFTA_EXTHDR_SREG, REGISTER);
        option.bytes(NFTA_EXTHDR_TYPE, &[TCP_OPTION_MSS]);
        option.be32(NFTA_EXTHDR_OFFSET, 2);
        option.be32(NFTA_EXTHDR_LEN, 2);
        option.be32(NFTA_EXTHDR_OP, OP_TCP_OPTION);
    });
}

fn immediate(list: &mut Message, register: u32, fill: impl FnOnce(&mut Message)) {
    const NFTA_IMMEDIATE_DREG: u16 = 1;
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    element(list, "immediate", |immediate| {
        immediate.be32(NFTA_IMMEDIATE_DREG, register);
        immediate.nested(NFTA_IMMEDIATE_DATA, fill);
    });
}

fn end(list: &mut Message, verdict: Verdict) {
    let code = match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
    };
    immediate(list, VERDICT_REGISTER, |value| {
        value.nested(NFTA_DATA_VERDICT, |verdict| {
            verdict.be32(NFTA_VERDICT_CODE, code);
        });
    });
}

fn source_nat(list: &mut Message, address: &IpAddr) {
    const NFTA_NAT_TYPE: u16 = 1;
    const NFTA_NAT_FAMILY: u16 = 2;
    const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
    const NFTA_NAT_FLAGS: u16 = 7;
    const SOURCE: u32 = 0;
    /// "An address is given", which the kernel would add by itself and then show.
    const MAP_ADDRESS: u32 = 1;
    immediate(list, REGISTER, |value| {
        value.bytes(NFTA_DATA_VALUE, &octets(address));
    });
    element(list, "nat", |nat| {
        nat.be32(NFTA_NAT_TYPE, SOURCE);
        nat.be32(NFTA_NAT_FAMILY, u32::from(Family::of(address).number()));
        nat.be32(NFTA_NAT_REG_ADDR_MIN, REGISTER);
        nat.be32(NFTA_NAT_FLAGS, MAP_ADDRESS);
    });
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn interface_name(name: &str) -> Vec<u8> {
    if let Some(beginning) = name.strip_suffix('*') {
        return beginning.as_bytes().to_vec();
    }
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(INTERFACE_NAME_BYTES, 0);
    bytes
}
