//! Some bits of the packet mark, which everybody on a machine shares.

use std::fmt;

/// What some bits of a packet's mark are. Bits outside of the mask belong to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The bits that are set, all of them within the mask.
    pub value: u32,
    /// The bits that are looked at.
    pub mask: u32,
}

impl Mark {
    /// Whether a packet without any mark carries it.
    #[must_use]
    pub fn is_carried_by_all(self) -> bool {
        self.value & self.mask == 0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:#x}/{:#x}", self.value, self.mask)
    }
}
