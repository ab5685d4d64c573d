//! Random numbers that the rules need, drawn from a seed that they are told.

use podmesh_proto::key::digest;

/// A generator: hashes its seed with a counter.
pub(crate) struct Random {
    seed: [u8; 32],
    counter: u64,
}

impl Random {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    /// Thirty-two fresh bytes.
    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        self.counter = self.counter.wrapping_add(1);
        let input = [self.seed.as_slice(), &self.counter.to_le_bytes()].concat();
        digest("podmesh planet random v1", &input)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.bytes()
            .first_chunk()
            .copied()
            .map_or(0, u64::from_le_bytes)
    }

    /// A number below `bound` (0 if `bound` is 0).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.number().checked_rem(bound).unwrap_or(0)
    }
}
