//! Packets that were taken from the TUN and wait for their turn.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use podmesh_engine::outbound::InnerPacket;
use podmesh_engine::turns::{self, Turns};
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

/// What came after a silence.
pub(super) enum First<'a> {
    /// Nothing.
    Nothing,
    /// A packet that is alone, as far as anybody knows, and need not wait for a turn.
    Single(InnerPacket<'a>),
    /// One that waits for its turn, or one that was lost.
    Other,
}

/// Packets that could not be taken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    /// Longer than a slot.
    pub(super) oversized: u64,
    /// Nobody knows what the kernel says of them.
    pub(super) malformed: u64,
}

/// A packet per slot.
pub(super) struct Queued {
    slots: Vec<TunBatch>,
    free: Vec<usize>,
    turns: Turns,
    lost: Lost,
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
            lost: Lost::default(),
            places: [None; SLOTS],
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Packets that were lost since this was asked last.
    pub(super) fn take_lost(&mut self) -> Lost {
        std::mem::take(&mut self.lost)
    }

    /// Lets go of the memory behind the slots, if nothing waits in them.
    pub(super) fn give_back(&mut self) {
        if self.is_empty() {
            self.slots.iter_mut().for_each(TunBatch::give_back);
        }
    }

    /// Takes a packet when nothing waits. Most packets after a silence are alone: what is little goes at
    /// once, before the kernel is asked for more, and without a look at whose turn it is.
    ///
    /// # Errors
    /// The interface is gone, or the kernel's answer.
    pub(super) fn first(&mut self, queue: &TunQueue) -> Result<First<'_>, TunIoError> {
        let Some(number) = self.free.last().copied() else {
            return Ok(First::Other);
        };
        let Some(slot) = self.slots.get_mut(number) else {
            return Ok(First::Other);
        };
        let packet = match read(queue, slot, &mut self.lost)? {
            Read::Nothing => return Ok(First::Nothing),
            Read::Lost => return Ok(First::Other),
            Read::Packet(packet) => packet,
        };
        let segments = packet.offload.segments(packet.bytes.len());
        if turns::is_little(packet.bytes.len(), segments) {
            return Ok(First::Single(packet));
        }
        self.turns.push(number, packet.bytes, segments);
        self.free.pop();
        Ok(First::Other)
    }

    /// Takes what the TUN has, as far as there is room; whether there was no more room.
    ///
    /// # Errors
    /// The interface is gone, or the kernel's answer.
    pub(super) fn fill(&mut self, queue: &TunQueue) -> Result<bool, TunIoError> {
        while let Some(number) = self.free.last().copied() {
            let Some(slot) = self.slots.get_mut(number) else {
                break;
            };
            match read(queue, slot, &mut self.lost)? {
                Read::Nothing => return Ok(false),
                Read::Lost => {}
                Read::Packet(packet) => {
                    let segments = packet.offload.segments(packet.bytes.len());
                    self.turns.push(number, packet.bytes, segments);
                    self.free.pop();
                }
            }
        }
        Ok(true)
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

/// What one look into the TUN has brought.
enum Read<'a> {
    Nothing,
    /// It is counted.
    Lost,
    Packet(InnerPacket<'a>),
}

fn read<'a>(
    queue: &TunQueue,
    slot: &'a mut TunBatch,
    lost: &mut Lost,
) -> Result<Read<'a>, TunIoError> {
    let oversized = slot.oversized();
    let count = queue.read_batch(slot)?;
    let oversized = slot.oversized() - oversized;
    lost.oversized += oversized;
    if count == 0 && oversized == 0 {
        return Ok(Read::Nothing);
    }
    let Some(packet) = slot.packets().next() else {
        return Ok(Read::Lost);
    };
    let Some(offload) = virtio::offload(packet.header) else {
        lost.malformed += 1;
        return Ok(Read::Lost);
    };
    let bytes = packet.bytes;
    Ok(Read::Packet(InnerPacket { bytes, offload }))
}
