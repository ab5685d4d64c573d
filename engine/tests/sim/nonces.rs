//! No key seals two things under one number, and none is used before both ends have it, whatever restarts, goes
//! back or is copied.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::relayed::OVERHEAD;

/// First byte of an initiation and of the answer to one (`WireGuard` paper §5.4).
pub const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
/// Bytes of a relay frame before and behind what it carries.
const RELAY_HEADER: usize = 24;

/// Everything that was ever sealed.
#[derive(Default)]
pub struct Nonces {
    /// Tag, which tells the key, and nonce.
    probes: BTreeSet<Vec<u8>>,
    /// One-time keys of handshakes.
    ephemerals: BTreeSet<Vec<u8>>,
    /// How often a machine sent each number to each end of a tunnel.
    data: BTreeMap<(usize, u32, u64), u64>,
    /// Sessions that were agreed on for each end. One begins when both know, and until then the one before goes
    /// on, so that which one a datagram is of can't be told; but there is none in which a number goes twice.
    sessions: BTreeMap<u32, u64>,
    /// Other ends whose answer to a handshake came to a machine.
    answers: BTreeSet<(usize, u32)>,
    /// Other ends whose handshake a machine has answered, its own ends of those sessions, and whether data has
    /// come to them since: who answered a handshake sends nothing before (`WireGuard` paper §5.4.6), as the
    /// answer may be lost.
    answered: BTreeMap<(usize, u32), BTreeMap<u32, bool>>,
    /// Handshakes that each machine has answered.
    pub responses: BTreeMap<usize, u64>,
    /// The last number of what a machine sent in each session of a relay.
    relayed: BTreeMap<(usize, u32), u64>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What a frame carries by way of a relay.
pub fn carried(frame: &[u8]) -> Option<&[u8]> {
    if DatagramKind::of(frame) != DatagramKind::Relay {
        return None;
    }
    let inner = &frame[RELAY_HEADER..frame.len() - (OVERHEAD - RELAY_HEADER)];
    (!inner.is_empty() && long(frame, 16) != 0).then_some(inner)
}

impl Nonces {
    /// A machine sends a datagram.
    pub fn sent(&mut self, machine: usize, bytes: &[u8]) {
        match DatagramKind::of(bytes) {
            DatagramKind::Probe => {
                let nonce = bytes[4..36].to_vec();
                assert!(
                    self.probes.insert(nonce),
                    "machine {machine} seals two probes under one nonce"
                );
            }
            DatagramKind::WireGuardHandshake => self.handshake(machine, bytes),
            DatagramKind::WireGuardData => {
                let (number, receiver) = (long(bytes, 8), word(bytes, 4));
                let agreed = self.sessions.get(&receiver).copied().unwrap_or(0);
                let sent = self.data.entry((machine, receiver, number)).or_default();
                *sent += 1;
                assert!(
                    *sent <= agreed,
                    "machine {machine} seals packet {number} {sent} times in {agreed} sessions"
                );
                assert!(
                    self.is_confirmed(machine, receiver),
                    "machine {machine} seals packet {number} for a session that it can't know the other end to have"
                );
            }
            DatagramKind::Relay => {
                let number = long(bytes, 8);
                let last = self.relayed.insert((machine, word(bytes, 4)), number);
                assert!(
                    last.is_none_or(|last| last < number),
                    "machine {machine} seals frame {number} for a relay after {last:?}"
                );
                if let Some(inner) = carried(bytes) {
                    self.sent(machine, inner);
                }
            }
            _ => {}
        }
    }

    /// A datagram comes to a machine, from whomever.
    pub fn came(&mut self, machine: usize, bytes: &[u8]) {
        match DatagramKind::of(bytes) {
            DatagramKind::WireGuardHandshake if bytes[0] == RESPONSE => {
                self.answers.insert((machine, word(bytes, 4)));
            }
            DatagramKind::WireGuardData => {
                let end = word(bytes, 4);
                let of_machine = self.answered.range_mut((machine, 0)..=(machine, u32::MAX));
                for confirmed in of_machine.filter_map(|(_, ends)| ends.get_mut(&end)) {
                    *confirmed = true;
                }
            }
            DatagramKind::Relay => {
                if let Some(inner) = carried(bytes) {
                    self.came(machine, inner);
                }
            }
            _ => {}
        }
    }

    /// Whether a machine knows that the other end has a session of theirs.
    fn is_confirmed(&self, machine: usize, receiver: u32) -> bool {
        let answered = self.answered.get(&(machine, receiver));
        let mut ends = answered.into_iter().flat_map(BTreeMap::values);
        self.answers.contains(&(machine, receiver)) || ends.any(|confirmed| *confirmed)
    }

    fn handshake(&mut self, machine: usize, bytes: &[u8]) {
        let ephemeral = match bytes[0] {
            INITIATION => &bytes[8..40],
            RESPONSE => &bytes[12..44],
            _ => return,
        };
        assert!(
            self.ephemerals.insert(ephemeral.to_vec()),
            "machine {machine} uses a one-time key twice"
        );
        if bytes[0] == RESPONSE {
            *self.responses.entry(machine).or_default() += 1;
            for end in [word(bytes, 4), word(bytes, 8)] {
                *self.sessions.entry(end).or_default() += 1;
            }
            let ends = self.answered.entry((machine, word(bytes, 8))).or_default();
            ends.entry(word(bytes, 4)).or_default();
        }
    }
}
