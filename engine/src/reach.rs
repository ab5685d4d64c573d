//! How far a datagram may go, and in how many pieces.

/// How a datagram travels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Passage {
    /// To its destination, in fragments if need be.
    #[default]
    Ordinary,
    /// So far and no farther: it opens a NAT without reaching the peer's.
    Opener(Reach),
    /// To its destination in one piece, or not at all.
    Whole,
}

impl Passage {
    /// How far an opener gets; none for anything else.
    #[must_use]
    pub const fn reach(self) -> Option<Reach> {
        match self {
            Self::Opener(reach) => Some(reach),
            Self::Ordinary | Self::Whole => None,
        }
    }
}

/// How many routers let a datagram pass: those of this node's own site, so that it opens their NATs
/// and never arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The datagram dies at the next router after so many, at least one.
    pub routers: u8,
    /// Even if that router is where the datagram is addressed to: a time to live counts only what is
    /// forwarded, and two NATs may stand next door to each other. IPv4 only. Some routers drop such
    /// datagrams at once, so not every opener is strict.
    pub strict: bool,
}

impl Reach {
    /// The IP time to live that it leaves with.
    #[must_use]
    pub const fn ttl(self) -> u8 {
        self.routers.saturating_add(1)
    }
}
