use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::*;

fn twin(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap())
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes
            .iter_mut()
            .for_each(|byte| *byte = self.next().to_le_bytes()[0]);
    }
}

/// A batch as its twin seals it, and the places of its messages.
fn batch(
    random: &mut Random,
    key: &[u8; 32],
    length: usize,
    count: usize,
) -> (Vec<u8>, Vec<u8>, Vec<Place>) {
    let (mut plain, mut sealed, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let first = random.next() >> 8;
    for number in 0..count {
        let counter = first + number as u64;
        let start = plain.len() + 16;
        let mut text = vec![0; length];
        random.fill(&mut text);
        if number == 1 {
            // Sums that are close to the modulus.
            text.fill(0xff);
        }
        plain.extend([7; 16]);
        plain.extend(&text);
        plain.extend([0; TAG]);
        let tag = twin(key)
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut text)
            .unwrap();
        sealed.extend([7; 16]);
        sealed.extend(&text);
        sealed.extend(tag.as_ref());
        places.push(Place {
            counter,
            start,
            end: start + length,
        });
    }
    (plain, sealed, places)
}

#[test]
fn batches_are_sealed_and_opened_as_by_the_twin() {
    let Some(registers) = Registers::detect() else {
        eprintln!("not tested: this processor has no AVX-512 with IFMA");
        return;
    };
    let seed = 20_261_122;
    let mut random = Random(seed);
    let lengths = (0..140).chain([255, 256, 576, 1_279, 1_280, 1_420, 1_424, 8_900]);
    for length in lengths {
        for count in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 45, 64] {
            let mut key = [0; 32];
            random.fill(&mut key);
            let (plain, sealed, places) = batch(&mut random, &key, length, count);
            let mut arena = plain.clone();
            registers.seal(&key, &mut arena, &places);
            assert!(arena == sealed, "seed {seed}, {count} of {length} bytes");
            let all = u64::MAX >> (64 - count);
            assert_eq!(registers.open(&key, &mut arena, &places), all);
            for place in &places {
                assert_eq!(arena[place.text()], plain[place.text()]);
            }
        }
    }
}

#[test]
fn what_was_changed_anywhere_is_told_apart_and_left_alone() {
    let Some(registers) = Registers::detect() else {
        eprintln!("not tested: this processor has no AVX-512 with IFMA");
        return;
    };
    let mut random = Random(5);
    let key = [9; 32];
    for length in [0, 1, 63, 64, 100, 1_420] {
        let (_, sealed, places) = batch(&mut random, &key, length, 20);
        for _ in 0..60 {
            let mut arena = sealed.clone();
            let number = usize::try_from(random.next() % 20).unwrap();
            let place = places[number];
            let within = usize::try_from(random.next()).unwrap() % (length + TAG);
            arena[place.start + within] ^= 1 << (random.next() % 8);
            let damaged = arena[place.start..place.end + TAG].to_vec();
            let good = registers.open(&key, &mut arena, &places);
            assert_eq!(good, (u64::MAX >> 44) & !(1 << number));
            assert_eq!(arena[place.start..place.end + TAG], damaged);
        }
        // A message under another's number.
        let mut swapped = places.clone();
        swapped[3].counter ^= 1 << 40;
        let good = registers.open(&key, &mut sealed.clone(), &swapped);
        assert_eq!(good, (u64::MAX >> 44) & !(1 << 3));
    }
}
