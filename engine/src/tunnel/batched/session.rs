//! One session: its two keys, the numbers of its messages, and which were seen.

use podmesh_proto::replay::ReplayWindow;
use podmesh_proto::time::Moment;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::handshake::Agreed;
use crate::limits;
use crate::mutation::{self, Mutant};
use crate::simd::{Place, Registers, TAG};

/// Bytes of a data message before what is sealed.
pub(super) const HEADER: usize = 16;
const DATA: [u8; 4] = [4, 0, 0, 0];
/// Messages that are sealed or opened together at most.
pub(super) const MOST: usize = 64;

/// A pair of keys that both ends have.
pub(super) struct Session {
    /// Its number here, and at the peer.
    pub(super) local: u32,
    remote: u32,
    pub(super) born: Moment,
    /// This end began the handshake; it is the one who begins the next.
    pub(super) began: bool,
    sending: Key,
    receiving: Key,
    /// Of the next message.
    counter: u64,
    window: ReplayWindow,
}

struct Key {
    one: LessSafeKey,
    /// For many messages at once, if that is wanted and possible.
    many: Option<(Registers, Box<Zeroizing<[u8; 32]>>)>,
}

impl Session {
    pub(super) fn new(
        agreed: &Agreed,
        local: u32,
        (born, began): (Moment, bool),
        registers: Option<Registers>,
    ) -> Option<Self> {
        Some(Self {
            local,
            remote: agreed.remote,
            born,
            began,
            sending: Key::new(&agreed.sending, registers)?,
            receiving: Key::new(&agreed.receiving, registers)?,
            counter: 0,
            window: ReplayWindow::default(),
        })
    }

    /// Messages that were sent.
    pub(super) fn sent(&self) -> u64 {
        self.counter
    }

    /// Writes the header of the next message and what is to be sealed behind it; gives the bytes of the
    /// whole message. `None` if there is no room or the session is used up.
    pub(super) fn stage(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let length = HEADER + packet.len() + TAG;
        let message = out.get_mut(..length)?;
        if self.counter >= limits::REJECT_AFTER_MESSAGES {
            return None;
        }
        let (header, rest) = message.split_first_chunk_mut::<HEADER>()?;
        header[..4].copy_from_slice(&DATA);
        header[4..8].copy_from_slice(&self.remote.to_le_bytes());
        let repeats = mutation::is(Mutant::CounterRepeats) && self.counter % 32 == 31;
        let counter = self.counter - u64::from(repeats);
        header[8..].copy_from_slice(&counter.to_le_bytes());
        rest.get_mut(..packet.len())?.copy_from_slice(packet);
        self.counter += 1;
        Some(length)
    }

    /// Seals staged messages, at most 64: where each begins and ends in `arena`. Whatever this session hasn't
    /// staged is emptied: nothing leaves as it is, and no number is used twice.
    pub(super) fn seal(&self, arena: &mut [u8], messages: &[(usize, usize)]) {
        for alike in messages.chunk_by(|a, b| a.1 - a.0 == b.1 - b.0) {
            let (mut places, mut count) = ([Place::default(); MOST], 0);
            for (start, end) in alike {
                let header = arena.get(*start..).unwrap_or_default();
                let is_ours = header.get(4..8) == Some(&self.remote.to_le_bytes());
                let counter = counter_of(header).filter(|it| is_ours && *it < self.counter);
                match (counter, places.get_mut(count)) {
                    (Some(counter), Some(place)) => {
                        *place = Place {
                            counter,
                            start: start + HEADER,
                            end: end - TAG,
                        };
                        count += 1;
                    }
                    _ => wipe(arena, &[(*start, *end)]),
                }
            }
            let places = places.get(..count).unwrap_or_default();
            self.sending.seal(arena, places);
        }
    }

    /// Opens messages, at most 64, and tells of each by a bit whether it is authentic. Whether it was seen
    /// before is not looked at.
    pub(super) fn open(&self, arena: &mut [u8], messages: &[(usize, usize)]) -> u64 {
        let (mut authentic, mut number) = (0, 0);
        for alike in messages.chunk_by(|a, b| a.1 - a.0 == b.1 - b.0) {
            let (mut places, mut count) = ([Place::default(); MOST], 0);
            for ((start, end), place) in alike.iter().zip(&mut places) {
                let counter = arena.get(*start..).and_then(counter_of).unwrap_or(u64::MAX);
                *place = Place {
                    counter,
                    start: start + HEADER,
                    end: end - TAG,
                };
                count += 1;
            }
            let places = places.get(..count).unwrap_or_default();
            authentic |= self.receiving.open(arena, places) << number;
            number += count;
        }
        authentic
    }

    /// Whether an authentic message is one that was not seen yet.
    pub(super) fn is_new(&mut self, counter: u64) -> bool {
        counter < limits::REJECT_AFTER_MESSAGES && self.window.accept(counter)
    }
}

impl Key {
    fn new(bytes: &[u8; 32], registers: Option<Registers>) -> Option<Self> {
        let one = UnboundKey::new(&CHACHA20_POLY1305, bytes).ok()?;
        Some(Self {
            one: LessSafeKey::new(one),
            many: registers.map(|registers| (registers, Box::new(Zeroizing::new(*bytes)))),
        })
    }

    fn seal(&self, arena: &mut [u8], places: &[Place]) {
        if let Some((registers, key)) = self.many.as_ref().filter(|(it, _)| it.pays(places.len())) {
            registers.seal(key, arena, places);
            return;
        }
        for place in places {
            let (text, tag) = arena.split_at_mut(place.end);
            let text = text.get_mut(place.start..).unwrap_or_default();
            let nonce = nonce(place.counter);
            let sealed = self
                .one
                .seal_in_place_separate_tag(nonce, Aad::empty(), text);
            match (sealed, tag.get_mut(..TAG)) {
                (Ok(sealed), Some(tag)) => tag.copy_from_slice(sealed.as_ref()),
                // Of 2^38 bytes and more; nothing leaves as it is.
                _ => text.fill(0),
            }
        }
    }

    fn open(&self, arena: &mut [u8], places: &[Place]) -> u64 {
        if let Some((registers, key)) = self.many.as_ref().filter(|(it, _)| it.pays(places.len())) {
            return registers.open(key, arena, places);
        }
        places
            .iter()
            .enumerate()
            .fold(0, |authentic, (number, place)| {
                let sealed = arena
                    .get_mut(place.start..place.end + TAG)
                    .unwrap_or_default();
                let opened = self
                    .one
                    .open_in_place(nonce(place.counter), Aad::empty(), sealed);
                authentic | u64::from(opened.is_ok()) << number
            })
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Empties messages that can't be sealed.
pub(super) fn wipe(arena: &mut [u8], messages: &[(usize, usize)]) {
    for (start, end) in messages {
        arena.get_mut(*start..*end).unwrap_or_default().fill(0);
    }
}

/// The number of a data message.
pub(super) fn counter_of(message: &[u8]) -> Option<u64> {
    let bytes = message.get(8..16)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}
