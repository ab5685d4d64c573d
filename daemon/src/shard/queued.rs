//! Packets that were taken from the TUN and wait for their turn.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use podmesh_engine::outbound::InnerPacket;
use podmesh_engine::turns::Turns;
use podmesh_kernel::tun::{TunBatch, TunIoError, TunQueue};

use super::virtio;

/// Slots, and so the packets of one turn at most.
pub(super) const SLOTS: usize = 32;

/// Which packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those of flows that have little.
    Little,
    /// The next ones of the others.
    Much,
}

/// A packet per slot.
pub(super) struct Queued {
    slots: Vec<TunBatch>,
    free: Vec<usize>,
    turns: Turns,
    oversized: u64,
    /// Where a slot's packet is among those that go, in this turn.
    places: [Option<usize>; SLOTS],
}

impl Queued {
    /// For packets of at most so many bytes.
    pub(super) fn new(longest: usize) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| TunBatch::new(1, longest)).collect(),
            free: (0..SLOTS).collect(),
            turns: Turns::new(SLOTS, RandomState::new().build_hasher().finish()),
            oversized: 0,
            places: [None; SLOTS],
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Packets dropped since the start because they were longer than a slot.
    pub(super) fn oversized(&self) -> u64 {
        self.oversized
    }

    /// Lets go of the memory behind the slots, if nothing waits in them.
    pub(super) fn give_back(&mut self) {
        if self.is_empty() {
            self.slots.iter_mut().for_each(TunBatch::give_back);
        }
    }

    /// Takes what the TUN has, as far as there is room; gives the number of packets that nobody can read,
    /// and whether there was no more room.
    ///
    /// # Errors
    /// The interface is gone, or the kernel's answer.
    pub(super) fn fill(&mut self, queue: &TunQueue) -> Result<(u64, bool), TunIoError> {
        let mut malformed = 0;
        while let Some(number) = self.free.last() {
            let number = *number;
            let Some(slot) = self.slots.get_mut(number) else {
                break;
            };
            let oversized = slot.oversized();
            let count = queue.read_batch(slot)?;
            let oversized = slot.oversized() - oversized;
            self.oversized += oversized;
            if count == 0 && oversized == 0 {
                return Ok((malformed, false));
            }
            let Some(packet) = slot.packets().next() else {
                continue;
            };
            match virtio::offload(packet.header) {
                Some(offload) => {
                    let segments = offload.segments(packet.bytes.len());
                    self.turns.push(number, packet.bytes, segments);
                    self.free.pop();
                }
                None => malformed += 1,
            }
        }
        Ok((malformed, true))
    }

    /// Hands the next packets to `send`, in an order that keeps each flow's.
    pub(super) fn take(&mut self, which: Which, send: impl FnOnce(&mut [InnerPacket<'_>])) -> bool {
        let chosen = match which {
            Which::Little => self.turns.little(),
            Which::Much => self.turns.much(),
        };
        if chosen.is_empty() {
            return false;
        }
        self.places = [None; SLOTS];
        for (place, slot) in chosen.iter().enumerate() {
            if let Some(to) = self.places.get_mut(*slot) {
                *to = Some(place);
            }
        }
        self.free.extend(chosen);
        let count = chosen.len();
        let mut packets: [InnerPacket<'_>; SLOTS] = std::array::from_fn(|_| InnerPacket::default());
        for (slot, place) in self.slots.iter_mut().zip(self.places) {
            // Nothing else is touched: each slot lies on pages of its own.
            let Some(to) = place.and_then(|place| packets.get_mut(place)) else {
                continue;
            };
            if let Some(packet) = slot.packets().next()
                && let Some(offload) = virtio::offload(packet.header)
            {
                let bytes = packet.bytes;
                *to = InnerPacket { bytes, offload };
            }
        }
        send(packets.get_mut(..count).unwrap_or_default());
        true
    }
}
