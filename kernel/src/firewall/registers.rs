//! Where the steps of a rule leave values for each other.

use std::collections::BTreeMap;

use super::packet::Value;

/// Values by the number of their first piece of four bytes.
#[derive(Debug, Default)]
pub(super) struct Registers(BTreeMap<usize, Value>);

impl Registers {
    /// Leaves a value there, or the fact that nobody knows it.
    pub(super) fn put(&mut self, to: usize, value: Option<Value>) {
        match value {
            Some(value) => self.0.insert(to, value),
            None => self.0.remove(&to),
        };
    }

    pub(super) fn get(&self, from: usize) -> Option<Value> {
        self.0.get(&from).cloned()
    }

    /// The values that lie side by side from there on and fill so many bytes.
    pub(super) fn row(&self, mut from: usize, bytes: usize) -> Option<Vec<Value>> {
        let (mut row, mut length) = (Vec::new(), 0);
        while length < bytes {
            let value = self.get(from)?;
            let pieces = value.bytes.len().div_ceil(4).max(1);
            length += if row.is_empty() && value.bytes.len() == bytes {
                bytes
            } else {
                pieces * 4
            };
            from += pieces;
            row.push(value);
        }
        (length == bytes).then_some(row)
    }
}
