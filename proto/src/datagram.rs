//! What a datagram is, by its first byte: one table for nodes and planets.
//!
//! WireGuard messages start with 1 to 4 and three zero bytes, QUIC packets have bit 0x40 set as long
//! as neither end greases it (RFC 9287), and the rest of the space below 0x40 is ours.

/// First byte of a sealed probe between nodes.
pub const PROBE: u8 = 0x20;
/// First byte of a relay frame that carries a datagram from a node to its planet.
pub const RELAY_UP: u8 = 0x30;
/// First byte of a relay frame that carries a datagram from a planet to a node.
pub const RELAY_DOWN: u8 = 0x31;
/// First byte of a node's question where the planet sees it.
pub const OBSERVE: u8 = 0x32;
/// First byte of the planet's answer to that.
pub const OBSERVED: u8 = 0x33;

/// A kind of datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramKind {
    /// WireGuard handshake initiation, response or cookie reply.
    WireGuardHandshake,
    /// WireGuard transport data.
    WireGuardData,
    /// A sealed probe between nodes.
    Probe,
    /// A relay frame of any of its four kinds.
    Relay,
    /// A QUIC packet.
    Quic,
    /// Nothing we know; dropped and counted.
    Unknown,
}

impl DatagramKind {
    /// Judges a datagram by its first bytes.
    #[must_use]
    pub fn of(datagram: &[u8]) -> Self {
        match datagram {
            [1..=3, 0, 0, 0, ..] => Self::WireGuardHandshake,
            [4, 0, 0, 0, ..] => Self::WireGuardData,
            [PROBE, ..] => Self::Probe,
            [RELAY_UP..=OBSERVED, ..] => Self::Relay,
            [0x40..=0xff, ..] => Self::Quic,
            _ => Self::Unknown,
        }
    }
}
