//! Bounds on everything that arrives from outside, with unit and reason.

/// Bytes. The largest control message between node and planet, and of the local socket.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Statements of the root that a node passes on at once, in a second: as many as a planet takes from it.
/// What is beyond goes when both sides compare what they hold.
pub const PUSHED_PER_SECOND: u32 = 16;
/// Bytes. The largest signed document of any kind.
pub const MAX_SIGNED: usize = 16 * 1024;
/// Candidates that one node may publish.
pub const MAX_CANDIDATES: usize = 16;
/// Candidates of one node that may share a destination address: its main port, the second port that
/// shows a hard NAT, and its spare port. What peers send to one address of one node is bounded by
/// time, however many candidates name it.
pub const MAX_CANDIDATES_PER_ADDRESS: usize = 3;
/// Records in one directory message, so that it stays below [`MAX_MESSAGE`].
pub const MAX_RECORDS_PER_UPDATE: usize = 16;
/// Prefixes that one node may claim.
pub const MAX_PREFIXES: usize = 32;
/// Groups on one certificate.
pub const MAX_GROUPS: usize = 16;
/// Steps that a node's identity may take before the node has to join anew.
pub const MAX_SUCCESSIONS: usize = 16;
/// Planets of one network.
pub const MAX_PLANETS: usize = 8;
/// Seconds by which two machines' wall clocks may differ before a validity check bites.
pub const CLOCK_SKEW: u64 = 300;
/// Characters of a node, site, group or network name (one DNS label's length, RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 63;
