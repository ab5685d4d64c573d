//! How far an opener may go.

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
