//! Whose packets go next.
//!
//! The device's queue is one for all, and first in is first out: a connection's bulk fills it, and a single
//! packet of another one would wait behind megabytes. So a shard takes a few dozen packets, which may be
//! 64 KiB each, and sends what little flows have before what much flows have; these take turns by bytes.
//! Within a flow nothing is overtaken. The idea is that of fair queueing with sparse flows first
//! (RFC 8290 §4.2).

use crate::packet::Header;

/// Bytes, and segments, that a flow may have waiting and still counts as a little one.
const LITTLE: usize = 3_000;
const FEW: usize = 16;
/// What of much flows goes at once, before the little ones are looked at again: four super-packets, or one
/// while somebody quiet is there. That takes 0.1 ms, and a twentieth more of the processor.
const PORTION: Portion = Portion {
    segments: 192,
    bytes: 4 * 65_536,
};
const BESIDE_QUIET: Portion = Portion {
    segments: 48,
    bytes: 65_536,
};
/// Segments of much flows that go in small portions after a quiet flow: most of a second at 4 Gbit/s, and
/// longer where there is less to be gained from larger ones.
const HEED: usize = 1 << 18;
/// Portions without a packet of a flow after which it is quiet. What acknowledges a bulk of the other
/// direction isn't.
const QUIET: u64 = 8;
/// Flows that are remembered beside much.
const KNOWN: usize = 32;
const TCP: u8 = 6;
const FRAGMENT: u8 = 44;

/// Whether a flow that has so much waiting is a little one.
#[must_use]
pub fn is_little(bytes: usize, segments: usize) -> bool {
    bytes <= LITTLE && segments <= FEW
}

/// Packets that wait, by the numbers of their slots. Room for all of them is made at the start.
#[derive(Debug)]
pub struct Turns {
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    chosen: Vec<usize>,
    /// Where numbers of flows begin, so that nobody can choose to be another's flow.
    seed: u64,
    /// Segments that will still go in small portions.
    heed: usize,
    /// Portions so far.
    portion: u64,
    /// Flows of the last portions, and the last one of each; the oldest makes room.
    known: [(u64, u64); KNOWN],
}

/// How much goes at once, though never less than a packet.
#[derive(Debug, Clone, Copy)]
struct Portion {
    segments: usize,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    slot: usize,
    flow: u64,
    bytes: usize,
    segments: usize,
    /// Bytes of its flow before it.
    before: usize,
    /// Bytes that its flow has had, counted from where the least served one was when it came.
    served: usize,
}

impl Waiting {
    /// Whose is the least goes next.
    fn turn(&self) -> usize {
        self.served.saturating_add(self.before)
    }
}

impl Turns {
    /// For so many slots; `seed` is any number that others can't know.
    #[must_use]
    pub fn new(slots: usize, seed: u64) -> Self {
        Self {
            waiting: Vec::with_capacity(slots),
            chosen: Vec::with_capacity(slots),
            seed,
            heed: 0,
            portion: QUIET,
            known: [(0, 0); KNOWN],
        }
    }

    /// Takes the packet in a slot, which is to become so many segments.
    pub fn push(&mut self, slot: usize, packet: &[u8], segments: usize) {
        let flow = flow_of(packet, self.seed);
        let last = self.waiting.iter().rfind(|other| other.flow == flow);
        let served = match last {
            Some(last) => last.served,
            None => self.waiting.iter().map(|one| one.served).min().unwrap_or(0),
        };
        self.waiting.push(Waiting {
            slot,
            flow,
            bytes: packet.len(),
            segments,
            before: 0,
            served,
        });
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The slots of all packets of little flows, in the order in which they came.
    pub fn little(&mut self) -> &[usize] {
        self.chosen.clear();
        // One packet needs no comparing, whatever it is.
        let first = self.waiting.first();
        if self.waiting.len() > 1 || first.is_some_and(|it| is_little(it.bytes, it.segments)) {
            self.count();
            let total = |waiting: &[Waiting], flow| {
                let last = waiting.iter().rfind(|other| other.flow == flow);
                let bytes = last.map_or(0, |last| last.before + last.bytes);
                let of_flow = waiting.iter().filter(|other| other.flow == flow);
                (bytes, of_flow.map(|other| other.segments).sum::<usize>())
            };
            for number in 0..self.waiting.len() {
                let Some(one) = self.waiting.get(number) else {
                    continue;
                };
                let (bytes, segments) = total(&self.waiting, one.flow);
                if is_little(bytes, segments) {
                    self.chosen.push(one.slot);
                }
            }
            if self.chosen.len() < self.waiting.len() && self.meet() {
                self.heed = HEED;
            }
            self.remove();
        }
        &self.chosen
    }

    /// The slots of the next packets of the other flows, by turns, but not more than keeps others waiting for
    /// long.
    pub fn much(&mut self) -> &[usize] {
        self.chosen.clear();
        self.count();
        let most = if self.heed > 0 { BESIDE_QUIET } else { PORTION };
        let (mut segments, mut bytes) = (0, 0);
        let mut next = (0, 0);
        // By the bytes that their flows have had, the earlier first among equals: a few dozen at most.
        while let Some((place, one)) = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(place, one)| (one.turn(), *place) >= next)
            .min_by_key(|(place, one)| (one.turn(), *place))
        {
            let more = (segments + one.segments, bytes + one.bytes);
            if !self.chosen.is_empty() && (more.0 > most.segments || more.1 > most.bytes) {
                break;
            }
            (segments, bytes) = more;
            self.chosen.push(one.slot);
            next = (one.turn(), place + 1);
        }
        self.heed = self.heed.saturating_sub(segments);
        if !self.chosen.is_empty() {
            self.portion += 1;
            self.meet();
        }
        self.remove();
        &self.chosen
    }

    /// Notes the flows of the chosen packets; whether one of them was quiet until now.
    fn meet(&mut self) -> bool {
        let now = self.portion;
        let mut was_quiet = false;
        let is_chosen = |one: &&Waiting| self.chosen.contains(&one.slot);
        for one in self.waiting.iter().filter(is_chosen) {
            // Its own place if it has one, else that of whoever was met longest ago.
            let known = self.known.iter_mut();
            let place = known.min_by_key(|(flow, last)| (*flow != one.flow, *last));
            let Some((flow, last)) = place else { continue };
            was_quiet |= *flow != one.flow || *last + QUIET <= now;
            (*flow, *last) = (one.flow, now);
        }
        was_quiet
    }

    /// Counts the bytes before each packet in its flow.
    fn count(&mut self) {
        for number in 0..self.waiting.len() {
            let (earlier, rest) = self.waiting.split_at_mut(number);
            let Some(one) = rest.first_mut() else {
                continue;
            };
            let before = earlier.iter().rfind(|other| other.flow == one.flow);
            one.before = before.map_or(0, |before| before.before + before.bytes);
        }
    }

    fn remove(&mut self) {
        let chosen = &self.chosen;
        for number in 0..self.waiting.len() {
            let Some(gone) = self.waiting.get(number).copied() else {
                continue;
            };
            if chosen.contains(&gone.slot) {
                let rest = self.waiting.iter_mut().skip(number + 1);
                for one in rest.filter(|one| one.flow == gone.flow) {
                    one.served = one.served.saturating_add(gone.bytes);
                }
            }
        }
        self.waiting.retain(|one| !chosen.contains(&one.slot));
    }
}

/// What must keep its order has the same number: packets of one TCP connection, or of one other protocol
/// between two addresses, where fragments would not tell their ports.
fn flow_of(packet: &[u8], seed: u64) -> u64 {
    let mut hash = Fnv(seed);
    let Some(header) = Header::parse(packet) else {
        return hash.0;
    };
    let is_v4 = header.source.is_ipv4();
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    hash.add(packet.get(addresses).unwrap_or_default());
    // Fragments of IPv6 say behind their own header what they are of (RFC 8200 §4.5).
    let inner = packet
        .get(40)
        .filter(|_| !is_v4 && header.protocol == FRAGMENT);
    hash.add(&[inner.copied().unwrap_or(header.protocol)]);
    let is_fragment = is_v4
        && packet
            .get(6..8)
            .is_some_and(|it| it[0] & 0x3f != 0 || it[1] != 0);
    if header.protocol == TCP && !is_fragment {
        let start = match packet.first() {
            Some(first) if is_v4 => usize::from(first & 0x0f) * 4,
            _ => 40,
        };
        hash.add(packet.get(start..start + 4).unwrap_or_default());
    }
    hash.0
}

/// Fowler-Noll-Vo over words, with a folding that lets high bits reach low ones.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word.iter_mut()
                .zip(chunk)
                .for_each(|(to, from)| *to = *from);
            self.0 ^= u64::from(u32::from_le_bytes(word));
            self.0 = self.0.wrapping_mul(0x0000_0100_0000_01b3);
            self.0 ^= self.0 >> 29;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(destination: u8, port: u16, length: usize) -> Vec<u8> {
        let total = u16::try_from(length).unwrap().to_be_bytes();
        let mut packet = vec![0; length];
        packet[..4].copy_from_slice(&[0x45, 0, total[0], total[1]]);
        packet[9] = TCP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, destination]);
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet
    }

    #[test]
    fn what_is_little_goes_first_and_much_takes_turns() {
        let mut turns = Turns::new(32, 77);
        let large = 60_000;
        // Three of one bulk, one of another, and a small packet behind them all.
        let packets = [
            (1, 80, large),
            (1, 80, large),
            (1, 80, large),
            (2, 80, large),
            (3, 80, 84),
        ];
        for (slot, (destination, port, length)) in packets.into_iter().enumerate() {
            let segments = length / 1_400 + 1;
            turns.push(slot, &packet(destination, port, length), segments);
        }
        assert_eq!(turns.little(), [4]);
        for expected in [0, 3, 1, 2] {
            assert_eq!(turns.much(), [expected]);
        }
        assert!(turns.is_empty());
    }

    /// Four super-packets wait; the sizes of the portions in which they go.
    fn portions(turns: &mut Turns) -> Vec<usize> {
        let large = packet(1, 80, 60_000);
        (0..4).for_each(|slot| turns.push(slot, &large, 44));
        turns.little();
        let portions = std::iter::from_fn(|| Some(turns.much().len()).filter(|it| *it > 0));
        portions.collect()
    }

    #[test]
    fn portions_are_small_while_somebody_quiet_is_there() {
        let mut turns = Turns::new(32, 77);
        assert_eq!(portions(&mut turns), [4]);
        // Alone it has nobody to wait for.
        turns.push(4, &packet(2, 80, 84), 1);
        assert_eq!(turns.little(), [4]);
        assert_eq!(portions(&mut turns), [4]);
        turns.push(4, &packet(2, 80, 84), 1);
        for _ in 0..HEED / (4 * 44) {
            assert_eq!(portions(&mut turns), [1; 4]);
            // A look at nothing is no portion.
            assert!(turns.much().is_empty());
        }
        portions(&mut turns);
        assert_eq!(portions(&mut turns), [4]);
    }

    #[test]
    fn who_comes_with_every_portion_is_not_quiet() {
        let mut turns = Turns::new(32, 77);
        assert_eq!(portions(&mut turns), [4]);
        let acknowledgement = packet(2, 80, 52);
        turns.push(4, &acknowledgement, 1);
        assert_eq!(portions(&mut turns), [1; 4]);
        turns.heed = 0;
        for _ in 0..100 {
            turns.push(4, &acknowledgement, 1);
            assert_eq!(portions(&mut turns), [4]);
        }
        // The end of a stream that had much until now isn't quiet either.
        turns.push(4, &packet(3, 80, 60_000), 44);
        portions(&mut turns);
        turns.push(4, &packet(3, 80, 52), 1);
        assert_eq!(portions(&mut turns), [4]);
        for _ in 0..QUIET {
            assert_eq!(portions(&mut turns), [4]);
        }
        turns.push(4, &acknowledgement, 1);
        assert_eq!(portions(&mut turns), [1; 4]);
    }

    #[test]
    fn few_segments_of_very_many_bytes_are_given_out_in_portions_too() {
        let mut turns = Turns::new(32, 77);
        for slot in 0..6 {
            turns.push(slot, &packet(1, 80, 65_000), 8);
        }
        assert_eq!(turns.much(), [0, 1, 2, 3]);
        turns.push(6, &packet(2, 80, 84), 1);
        assert_eq!(turns.little(), [6]);
        assert_eq!(turns.much(), [4]);
    }

    #[test]
    fn few_bytes_in_very_many_segments_are_not_little() {
        let mut turns = Turns::new(32, 77);
        turns.push(0, &packet(1, 80, 2_900), 360);
        assert!(turns.little().is_empty());
        turns.push(1, &packet(2, 80, 84), 1);
        turns.push(2, &packet(2, 80, 84), 1);
        assert_eq!(turns.little(), [1, 2]);
        assert_eq!(turns.much(), [0]);
    }

    #[test]
    fn the_small_end_of_a_bulk_waits_for_the_bulk() {
        let mut turns = Turns::new(32, 77);
        turns.push(0, &packet(1, 80, 60_000), 40);
        turns.push(1, &packet(1, 80, 40), 1);
        turns.push(2, &packet(1, 81, 40), 1);
        assert_eq!(turns.little(), [2]);
        assert_eq!(turns.much(), [0, 1]);
    }

    #[test]
    fn much_is_given_out_in_portions_but_never_nothing() {
        let mut turns = Turns::new(32, 77);
        for slot in 0..10 {
            turns.push(slot, &packet(1, 80, 60_000), 90);
        }
        assert!(turns.little().is_empty());
        assert_eq!(turns.much(), [0, 1]);
        turns.push(10, &packet(1, 80, 60_000), 2_000);
        for expected in [[2, 3], [4, 5], [6, 7], [8, 9]] {
            assert_eq!(turns.much(), expected);
        }
        assert_eq!(turns.much(), [10]);
        assert!(turns.much().is_empty());
    }

    #[test]
    fn many_bulks_take_turns_over_many_portions() {
        let mut turns = Turns::new(32, 77);
        // Four with seven packets each, and a fifth behind them.
        for slot in 0..28 {
            turns.push(
                slot,
                &packet(u8::try_from(slot / 7).unwrap(), 80, 60_000),
                44,
            );
        }
        turns.push(28, &packet(9, 80, 60_000), 44);
        assert_eq!(turns.much(), [0, 7, 14, 21]);
        assert!(turns.much().contains(&28));
        // One that comes later doesn't get what the others had before it came.
        turns.push(29, &packet(10, 80, 60_000), 44);
        turns.push(30, &packet(10, 80, 60_000), 44);
        turns.push(31, &packet(10, 80, 60_000), 44);
        assert!(turns.much().contains(&29));
        assert!(turns.much().iter().filter(|slot| **slot > 28).count() <= 2);
    }

    /// Whatever comes: everything goes out once, and each flow in its order.
    #[test]
    fn no_flow_overtakes_itself_and_nothing_is_lost() {
        let mut state = 7_u64;
        let mut next = |end: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        for _ in 0..300 {
            let mut turns = Turns::new(32, 77);
            let mut flows = Vec::new();
            let mut sent = Vec::new();
            for slot in 0..32 {
                let flow = next(5);
                let length = if next(2) == 0 { 60 } else { 30_000 };
                turns.push(slot, &packet(1, u16::try_from(flow).unwrap(), length), 20);
                flows.push(flow);
                if next(4) == 0 {
                    sent.extend_from_slice(turns.little());
                    sent.extend_from_slice(turns.much());
                }
            }
            while !turns.is_empty() {
                sent.extend_from_slice(turns.little());
                sent.extend_from_slice(turns.much());
            }
            for flow in 0..5 {
                let of = |slots: &mut dyn Iterator<Item = usize>| -> Vec<usize> {
                    slots.filter(|slot| flows[*slot] == flow).collect()
                };
                assert_eq!(of(&mut sent.iter().copied()), of(&mut (0..32)));
            }
        }
    }
}
