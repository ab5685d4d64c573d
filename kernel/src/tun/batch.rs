//! The buffers that one thread reads packets into.

use std::ops::Range;

use super::VnetHeader;
use crate::memory;

/// A fixed number of packet slots in one allocation, filled by
/// [`TunQueue::read_batch`](super::TunQueue::read_batch) and reused for each batch.
#[derive(Debug)]
pub struct TunBatch {
    arena: Box<[u8]>,
    /// Bytes from one slot to the next: header, packet, and one more to notice a cut packet.
    stride: usize,
    /// Length of each packet read, without the header.
    lengths: Vec<usize>,
    slots: usize,
    oversized: u64,
}

/// One packet that was read.
#[derive(Debug)]
pub struct TunPacket<'a> {
    /// How the kernel describes it: empty as long as no offload is enabled.
    pub header: VnetHeader,
    /// The IP packet.
    pub bytes: &'a mut [u8],
}

impl TunBatch {
    /// Makes room for `slots` packets of at most `packet_capacity` bytes, without header.
    #[must_use]
    pub fn new(slots: usize, packet_capacity: usize) -> Self {
        let stride = VnetHeader::LENGTH + packet_capacity + 1;
        Self {
            arena: vec![0; slots * stride].into_boxed_slice(),
            stride,
            lengths: Vec::with_capacity(slots),
            slots,
            oversized: 0,
        }
    }

    /// Lets go of the memory behind the slots; whatever they held is gone.
    pub fn give_back(&mut self) {
        self.lengths.clear();
        memory::give_back(&mut self.arena);
    }

    /// Packets in the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether the last read found nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Whether each slot was filled, so that more packets may wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lengths.len() == self.slots
    }

    /// Packets dropped since the start because they were longer than a slot.
    #[must_use]
    pub fn oversized(&self) -> u64 {
        self.oversized
    }

    /// The packets in the order of their arrival, to be changed in place.
    pub fn packets(&mut self) -> impl Iterator<Item = TunPacket<'_>> {
        self.arena
            .chunks_exact_mut(self.stride)
            .zip(&self.lengths)
            .filter_map(|(slot, &length)| {
                let (header, rest) = slot.split_first_chunk_mut::<{ VnetHeader::LENGTH }>()?;
                let bytes = rest.get_mut(..length)?;
                Some(TunPacket {
                    header: VnetHeader::from_bytes(*header),
                    bytes,
                })
            })
    }

    pub(super) fn clear(&mut self) {
        self.lengths.clear();
    }

    /// The slot to read the next packet into, `None` when all are used.
    pub(super) fn next_space(&mut self) -> Option<&mut [u8]> {
        if self.is_full() {
            return None;
        }
        let range = self.slot(self.lengths.len());
        self.arena.get_mut(range)
    }

    /// Takes `length` bytes in the slot of [`Self::next_space`] as a packet.
    pub(super) fn commit(&mut self, length: usize) {
        if length >= self.stride {
            self.oversized += 1;
        } else if let Some(packet) = length.checked_sub(VnetHeader::LENGTH) {
            self.lengths.push(packet);
        }
    }

    fn slot(&self, index: usize) -> Range<usize> {
        let start = index * self.stride;
        start..start + self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_fills_its_slot_is_kept_and_a_longer_one_is_counted() {
        let mut batch = TunBatch::new(2, 4);
        batch
            .next_space()
            .expect("a free slot")
            .copy_from_slice(b"0123456789abcdX");
        batch.commit(15);
        assert_eq!((batch.len(), batch.oversized()), (0, 1));
        batch.commit(14);
        batch
            .next_space()
            .expect("a free slot")
            .copy_from_slice(b"0123456789EFGHX");
        batch.commit(12);
        assert!(batch.is_full() && batch.next_space().is_none());
        let packets: Vec<Vec<u8>> = batch
            .packets()
            .map(|packet| packet.bytes.to_vec())
            .collect();
        assert_eq!(packets, [b"abcd".to_vec(), b"EF".to_vec()]);
    }
}
