//! VAES with AVX2: two blocks in a register, half a sector under way together.

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_set_epi64x, _mm_unpackhi_epi64, _mm256_add_epi64,
    _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_clmulepi64_epi128, _mm256_loadu_si256,
    _mm256_set_epi64x, _mm256_set1_epi64x, _mm256_shuffle_epi32, _mm256_sll_epi64, _mm256_sllv_epi64,
    _mm256_srl_epi64, _mm256_srlv_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};

use super::schedule::{RoundKeys, Schedule};
use super::sectors::{self, Run};
use super::vector::{Block, GROUP, SWAP_HALVES, TWEAK_VECTORS, Vector, aes, vex};

/// # Safety
/// The processor has AVX2, VAES and VPCLMULQDQ.
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) unsafe fn encrypt(keys: &RoundKeys, first_tweak: u128, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m256i, false>(keys, first_tweak, run) };
    clear_registers();
}

/// # Safety
/// As [`encrypt`].
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) unsafe fn decrypt(keys: &RoundKeys, first_tweak: u128, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m256i, true>(keys, first_tweak, run) };
    clear_registers();
}

/// Sets all 16 vector registers to zero.
#[target_feature(enable = "avx2")]
fn clear_registers() {
    // SAFETY: it changes the registers it names, and no memory.
    unsafe {
        asm!(
            "vzeroall",
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// The last step of a multiplication by `x^j`: `halves` were shifted left by `j`, `carries` are the bits that this
/// pushed out of the other half. Those of the low half belong at the bottom of the high one. Those of the high
/// half come back at the bottom of the low one times 0x87: once as they are, and times 0x86.
#[target_feature(enable = "avx2,vpclmulqdq")]
fn reduced(halves: __m256i, carries: __m256i) -> __m256i {
    let product = _mm256_clmulepi64_epi128::<0x00>(carries, _mm256_set1_epi64x(0x86));
    _mm256_xor_si256(_mm256_xor_si256(halves, carries), product)
}

impl Vector for __m256i {
    const BLOCKS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    unsafe fn xor_load(self, from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        _mm256_xor_si256(self, unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    unsafe fn xor_store(self, other: Self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm256_xor_si256(self, other)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    unsafe fn encrypt_tweaks(first: u128, keys: &Schedule, to: *mut Block) -> u128 {
        let value = _mm_set_epi64x((first >> 64) as i64, first as i64);
        let values = _mm256_add_epi64(_mm256_broadcastsi128_si256(value), _mm256_set_epi64x(0, 1, 0, 0));
        let mut blocks = [values; TWEAK_VECTORS];
        for (index, block) in blocks.iter_mut().enumerate() {
            let skipped = _mm_set_epi64x(0, (index * Self::BLOCKS) as i64);
            *block = _mm256_add_epi64(values, _mm256_broadcastsi128_si256(skipped));
        }
        // SAFETY: it reads the round keys and changes the registers it names.
        unsafe {
            aes!(vex, ymm_reg, "vmovdqa", ["vpxor", "vaesenc", "vaesenclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3]);
        }
        for (index, block) in blocks.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_si256(to.add(index * Self::BLOCKS).cast(), block) };
        }
        let first = _mm256_castsi256_si128(blocks[0]);
        let (low, high) = (_mm_cvtsi128_si64(first), _mm_cvtsi128_si64(_mm_unpackhi_epi64(first, first)));
        u128::from(high.cast_unsigned()) << 64 | u128::from(low.cast_unsigned())
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    unsafe fn powers(tweak: u128) -> [Self; GROUP] {
        let twice = _mm256_broadcastsi128_si256(_mm_set_epi64x((tweak >> 64) as i64, tweak as i64));
        let swapped = _mm256_shuffle_epi32::<SWAP_HALVES>(twice);
        let halves = _mm256_sllv_epi64(twice, _mm256_set_epi64x(1, 1, 0, 0));
        let first = reduced(halves, _mm256_srlv_epi64(swapped, _mm256_set_epi64x(63, 63, 64, 64)));
        let swapped = _mm256_shuffle_epi32::<SWAP_HALVES>(first);
        let mut powers = [first; GROUP];
        for (index, place) in powers.iter_mut().enumerate() {
            let power = (index * Self::BLOCKS) as i64;
            let halves = _mm256_sll_epi64(first, _mm_cvtsi64_si128(power));
            *place = reduced(halves, _mm256_srl_epi64(swapped, _mm_cvtsi64_si128(64 - power)));
        }
        powers
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    unsafe fn encrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP] {
        // SAFETY: the caller's promise; it reads the round keys and changes the registers it names.
        unsafe {
            aes!(vex, ymm_reg, "vmovdqa", ["vpxor", "vaesenc", "vaesenclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3, b4 4, b5 5, b6 6, b7 7]);
            Self::powers(next_tweak)
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    unsafe fn decrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP] {
        // SAFETY: the caller's promise; it reads the round keys and changes the registers it names.
        unsafe {
            aes!(vex, ymm_reg, "vmovdqa", ["vpxor", "vaesdec", "vaesdeclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3, b4 4, b5 5, b6 6, b7 7]);
            Self::powers(next_tweak)
        }
    }
}
