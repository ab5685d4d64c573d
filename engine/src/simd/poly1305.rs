//! Poly1305 (RFC 8439 §2.5) of eight messages side by side, in limbs of 44, 44 and 42 bits.
#![allow(
    unsafe_code,
    reason = "vector registers are read by pointers; each block says why it is sound"
)]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_loadu_si512, _mm512_madd52hi_epu64,
    _mm512_madd52lo_epu64, _mm512_or_si512, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shuffle_i64x2, _mm512_slli_epi64, _mm512_srli_epi64, _mm512_storeu_si512,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
};

use super::{BLOCK, GROUP, Place, Registers, TAG};

/// Messages side by side.
const LANES: usize = 8;
/// Of those, groups that take turns.
const SIDES: usize = GROUP / LANES;
/// Bytes that the polynomial takes at a time.
const STEP: usize = 16;
/// What is left behind the last whole 64 bytes, filled up to a multiple of 16, and the lengths.
const END: usize = 128;
const MASK44: u64 = (1 << 44) - 1;
const MASK42: u64 = (1 << 42) - 1;
/// What each step of 16 bytes has on top: 2^128, in the third limb.
const TOP: u64 = 1 << 40;

/// A number per message, in three limbs.
type Limbs = [__m512i; 3];

/// The tags of at most sixteen messages of one length, without further data (RFC 8439 §2.8).
pub(super) fn tags(
    _: Registers,
    keys: &[[u8; 32]; GROUP],
    arena: &[u8],
    places: &[Place],
) -> [[u8; TAG]; GROUP] {
    let mut sides = [Side::EMPTY; SIDES];
    let parts = places.chunks(LANES).zip(keys.chunks(LANES));
    for (side, (places, keys)) in sides.iter_mut().zip(parts) {
        *side = Side::new(places, keys, arena);
    }
    // SAFETY: `Registers` exists only on processors that have all of the features.
    let sums = unsafe {
        match sides {
            [first, _] if places.len() <= LANES => {
                let [sums] = evaluate(&[first]);
                [sums, [[0; LANES]; 3]]
            }
            both => evaluate(&both),
        }
    };
    let mut tags = [[0; TAG]; GROUP];
    let parts = tags.chunks_mut(LANES).zip(keys.chunks(LANES)).zip(sums);
    for ((tags, keys), [one, two, three]) in parts {
        let sums = one.into_iter().zip(two).zip(three);
        for ((tag, key), ((one, two), three)) in tags.iter_mut().zip(keys).zip(sums) {
            *tag = finish([one, two, three], key);
        }
    }
    tags
}

/// Eight messages that are dealt with side by side.
#[derive(Clone, Copy)]
struct Side<'a> {
    multipliers: [[u64; LANES]; 3],
    texts: [&'a [u8]; LANES],
}

impl<'a> Side<'a> {
    const EMPTY: Self = Self {
        multipliers: [[0; LANES]; 3],
        texts: [&[]; LANES],
    };

    fn new(places: &[Place], keys: &[[u8; 32]], arena: &'a [u8]) -> Self {
        let mut side = Self::EMPTY;
        let Some(first) = places.first() else {
            return side;
        };
        for (lane, text) in side.texts.iter_mut().enumerate() {
            // Lanes without a message repeat the first.
            let place = places.get(lane).unwrap_or(first);
            *text = arena.get(place.text()).unwrap_or_default();
        }
        for (lane, key) in keys.iter().enumerate() {
            for (limbs, limb) in side.multipliers.iter_mut().zip(multiplier(key)) {
                limbs[lane] = limb;
            }
        }
        side
    }
}

/// The clamped multiplier (RFC 8439 §2.5.1).
fn multiplier(key: &[u8; 32]) -> [u64; 3] {
    let (words, _) = key.as_chunks::<8>();
    let low = u64::from_le_bytes(words[0]) & 0x0fff_fffc_0fff_ffff;
    let high = u64::from_le_bytes(words[1]) & 0x0fff_fffc_0fff_fffc;
    [low & MASK44, (low >> 44 | high << 20) & MASK44, high >> 24]
}

/// The sum modulo 2^130 - 5, plus the other half of the key.
fn finish([mut h0, mut h1, mut h2]: [u64; 3], key: &[u8; 32]) -> [u8; TAG] {
    for _ in 0..3 {
        h1 += h0 >> 44;
        h0 &= MASK44;
        h2 += h1 >> 44;
        h1 &= MASK44;
        h0 += (h2 >> 42) * 5;
        h2 &= MASK42;
    }
    h1 += h0 >> 44;
    h0 &= MASK44;
    // Minus the prime: what remains counts if nothing is borrowed.
    let mut g0 = h0 + 5;
    let mut g1 = h1 + (g0 >> 44);
    g0 &= MASK44;
    let g2 = h2 + (g1 >> 44);
    g1 &= MASK44;
    let reaches = (g2 >> 42).wrapping_neg();
    let choose = |reduced: u64, as_is: u64| (reduced & reaches) | (as_is & !reaches);
    let (h0, h1, h2) = (choose(g0, h0), choose(g1, h1), choose(g2 & MASK42, h2));
    let number = u128::from(h0) | u128::from(h1) << 44 | u128::from(h2) << 88;
    let mut pad = [0; TAG];
    pad.copy_from_slice(&key[TAG..]);
    number.wrapping_add(u128::from_le_bytes(pad)).to_le_bytes()
}

/// The polynomials of eight messages per side, not fully reduced. Each step waits for the one before it;
/// those of another side fill the wait.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn evaluate<const N: usize>(sides: &[Side<'_>; N]) -> [[[u64; LANES]; 3]; N] {
    let mut by = [Multiplier::new(&sides[0].multipliers); N];
    for (by, side) in by.iter_mut().zip(sides) {
        *by = Multiplier::new(&side.multipliers);
    }
    let length = sides[0].texts[0].len();
    let whole = length / BLOCK * BLOCK;
    let mut h = [[_mm512_setzero_si512(); 3]; N];
    for at in (0..whole).step_by(BLOCK) {
        let mut words = [[_mm512_setzero_si512(); LANES]; N];
        for (words, side) in words.iter_mut().zip(sides) {
            *words = loaded(&side.texts, at);
        }
        for step in 0..BLOCK / STEP {
            for ((h, by), words) in h.iter_mut().zip(by).zip(&words) {
                *h = by.times(added(*h, words[2 * step], words[2 * step + 1]));
            }
        }
    }
    let mut limbs = [[[0_u64; LANES]; 3]; N];
    for (((limbs, h), by), side) in limbs.iter_mut().zip(h).zip(by).zip(sides) {
        for (to, limb) in limbs.iter_mut().zip(ended(h, by, &side.texts)) {
            // SAFETY: the array has the 64 bytes that are written.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), limb) };
        }
    }
    limbs
}

/// Takes what is behind the last whole 64 bytes of each text, and the lengths.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn ended(mut h: Limbs, by: Multiplier, texts: &[&[u8]; LANES]) -> Limbs {
    let length = texts[0].len();
    let whole = length / BLOCK * BLOCK;
    let mut ends = [[0_u8; END]; LANES];
    let rest = length - whole;
    let lengths = rest.next_multiple_of(STEP);
    for (end, text) in ends.iter_mut().zip(texts) {
        end[..rest].copy_from_slice(&text[whole..]);
        end[lengths + 8..lengths + 16].copy_from_slice(&(length as u64).to_le_bytes());
    }
    let mut slices: [&[u8]; LANES] = [&[]; LANES];
    for (slice, end) in slices.iter_mut().zip(&ends) {
        *slice = end;
    }
    for at in (0..lengths + STEP).step_by(BLOCK) {
        let words = loaded(&slices, at);
        let steps = (lengths + STEP - at).min(BLOCK) / STEP;
        for step in 0..steps {
            h = by.times(added(h, words[2 * step], words[2 * step + 1]));
        }
    }
    h
}

/// The same 64 bytes of each message, as eight bytes of all per register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn loaded(texts: &[&[u8]; LANES], at: usize) -> [__m512i; LANES] {
    let [a, b, c, d, e, f, g, h] = *texts;
    transposed([
        load(a, at),
        load(b, at),
        load(c, at),
        load(d, at),
        load(e, at),
        load(f, at),
        load(g, at),
        load(h, at),
    ])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn load(text: &[u8], at: usize) -> __m512i {
    let bytes = text[at..].first_chunk::<BLOCK>().expect("64 bytes");
    // SAFETY: the array has the 64 bytes that are read.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Adds the next 16 bytes of each message, of which `low` and `high` have eight each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn added(h: Limbs, low: __m512i, high: __m512i) -> Limbs {
    let mask = _mm512_set1_epi64(MASK44.cast_signed());
    let first = _mm512_and_si512(low, mask);
    let second = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    let third = _mm512_or_si512(
        _mm512_srli_epi64::<24>(high),
        _mm512_set1_epi64(TOP.cast_signed()),
    );
    [
        _mm512_add_epi64(h[0], first),
        _mm512_add_epi64(h[1], _mm512_and_si512(second, mask)),
        _mm512_add_epi64(h[2], third),
    ]
}

/// What is multiplied by, a number per message.
#[derive(Clone, Copy)]
struct Multiplier {
    r: Limbs,
    /// Twenty times the second and third limb: what passes 2^132 comes back as that.
    s: [__m512i; 2],
}

impl Multiplier {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn new(limbs: &[[u64; LANES]; 3]) -> Self {
        let [one, two, three] = limbs;
        // SAFETY: each array has the 64 bytes that are read.
        let r = unsafe {
            [
                _mm512_loadu_si512(one.as_ptr().cast()),
                _mm512_loadu_si512(two.as_ptr().cast()),
                _mm512_loadu_si512(three.as_ptr().cast()),
            ]
        };
        let s = [
            _mm512_add_epi64(_mm512_slli_epi64::<4>(r[1]), _mm512_slli_epi64::<2>(r[1])),
            _mm512_add_epi64(_mm512_slli_epi64::<4>(r[2]), _mm512_slli_epi64::<2>(r[2])),
        ];
        Self { r, s }
    }

    /// The product modulo 2^130 - 5; limbs stay below 2^45.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn times(self, h: Limbs) -> Limbs {
        let Self {
            r: [r0, r1, r2],
            s: [s1, s2],
        } = self;
        let (low0, high0) = dot(h, [r0, s2, s1]);
        let (low1, high1) = dot(h, [r1, r0, s2]);
        let (low2, high2) = dot(h, [r2, r1, r0]);
        let mask44 = _mm512_set1_epi64(MASK44.cast_signed());
        let mask42 = _mm512_set1_epi64(MASK42.cast_signed());
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<44>(low0), _mm512_slli_epi64::<8>(high0));
        let h0 = _mm512_and_si512(low0, mask44);
        let low1 = _mm512_add_epi64(low1, carry);
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<44>(low1), _mm512_slli_epi64::<8>(high1));
        let h1 = _mm512_and_si512(low1, mask44);
        let low2 = _mm512_add_epi64(low2, carry);
        let carry = _mm512_add_epi64(
            _mm512_srli_epi64::<42>(low2),
            _mm512_slli_epi64::<10>(high2),
        );
        let h2 = _mm512_and_si512(low2, mask42);
        let five = _mm512_add_epi64(carry, _mm512_slli_epi64::<2>(carry));
        let h0 = _mm512_add_epi64(h0, five);
        let h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
        [_mm512_and_si512(h0, mask44), h1, h2]
    }
}

/// The low 52 bits and the high ones of the sum of three products.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn dot([a0, a1, a2]: Limbs, [b0, b1, b2]: Limbs) -> (__m512i, __m512i) {
    let zero = _mm512_setzero_si512();
    let low = _mm512_madd52lo_epu64(_mm512_madd52lo_epu64(zero, a0, b0), a1, b1);
    let high = _mm512_madd52hi_epu64(_mm512_madd52hi_epu64(zero, a0, b0), a1, b1);
    (
        _mm512_madd52lo_epu64(low, a2, b2),
        _mm512_madd52hi_epu64(high, a2, b2),
    )
}

/// From 64 bytes of each message to the same eight bytes of all.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Pairs of messages: even words, odd words.
    let even = [
        _mm512_unpacklo_epi64(a, b),
        _mm512_unpacklo_epi64(c, d),
        _mm512_unpacklo_epi64(e, f),
        _mm512_unpacklo_epi64(g, h),
    ];
    let odd = [
        _mm512_unpackhi_epi64(a, b),
        _mm512_unpackhi_epi64(c, d),
        _mm512_unpackhi_epi64(e, f),
        _mm512_unpackhi_epi64(g, h),
    ];
    let [w0, w2, w4, w6] = quarters(even);
    let [w1, w3, w5, w7] = quarters(odd);
    [w0, w1, w2, w3, w4, w5, w6, w7]
}

/// From four registers of four quarters each to the same quarter of all.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_even, ab_odd) = (
        _mm512_shuffle_i64x2::<0x88>(a, b),
        _mm512_shuffle_i64x2::<0xdd>(a, b),
    );
    let (cd_even, cd_odd) = (
        _mm512_shuffle_i64x2::<0x88>(c, d),
        _mm512_shuffle_i64x2::<0xdd>(c, d),
    );
    [
        _mm512_shuffle_i64x2::<0x88>(ab_even, cd_even),
        _mm512_shuffle_i64x2::<0x88>(ab_odd, cd_odd),
        _mm512_shuffle_i64x2::<0xdd>(ab_even, cd_even),
        _mm512_shuffle_i64x2::<0xdd>(ab_odd, cd_odd),
    ]
}
