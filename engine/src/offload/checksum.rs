//! The Internet checksum (RFC 1071).
//!
//! Sums are of 16-bit words in the machine's own byte order, which gives the same bytes in the end
//! (RFC 1071 §2 B) and allows to take many words at once.

use crate::simd::words::{CHUNK, words_of};

/// A sum that is not folded yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes. All but the last addition must be of an even number of them.
    #[must_use]
    pub(super) fn add(self, bytes: &[u8]) -> Self {
        let (chunks, rest) = bytes.as_chunks::<CHUNK>();
        let (pairs, odd) = rest.as_chunks::<2>();
        let mut sum = self.0 + words_of(chunks);
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// The folded sum, as it stands in a field that awaits the rest.
    #[must_use]
    pub(super) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // At most 0xffff by now.
        u16::try_from(sum).unwrap_or(u16::MAX).to_ne_bytes()
    }

    /// The checksum.
    #[must_use]
    pub(super) fn checksum(self) -> [u8; 2] {
        let [a, b] = self.folded();
        [!a, !b]
    }
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1); `addresses` are both, as they stand
/// in the IP header.
pub(super) fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> Sum {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    Sum::default()
        .add(addresses)
        .add(&[0, protocol])
        .add(&length.to_be_bytes())
}
