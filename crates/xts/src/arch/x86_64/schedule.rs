//! The AES-256 key schedule (FIPS 197, section 5.2) with AES-NI, and the round keys that the kernels read.

use std::arch::x86_64::{
    __m128i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_loadu_si128, _mm_shuffle_epi32, _mm_slli_si128,
    _mm_storeu_si128, _mm_xor_si128,
};

use super::vector::Block;
use crate::cipher::HALF_BYTES;

/// Rounds of AES-256, the last one included.
pub(super) const ROUNDS: usize = 14;

/// One round key, four times over: the narrow kernels load the first one or two, the widest all four, without
/// an instruction that would have to spread them out.
pub(super) type RoundKey = [Block; 4];

/// The round keys of one key in one direction, in the order in which they are used.
pub(super) type Schedule = [RoundKey; ROUNDS + 1];

/// What the kernels need of a data key: `K1` in both directions, `K2` for encryption. It is kept in locked
/// memory, which wipes it.
#[repr(C, align(64))]
pub(super) struct RoundKeys {
    pub(super) encrypt: Schedule,
    pub(super) decrypt: Schedule,
    pub(super) tweak: Schedule,
}

impl RoundKeys {
    /// # Safety
    /// The processor has AES-NI.
    #[target_feature(enable = "aes")]
    pub(super) unsafe fn expand(data: &[u8; HALF_BYTES], tweak: &[u8; HALF_BYTES]) -> Self {
        let encrypt = expand(data);
        Self { encrypt, decrypt: inverse(&encrypt), tweak: expand(tweak) }
    }
}

/// The key schedule: round keys come in pairs, each made from the pair before it.
#[target_feature(enable = "aes")]
fn expand(key: &[u8; HALF_BYTES]) -> Schedule {
    let mut schedule = [[[0; 16]; 4]; ROUNDS + 1];
    let (halves, _) = key.as_chunks();
    let pair = [load(&halves[0]), load(&halves[1])];
    let (first, rest) = schedule.split_at_mut(2);
    store(pair[0], &mut first[0]);
    store(pair[1], &mut first[1]);
    // Rcon[i] = x^(i-1) in GF(2^8), FIPS 197 section 5.2; an instruction wants it as a constant.
    let pair = next_pair::<0x01>(pair, &mut rest[0..2]);
    let pair = next_pair::<0x02>(pair, &mut rest[2..4]);
    let pair = next_pair::<0x04>(pair, &mut rest[4..6]);
    let pair = next_pair::<0x08>(pair, &mut rest[6..8]);
    let pair = next_pair::<0x10>(pair, &mut rest[8..10]);
    let pair = next_pair::<0x20>(pair, &mut rest[10..12]);
    // The seventh pair is half used: 15 round keys.
    next_pair::<0x40>(pair, &mut rest[12..13]);
    schedule
}

/// The two round keys after `pair`, stored as far as `to` has places.
#[target_feature(enable = "aes")]
fn next_pair<const RCON: i32>([even, odd]: [__m128i; 2], to: &mut [RoundKey]) -> [__m128i; 2] {
    // RotWord, SubWord and Rcon for the first word of an even round key; SubWord alone for an odd one.
    let word = _mm_shuffle_epi32::<0b11_11_11_11>(_mm_aeskeygenassist_si128::<RCON>(odd));
    let even = _mm_xor_si128(running_xor(even), word);
    let word = _mm_shuffle_epi32::<0b10_10_10_10>(_mm_aeskeygenassist_si128::<0>(even));
    let odd = _mm_xor_si128(running_xor(odd), word);
    for (key, place) in [even, odd].into_iter().zip(to) {
        store(key, place);
    }
    [even, odd]
}

/// `[a, b, c, d]` becomes `[a, a⊕b, a⊕b⊕c, a⊕b⊕c⊕d]`, in 32-bit words.
#[target_feature(enable = "aes")]
fn running_xor(words: __m128i) -> __m128i {
    let words = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
    _mm_xor_si128(words, _mm_slli_si128::<8>(words))
}

/// The schedule of the equivalent inverse cipher (FIPS 197, section 5.3.5), which is what `aesdec` computes.
#[target_feature(enable = "aes")]
fn inverse(encrypt: &Schedule) -> Schedule {
    let mut decrypt = [[[0; 16]; 4]; ROUNDS + 1];
    for (round, (from, to)) in encrypt.iter().rev().zip(&mut decrypt).enumerate() {
        let outermost = round == 0 || round == ROUNDS;
        let key = load(&from[0]);
        store(if outermost { key } else { _mm_aesimc_si128(key) }, to);
    }
    decrypt
}

#[target_feature(enable = "aes")]
fn load(bytes: &Block) -> __m128i {
    // SAFETY: 16 bytes are there, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "aes")]
fn store(value: __m128i, to: &mut RoundKey) {
    for place in to {
        // SAFETY: 16 bytes are there, and the store needs no alignment.
        unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hex"))
    }

    #[test]
    fn schedule_of_fips_197_appendix_a_3() {
        if !is_x86_feature_detected!("aes") {
            return;
        }
        let key = bytes("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        // SAFETY: the processor has AES-NI.
        let keys = unsafe { RoundKeys::expand(&key, &[0; 32]) };
        assert_eq!(keys.encrypt[0], [bytes("603deb1015ca71be2b73aef0857d7781"); 4]);
        assert_eq!(keys.encrypt[1], [bytes("1f352c073b6108d72d9810a30914dff4"); 4]);
        assert_eq!(keys.encrypt[2], [bytes("9ba354118e6925afa51a8b5f2067fcde"); 4]);
        assert_eq!(keys.encrypt[14], [bytes("fe4890d1e6188d0b046df344706c631e"); 4]);
        assert_eq!(keys.decrypt[0], keys.encrypt[14]);
        assert_eq!(keys.decrypt[14], keys.encrypt[0]);
    }
}
