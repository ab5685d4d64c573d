//! No key seals two things under one number, whatever restarts, goes back or is copied.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_proto::datagram::DatagramKind;
use podmesh_proto::relayed::OVERHEAD;

/// First byte of an initiation and of the answer to one (`WireGuard` paper §5.4).
const INITIATION: u8 = 1;
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
    /// The last number of what a machine sent in each session of a relay.
    relayed: BTreeMap<(usize, u32), u64>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
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
            }
            DatagramKind::Relay => {
                let number = long(bytes, 8);
                let last = self.relayed.insert((machine, word(bytes, 4)), number);
                assert!(
                    last.is_none_or(|last| last < number),
                    "machine {machine} seals frame {number} for a relay after {last:?}"
                );
                let inner = &bytes[RELAY_HEADER..bytes.len() - (OVERHEAD - RELAY_HEADER)];
                if !inner.is_empty() && long(bytes, 16) != 0 {
                    self.sent(machine, inner);
                }
            }
            _ => {}
        }
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
            for end in [word(bytes, 4), word(bytes, 8)] {
                *self.sessions.entry(end).or_default() += 1;
            }
        }
    }
}
