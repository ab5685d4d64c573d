//! ChaCha20 (RFC 8439 §2.3): sixteen blocks side by side.
#![allow(
    unsafe_code,
    reason = "vector registers are read and written by pointers; each block says why it is sound"
)]

use std::arch::x86_64::{
    __m512i, _mm256_storeu_si256, _mm512_add_epi32, _mm512_castsi512_si256, _mm512_loadu_si512,
    _mm512_rol_epi32, _mm512_set1_epi32, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};

use super::{BLOCK, GROUP, Place, Registers};

/// "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Which block of which message each of the sixteen is.
#[derive(Clone, Copy)]
struct Lanes {
    block: [u32; GROUP],
    low: [u32; GROUP],
    high: [u32; GROUP],
}

impl Lanes {
    const EMPTY: Self = Self {
        block: [0; GROUP],
        low: [0; GROUP],
        high: [0; GROUP],
    };

    fn set(&mut self, lane: usize, block: u32, counter: u64) {
        let [a, b, c, d, e, f, g, h] = counter.to_le_bytes();
        if let (Some(to), Some(low), Some(high)) = (
            self.block.get_mut(lane),
            self.low.get_mut(lane),
            self.high.get_mut(lane),
        ) {
            *to = block;
            *low = u32::from_le_bytes([a, b, c, d]);
            *high = u32::from_le_bytes([e, f, g, h]);
        }
    }
}

/// The authenticator's keys of at most sixteen messages: block 0 of each (RFC 8439 §2.6).
pub(super) fn one_time_keys(_: Registers, key: &[u8; 32], places: &[Place]) -> [[u8; 32]; GROUP] {
    let mut lanes = Lanes::EMPTY;
    for (lane, place) in places.iter().take(GROUP).enumerate() {
        lanes.set(lane, 0, place.counter);
    }
    // SAFETY: `Registers` exists only on processors that have all of the features.
    unsafe { halves(&words(key), &lanes) }
}

/// The first half of each block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn halves(key: &[u32; 8], lanes: &Lanes) -> [[u8; 32]; GROUP] {
    let mut halves = [[0; 32]; GROUP];
    for (to, block) in halves.iter_mut().zip(blocks(key, lanes)) {
        // SAFETY: the array has the 32 bytes that are written.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_castsi512_si256(block)) };
    }
    halves
}

/// Encrypts or decrypts the messages at `places`, which are all of one length, from block 1 on.
pub(super) fn apply(_: Registers, key: &[u8; 32], arena: &mut [u8], places: &[Place]) {
    let key = words(key);
    let mut lanes = Lanes::EMPTY;
    let mut spans = [(0, 0); GROUP];
    let mut filled = 0;
    for place in places {
        let starts = place.text().step_by(BLOCK);
        for (start, block) in starts.zip(1_u32..) {
            lanes.set(filled, block, place.counter);
            spans[filled] = (start, place.end.min(start + BLOCK));
            filled += 1;
            if filled == GROUP {
                // SAFETY: as in `one_time_keys`.
                unsafe { mix(&key, &lanes, &spans, arena) };
                filled = 0;
            }
        }
    }
    // SAFETY: as in `one_time_keys`.
    unsafe { mix(&key, &lanes, spans.get(..filled).unwrap_or_default(), arena) };
}

fn words(key: &[u8; 32]) -> [u32; 8] {
    let (chunks, _) = key.as_chunks::<4>();
    let mut words = [0; 8];
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u32::from_le_bytes(*chunk);
    }
    words
}

/// Adds the blocks of `lanes` to what is at `spans`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn mix(key: &[u32; 8], lanes: &Lanes, spans: &[(usize, usize)], arena: &mut [u8]) {
    if spans.is_empty() {
        return;
    }
    for (block, (start, end)) in blocks(key, lanes).into_iter().zip(spans) {
        let bytes = arena.get_mut(*start..*end).unwrap_or_default();
        if let Ok(whole) = <&mut [u8; BLOCK]>::try_from(&mut *bytes) {
            // SAFETY: the array has the 64 bytes that are read and written.
            unsafe {
                let text = _mm512_loadu_si512(whole.as_ptr().cast());
                _mm512_storeu_si512(whole.as_mut_ptr().cast(), _mm512_xor_si512(text, block));
            }
            continue;
        }
        let mut stream = [0_u8; BLOCK];
        // SAFETY: the array has the 64 bytes that are written.
        unsafe { _mm512_storeu_si512(stream.as_mut_ptr().cast(), block) };
        for (byte, with) in bytes.iter_mut().zip(stream) {
            *byte ^= with;
        }
    }
}

/// Sixteen blocks, one per register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn blocks(key: &[u32; 8], lanes: &Lanes) -> [__m512i; 16] {
    let mut start = [_mm512_set1_epi32(0); 16];
    for (to, word) in start.iter_mut().zip(CONSTANTS.iter().chain(key)) {
        *to = _mm512_set1_epi32(word.cast_signed());
    }
    // SAFETY: each array has the 64 bytes that are read.
    unsafe {
        start[12] = _mm512_loadu_si512(lanes.block.as_ptr().cast());
        start[14] = _mm512_loadu_si512(lanes.low.as_ptr().cast());
        start[15] = _mm512_loadu_si512(lanes.high.as_ptr().cast());
    }
    let mut x = start;
    for _ in 0..10 {
        quarter::<0, 4, 8, 12>(&mut x);
        quarter::<1, 5, 9, 13>(&mut x);
        quarter::<2, 6, 10, 14>(&mut x);
        quarter::<3, 7, 11, 15>(&mut x);
        quarter::<0, 5, 10, 15>(&mut x);
        quarter::<1, 6, 11, 12>(&mut x);
        quarter::<2, 7, 8, 13>(&mut x);
        quarter::<3, 4, 9, 14>(&mut x);
    }
    for (word, start) in x.iter_mut().zip(start) {
        *word = _mm512_add_epi32(*word, start);
    }
    transposed(x)
}

/// A quarter round (RFC 8439 §2.1).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn quarter<const A: usize, const B: usize, const C: usize, const D: usize>(x: &mut [__m512i; 16]) {
    x[A] = _mm512_add_epi32(x[A], x[B]);
    x[D] = _mm512_rol_epi32::<16>(_mm512_xor_si512(x[D], x[A]));
    x[C] = _mm512_add_epi32(x[C], x[D]);
    x[B] = _mm512_rol_epi32::<12>(_mm512_xor_si512(x[B], x[C]));
    x[A] = _mm512_add_epi32(x[A], x[B]);
    x[D] = _mm512_rol_epi32::<8>(_mm512_xor_si512(x[D], x[A]));
    x[C] = _mm512_add_epi32(x[C], x[D]);
    x[B] = _mm512_rol_epi32::<7>(_mm512_xor_si512(x[B], x[C]));
}

/// From the same word of sixteen blocks per register to the sixteen words of one block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn transposed(x: [__m512i; 16]) -> [__m512i; 16] {
    // Within 128 bits: four words of one block each, from four registers.
    let mut quads = x;
    for row in 0..4 {
        let [a, b, c, d] = [x[4 * row], x[4 * row + 1], x[4 * row + 2], x[4 * row + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        quads[4 * row] = _mm512_unpacklo_epi64(ab_low, cd_low);
        quads[4 * row + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        quads[4 * row + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quads[4 * row + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // Between the 128-bit quarters: quarter q of column c of the four rows is block 4q + c.
    let mut blocks = x;
    for column in 0..4 {
        let [a, b, c, d] = [
            quads[column],
            quads[4 + column],
            quads[8 + column],
            quads[12 + column],
        ];
        let (ab_even, ab_odd) = (
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(a, b),
        );
        let (cd_even, cd_odd) = (
            _mm512_shuffle_i32x4::<0x88>(c, d),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        );
        blocks[column] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        blocks[4 + column] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        blocks[8 + column] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
        blocks[12 + column] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
    blocks
}
