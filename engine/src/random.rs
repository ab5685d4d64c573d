//! Randomness from a seed: SHA-256 of the seed and a counter.
//!
//! A simulation gives the same seed twice and sees the same run; a node gives 32 bytes of its
//! system's randomness, and nobody without them can predict what follows.

use podmesh_proto::key::digest;
use zeroize::Zeroizing;

const CONTEXT: &str = "podmesh engine random v1";

/// A generator of random bytes.
pub(crate) struct Random {
    /// Seed, then counter.
    state: Zeroizing<[u8; 40]>,
    counter: u64,
}

impl Random {
    /// The generator of a seed.
    #[must_use]
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        let mut state = Zeroizing::new([0; 40]);
        state.iter_mut().zip(seed).for_each(|(to, from)| *to = from);
        Self { state, counter: 0 }
    }

    /// Up to 32 random bytes.
    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= 32, "one hash has 32 bytes") };
        self.counter = self.counter.wrapping_add(1);
        let counter = self.counter.to_le_bytes();
        self.state
            .iter_mut()
            .skip(32)
            .zip(counter)
            .for_each(|(to, from)| *to = from);
        let hash = digest(CONTEXT, self.state.as_slice());
        let mut bytes = [0; N];
        bytes.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        bytes
    }

    /// A random number.
    pub(crate) fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}
