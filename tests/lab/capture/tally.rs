//! Counts the frames that a namespace's links have brought, by the kernel's own statistics.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::Result;

use super::canary;
use crate::namespace::Namespace;

/// The statistics of one namespace.
#[derive(Debug)]
pub(super) struct Tally {
    table: File,
    skipped: Vec<String>,
    last: BTreeMap<String, u64>,
    frames: u64,
}

impl Tally {
    /// Counts from the first frame of each interface on, but for those in `skipped`.
    pub(super) fn open(namespace: &Namespace, skipped: &[&str]) -> Result<Self> {
        // The file shows the namespace of the thread that opened it, whoever reads it.
        let table = namespace.inside(|| File::open("/proc/thread-self/net/dev"))??;
        Ok(Self {
            table,
            skipped: skipped.iter().map(|&name| name.to_owned()).collect(),
            last: BTreeMap::new(),
            frames: 0,
        })
    }

    /// Frames so far. What an interface brought between the last look and its end is not counted.
    pub(super) fn look(&mut self) -> io::Result<u64> {
        let mut buffer = vec![0; MOST_TEXT];
        let mut length = 0;
        loop {
            let read = self.table.read_at(&mut buffer[length..], length as u64)?;
            if read == 0 {
                break;
            }
            length += read;
        }
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        for (name, frames) in received(&text) {
            let own = name == "lo" || name.starts_with(canary::LINK);
            if own || self.skipped.iter().any(|skipped| skipped == name) {
                continue;
            }
            let last = self.last.insert(name.to_owned(), frames).unwrap_or(0);
            // Fewer than before: the cable was pulled, and this is a new one of the same name.
            self.frames += frames.checked_sub(last).unwrap_or(frames);
        }
        Ok(self.frames)
    }
}

/// Received frames by interface, out of the lines `name: bytes frames ...` under two headings.
fn received(table: &str) -> impl Iterator<Item = (&str, u64)> {
    table.lines().skip(2).filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let frames = numbers.split_whitespace().nth(1)?.parse().ok()?;
        Some((name.trim(), frames))
    })
}

/// Bytes. A line is 120 bytes or so, and a lab has at most some dozens of links in one namespace.
const MOST_TEXT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_by_interface() {
        let table = "Inter-|   Receive        |  Transmit\n \
            face |bytes    packets errs |bytes\n    \
            lo:       0       0    0 0\n\
            port-1: 1234567     890    0 0\n";
        let found: Vec<(&str, u64)> = received(table).collect();
        assert_eq!(found, [("lo", 0), ("port-1", 890)]);
    }
}
