//! Randomness from a seed: SHA-256 of the seed and a counter.
//!
//! A simulation gives the same seed twice and sees the same run; a node gives 32 bytes of its
//! system's randomness, and nobody without them can predict what follows.

use podmesh_proto::key::digest;
use zeroize::Zeroizing;

const CONTEXT: &str = "podmesh engine random v1";
const MIXED: &str = "podmesh engine random mixed v1";

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

    /// Goes on from what was and from `fresh`: whoever knows only one of the two can't tell what follows.
    pub(crate) fn mix(&mut self, fresh: [u8; 32]) {
        let mut both = Zeroizing::new([0; 64]);
        let before: [u8; 32] = self.bytes();
        let parts = before.into_iter().chain(fresh);
        both.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        *self = Self::new(digest(MIXED, both.as_slice()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_of_one_machine_part_with_the_first_fresh_bytes() {
        let [mut one, mut other] = [Random::new([7; 32]), Random::new([7; 32])];
        assert_eq!(one.bytes::<24>(), other.bytes::<24>());
        one.mix([1; 32]);
        other.mix([2; 32]);
        let of = |random: &mut Random| (0..100).map(|_| random.number()).collect::<Vec<_>>();
        let (first, second) = (of(&mut one), of(&mut other));
        assert!(first.iter().all(|number| !second.contains(number)));
        // What is fresh doesn't count alone, either.
        let mut third = Random::new([8; 32]);
        third.bytes::<24>();
        third.mix([1; 32]);
        assert_ne!(of(&mut third), first);
    }
}
