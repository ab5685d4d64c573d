//! Sums of the words that the Internet checksum is of (RFC 1071), with 256-bit registers where there are any.
#![allow(
    unsafe_code,
    reason = "vector registers are read and written by pointers; each block says why it is sound"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _mm256_add_epi64, _mm256_and_si256, _mm256_loadu_si256, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_si256,
};

/// Bytes that are taken at once.
pub(crate) const CHUNK: usize = 64;

/// The sum of all 32-bit words: at most 64 KiB of them, so that it is below 2^46.
#[inline]
pub(crate) fn words_of(chunks: &[[u8; CHUNK]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { with_wide_registers(chunks) };
    }
    plainly(chunks)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_wide_registers(chunks: &[[u8; CHUNK]]) -> u64 {
    let mask = _mm256_set1_epi64x(0xffff_ffff);
    let mut sums = [_mm256_setzero_si256(); 4];
    for chunk in chunks {
        // SAFETY: the array has the 64 bytes that are read.
        let halves = unsafe {
            [
                _mm256_loadu_si256(chunk.as_ptr().cast()),
                _mm256_loadu_si256(chunk.as_ptr().add(CHUNK / 2).cast()),
            ]
        };
        for (sums, half) in sums.chunks_exact_mut(2).zip(halves) {
            sums[0] = _mm256_add_epi64(sums[0], _mm256_and_si256(half, mask));
            sums[1] = _mm256_add_epi64(sums[1], _mm256_srli_epi64::<32>(half));
        }
    }
    let [a, b, c, d] = sums;
    let sum = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
    let mut lanes = [0_u64; 4];
    // SAFETY: the array has the 32 bytes that are written.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
    lanes.into_iter().sum()
}

/// The same without.
fn plainly(chunks: &[[u8; CHUNK]]) -> u64 {
    let (mut low, mut high) = (0_u64, 0_u64);
    for chunk in chunks {
        let (words, _) = chunk.as_chunks::<8>();
        for word in words {
            let word = u64::from_ne_bytes(*word);
            // What wraps would be a sum of more than 2^31 words.
            low = low.wrapping_add(word & 0xffff_ffff);
            high = high.wrapping_add(word >> 32);
        }
    }
    low.wrapping_add(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_sum() {
        let mut state = 1_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        };
        for count in 0..40 {
            let chunks: Vec<[u8; CHUNK]> = (0..count)
                .map(|_| std::array::from_fn(|_| byte()))
                .chain([[0xff; CHUNK]])
                .collect();
            let slowly: u64 = chunks
                .as_flattened()
                .chunks(4)
                .map(|word| u64::from(u32::from_ne_bytes(word.try_into().expect("four"))))
                .sum();
            assert_eq!(plainly(&chunks), slowly);
            assert_eq!(words_of(&chunks), slowly);
        }
    }
}
