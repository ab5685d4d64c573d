//! The firewall mark of the underlay's datagrams.
//!
//! The kernel has one word of 32 bits for the marks of everybody on a machine, and the programs on
//! it share that word bit by bit. So ours is a few bits, and whoever looks for it looks at these
//! bits alone.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Some bits of the mark, and what they are in ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mark {
    value: u32,
    mask: u32,
}

impl Mark {
    /// The mark where nobody asks for another one. Its bits are used by none of kube-proxy (0xc000),
    /// the CNI plugin portmap (0x2000), Cilium (0x0f00), Calico (0xffff0000), Tailscale (0xff0000),
    /// KubeSpan (0x60), the AWS VPC plugin (0x80), Weave Net (0x60000); nor are they 1 or 2, which
    /// people take first. They are four, so that hardly anybody's number has all of them by chance.
    pub const DEFAULT: Self = Self {
        value: 0x101c,
        mask: 0x101c,
    };

    /// A mark that is told by the bits of `mask`, which are those of `value` in it.
    ///
    /// # Errors
    ///
    /// Nothing is set, or something that the mask doesn't look at.
    pub const fn new(value: u32, mask: u32) -> Result<Self, MarkError> {
        if value == 0 {
            return Err(MarkError::Zero);
        }
        if value & !mask != 0 {
            return Err(MarkError::Wider);
        }
        Ok(Self { value, mask })
    }

    /// The bits that are set.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.value
    }

    /// The bits that are looked at.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.mask
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// As iproute2 and nftables write it: `VALUE/MASK`, or `VALUE` for a mask of the same bits; decimal,
/// or hexadecimal after `0x`.
impl FromStr for Mark {
    type Err = MarkError;

    fn from_str(text: &str) -> Result<Self, MarkError> {
        let (value, mask) = text.split_once('/').unwrap_or((text, text));
        Self::new(number(value)?, number(mask)?)
    }
}

fn number(text: &str) -> Result<u32, MarkError> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // The standard library would take a sign.
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return Err(MarkError::Malformed);
    }
    u32::from_str_radix(digits, radix).map_err(|_| MarkError::Malformed)
}

impl TryFrom<String> for Mark {
    type Error = MarkError;

    fn try_from(text: String) -> Result<Self, MarkError> {
        text.parse()
    }
}

impl From<Mark> for String {
    fn from(mark: Mark) -> Self {
        mark.to_string()
    }
}

/// Why something is no mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// Not of the form `VALUE` or `VALUE/MASK`, or beyond 32 bits.
    #[error(
        "a mark is a number of 32 bits or two with a '/' between them, such as \"0x101c/0x101c\""
    )]
    Malformed,
    /// A packet without any mark would carry it.
    #[error("a mark sets at least one bit")]
    Zero,
    /// No packet could carry it.
    #[error("a mark sets no bits outside of its mask")]
    Wider,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_the_tools_of_the_kernel_write_them() {
        for (text, expected) in [
            ("0x101c/0x101c", Ok((0x101c, 0x101c))),
            ("0x101c", Ok((0x101c, 0x101c))),
            ("4124", Ok((4124, 4124))),
            ("0x10/0xf0", Ok((0x10, 0xf0))),
            ("1/0xffffffff", Ok((1, u32::MAX))),
            ("0", Err(MarkError::Zero)),
            ("0/0xff", Err(MarkError::Zero)),
            ("0x3/0x1", Err(MarkError::Wider)),
            ("1/0", Err(MarkError::Wider)),
            ("", Err(MarkError::Malformed)),
            ("+1", Err(MarkError::Malformed)),
            ("0x", Err(MarkError::Malformed)),
            ("0x+1", Err(MarkError::Malformed)),
            ("1/", Err(MarkError::Malformed)),
            ("1/2/3", Err(MarkError::Malformed)),
            ("0x100000000", Err(MarkError::Malformed)),
            ("1 ", Err(MarkError::Malformed)),
        ] {
            let mark = text.parse::<Mark>();
            assert_eq!(
                mark.map(|mark| (mark.value, mark.mask)),
                expected,
                "{text:?}"
            );
            if let Ok(mark) = mark {
                assert_eq!(mark.to_string().parse(), Ok(mark));
            }
        }
        assert_eq!(Mark::default().to_string(), "0x101c/0x101c");
    }

    #[test]
    fn the_default_leaves_the_bits_of_others_alone() {
        let others = [0xc000, 0x2000, 0x0f00, 0xffff_0000, 0x60, 0x80, 0x60000, 3];
        for other in others {
            assert_eq!(Mark::DEFAULT.value & other, 0, "{other:#x}");
        }
        let Mark { value, mask } = Mark::DEFAULT;
        assert_eq!(Mark::new(value, mask), Ok(Mark::DEFAULT));
        // Whole words that others are known to set: WireGuard's wg-quick, NetBird, Mullvad, Istio.
        for word in [
            51_820,
            0x1bd00,
            0x1bd10,
            0x1bd20,
            0x6d6f_6c65,
            0x539,
            0x6d65,
        ] {
            assert_ne!(word & mask, value, "{word:#x}");
        }
    }
}
