//! Matches and targets of iptables, which iptables-nft puts into rules of nftables as they are.

use super::{
    condition::{self, Answer, Judged, UNKNOWN},
    expression::Verdict,
    packet::Packet,
};

/// What a match wants, judged for a packet.
pub(super) fn judge(name: &str, revision: u32, wants: &[u8], packet: &Packet) -> Judged {
    match (name, revision) {
        ("comment", _) => (Answer::Yes, false),
        ("conntrack", 1..=3) => conntrack(wants, packet),
        ("state", _) => state(number(wants, 0), packet),
        ("mark", 1) => mark(wants, packet),
        ("udp", 0) => udp(wants, packet),
        // About ports and protocols.
        ("tcp" | "udp" | "udplite" | "sctp" | "dccp" | "multiport" | "icmp" | "icmp6", _) => {
            (Answer::Few, false)
        }
        // Nothing of ours passes a bridge's ports.
        ("physdev", _) => (Answer::No, false),
        _ => UNKNOWN,
    }
}

/// What a target does to a packet's way.
pub(super) fn target(name: &str) -> Verdict {
    match name {
        "REJECT" | "DROP" => Verdict::Drop,
        "LOG" | "NFLOG" | "ULOG" | "MARK" | "CONNMARK" | "TCPMSS" | "TRACE" | "CT" | "NOTRACK"
        | "CHECKSUM" | "CLASSIFY" | "DSCP" | "TOS" | "TTL" | "HL" | "SET" | "AUDIT"
        | "TCPOPTSTRIP" | "SECMARK" | "CONNSECMARK" | "IDLETIMER" | "RATEEST" | "LED" | "TEE"
        | "ACCOUNT" => Verdict::Continue,
        _ => Verdict::Unknown,
    }
}

/// Whether a target may change the packet's mark.
pub(super) fn marks(name: &str) -> bool {
    name == "MARK" || name == "CONNMARK"
}

/// The mark that a target leaves of one, where that is known: `--set-xmark` and all that is made of it.
pub(super) fn marked(name: &str, wants: &[u8], before: u32) -> Option<u32> {
    let (set, mask) = (number(wants, 0)?, number(wants, 4)?);
    (name == "MARK").then_some(before & !mask ^ set)
}

/// Whether a target keeps the kernel from tracking the packet's connection.
pub(super) fn untracks(name: &str, wants: &[u8]) -> bool {
    const FLAG: u16 = 1;
    let flags = u16::from_ne_bytes(wants.first_chunk().copied().unwrap_or_default());
    name == "NOTRACK" || name == "CT" && flags & FLAG != 0
}

/// Only the state of the connection is understood.
fn conntrack(wants: &[u8], packet: &Packet) -> Judged {
    const MATCH_FLAGS: usize = 146;
    const INVERT_FLAGS: usize = 148;
    const STATE_MASK: usize = 150;
    const STATE: u16 = 1;
    let at = |place: usize| {
        let bytes = wants.get(place..)?.first_chunk::<2>()?;
        Some(u16::from_ne_bytes(*bytes))
    };
    let (Some(flags), Some(inverted), Some(mask)) =
        (at(MATCH_FLAGS), at(INVERT_FLAGS), at(STATE_MASK))
    else {
        return UNKNOWN;
    };
    if flags != STATE {
        return UNKNOWN;
    }
    let (answer, own) = state(Some(u32::from(mask)), packet);
    let is_inverted = inverted & STATE != 0;
    match answer {
        Answer::Yes if is_inverted => (Answer::No, own),
        Answer::No if is_inverted => (Answer::Yes, own),
        _ => (answer, own),
    }
}

/// Ranges of ports: the only match about ports that iptables itself doesn't write as steps of nftables, and
/// that a rule for the tunnels needs.
fn udp(wants: &[u8], packet: &Packet) -> Judged {
    const EVERY: [u8; 4] = [0, 0, 0xff, 0xff];
    let few = (Answer::Few, false);
    let (Some(ranges), Some(inverted)) = (wants.get(..8), wants.get(8)) else {
        return UNKNOWN;
    };
    let mut judged = (Answer::Yes, false);
    let ports = [&packet.source_port, &packet.destination_port];
    for (number, (range, port)) in ranges.chunks_exact(4).zip(ports).enumerate() {
        // Of this machine's order, where packets have the network's.
        let range: Vec<u8> = range.chunks(2).flat_map(swapped).collect();
        if range == EVERY {
            continue;
        }
        let (least, most) = range.split_at(2);
        let found = port
            .as_ref()
            .map_or(few, |port| condition::lies_between(port, least, most));
        let found = if inverted >> number & 1 == 1 {
            condition::not(found)
        } else {
            found
        };
        judged = match (judged.0, found.0) {
            (Answer::No, _) | (_, Answer::No) => (Answer::No, false),
            (Answer::Few, _) | (_, Answer::Few) => few,
            (Answer::Perhaps, _) | (_, Answer::Perhaps) => UNKNOWN,
            (Answer::Yes, Answer::Yes) => judged,
        };
    }
    judged
}

fn swapped(port: &[u8]) -> impl Iterator<Item = u8> {
    let number = port
        .first_chunk()
        .map_or(0, |bytes| u16::from_ne_bytes(*bytes));
    number.to_be_bytes().into_iter()
}

fn state(mask: Option<u32>, packet: &Packet) -> Judged {
    match (mask, packet.state) {
        (Some(mask), Some(state)) if mask & state != 0 => (Answer::Yes, false),
        (Some(_), Some(_)) => (Answer::No, false),
        _ => UNKNOWN,
    }
}

fn mark(wants: &[u8], packet: &Packet) -> Judged {
    let found = packet.mark.as_ref().and_then(|mark| number(&mark.bytes, 0));
    let (Some(found), Some(mark), Some(mask)) = (found, number(wants, 0), number(wants, 4)) else {
        return UNKNOWN;
    };
    let is_inverted = wants.get(8).is_some_and(|byte| *byte != 0);
    if (found & mask == mark) != is_inverted {
        (Answer::Yes, false)
    } else {
        (Answer::No, false)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
