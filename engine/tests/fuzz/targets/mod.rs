//! What is fuzzed: the stages of the fast half, each against a slow twin, and everything that reads bytes
//! of others. A target takes any bytes and panics if something is wrong.

mod stages;
mod twin;
mod words;

/// A name, and what it does with an input.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    ("cut", stages::cut),
    ("merge", stages::merge),
    ("through", stages::through),
    ("arrive", stages::arrive),
    ("words", words::words),
];

/// An input, read from its beginning; behind its end there are zeroes.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// So many, or what is left.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
