//! ChaCha20-Poly1305 (RFC 8439) of many messages at once, with 512-bit registers.
//!
//! The messages of a batch are of one length and under one key. The cipher computes sixteen blocks side by
//! side, whichever messages they belong to; the authenticator takes eight messages side by side, so that no
//! powers of its key are needed. No branch and no address depends on a key or on content.
//!
//! Its twin is `ring`: the tests and the fuzz targets hold one against the other. It is used only if the
//! configuration asks for it. Beside it there is the sum that checksums are made of (`words`), and nothing
//! else.

#[cfg(target_arch = "x86_64")]
mod chacha20;
#[cfg(target_arch = "x86_64")]
mod poly1305;
pub(crate) mod words;

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

/// Messages that are dealt with at once.
#[cfg(target_arch = "x86_64")]
const GROUP: usize = 16;
/// Messages below which one after the other is faster.
const FEWEST: usize = 3;
/// Bytes of a tag.
pub(crate) const TAG: usize = 16;
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 64;

/// Leave to use the registers: the processor has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registers(Leave);

#[cfg(target_arch = "x86_64")]
type Leave = ();
/// No other processor has them.
#[cfg(not(target_arch = "x86_64"))]
type Leave = std::convert::Infallible;

/// A message in an arena, with room for its tag behind it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    /// The number of the message, its nonce as in `WireGuard` (paper §5.4.6).
    pub(crate) counter: u64,
    /// Where it begins.
    pub(crate) start: usize,
    /// Where its tag begins.
    pub(crate) end: usize,
}

#[cfg(target_arch = "x86_64")]
impl Place {
    fn text(self) -> Range<usize> {
        self.start..self.end
    }

    fn tag(self) -> Range<usize> {
        self.end..self.end + TAG
    }
}

impl Registers {
    /// If this processor has them.
    #[must_use]
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma");
        has.then_some(Self(()))
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn detect() -> Option<Self> {
        None
    }

    /// Whether so many messages are worth it.
    #[must_use]
    pub(crate) fn pays(self, count: usize) -> bool {
        count >= FEWEST
    }

    /// Seals nothing.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn seal(self, _: &[u8; 32], _: &mut [u8], _: &[Place]) {
        match self.0 {}
    }

    /// Opens nothing.
    #[must_use]
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn open(self, _: &[u8; 32], _: &mut [u8], _: &[Place]) -> u64 {
        match self.0 {}
    }

    /// Seals the messages at `places`, which are all of one length, and writes the tag behind each.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn seal(self, key: &[u8; 32], arena: &mut [u8], places: &[Place]) {
        for group in places.chunks(GROUP) {
            let keys = chacha20::one_time_keys(self, key, group);
            chacha20::apply(self, key, arena, group);
            let tags = poly1305::tags(self, &keys, arena, group);
            for (place, tag) in group.iter().zip(tags) {
                if let Some(space) = arena.get_mut(place.tag()) {
                    space.copy_from_slice(&tag);
                }
            }
        }
    }

    /// Opens the messages at `places`, which are all of one length, and tells of each by a bit whether it
    /// is authentic; what is not keeps its content. At most 64.
    #[must_use]
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn open(self, key: &[u8; 32], arena: &mut [u8], places: &[Place]) -> u64 {
        let (mut authentic, mut number) = (0_u64, 0);
        for group in places.chunks(GROUP) {
            let keys = chacha20::one_time_keys(self, key, group);
            let tags = poly1305::tags(self, &keys, arena, group);
            let (mut good, mut count) = ([Place::default(); GROUP], 0);
            for (place, tag) in group.iter().zip(tags) {
                let given = arena.get(place.tag());
                if given.is_some_and(|given| is_same(given, &tag)) {
                    authentic |= 1 << number;
                    if let Some(slot) = good.get_mut(count) {
                        *slot = *place;
                        count += 1;
                    }
                }
                number += 1;
            }
            let good = good.get(..count).unwrap_or_default();
            chacha20::apply(self, key, arena, good);
        }
        authentic
    }
}

/// Compares without telling by its time where they differ.
#[cfg(target_arch = "x86_64")]
fn is_same(one: &[u8], other: &[u8; TAG]) -> bool {
    let differ = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == TAG && std::hint::black_box(differ) == 0
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
