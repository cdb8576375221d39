//! AES-NI: one block in a register, eight blocks under way together.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, _mm_add_epi64, _mm_clmulepi64_si128, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_loadu_si128,
    _mm_set_epi64x, _mm_set1_epi64x, _mm_shuffle_epi32, _mm_sll_epi64, _mm_srl_epi64, _mm_storeu_si128,
    _mm_unpackhi_epi64, _mm_xor_si128,
};

use super::schedule::{RoundKeys, Schedule};
use super::sectors::{self, Run};
use super::vector::{Block, GROUP, SWAP_HALVES, TWEAK_VECTORS, Vector, aes, sse};

/// # Safety
/// The processor has AES-NI and PCLMULQDQ.
#[target_feature(enable = "aes,pclmulqdq")]
pub(super) unsafe fn encrypt(keys: &RoundKeys, first_tweak: u128, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m128i, false>(keys, first_tweak, run) };
    clear_registers();
}

/// # Safety
/// As [`encrypt`].
#[target_feature(enable = "aes,pclmulqdq")]
pub(super) unsafe fn decrypt(keys: &RoundKeys, first_tweak: u128, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m128i, true>(keys, first_tweak, run) };
    clear_registers();
}

/// Sets all 16 vector registers to zero.
fn clear_registers() {
    // SAFETY: it changes the registers it names, and no memory.
    unsafe {
        asm!(
            "pxor xmm0, xmm0", "pxor xmm1, xmm1", "pxor xmm2, xmm2", "pxor xmm3, xmm3",
            "pxor xmm4, xmm4", "pxor xmm5, xmm5", "pxor xmm6, xmm6", "pxor xmm7, xmm7",
            "pxor xmm8, xmm8", "pxor xmm9, xmm9", "pxor xmm10, xmm10", "pxor xmm11, xmm11",
            "pxor xmm12, xmm12", "pxor xmm13, xmm13", "pxor xmm14, xmm14", "pxor xmm15, xmm15",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

impl Vector for __m128i {
    const BLOCKS: usize = 1;

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    unsafe fn xor_load(self, from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        _mm_xor_si128(self, unsafe { _mm_loadu_si128(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    unsafe fn xor_store(self, other: Self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), _mm_xor_si128(self, other)) }
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    unsafe fn encrypt_tweaks(first: u128, keys: &Schedule, to: *mut Block) -> u128 {
        let value = _mm_set_epi64x((first >> 64) as i64, first as i64);
        let mut blocks = [value; TWEAK_VECTORS];
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = _mm_add_epi64(value, _mm_set_epi64x(0, index as i64));
        }
        // SAFETY: it reads the round keys and changes the registers it names.
        unsafe {
            aes!(sse, xmm_reg, "movdqa", ["pxor", "aesenc", "aesenclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3]);
        }
        for (index, block) in blocks.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm_storeu_si128(to.add(index).cast(), block) };
        }
        let first = blocks[0];
        let (low, high) = (_mm_cvtsi128_si64(first), _mm_cvtsi128_si64(_mm_unpackhi_epi64(first, first)));
        u128::from(high.cast_unsigned()) << 64 | u128::from(low.cast_unsigned())
    }

    /// `reduced` in `vaes_256` explains the steps.
    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    unsafe fn powers(tweak: u128) -> [Self; GROUP] {
        let first = _mm_set_epi64x((tweak >> 64) as i64, tweak as i64);
        let swapped = _mm_shuffle_epi32::<SWAP_HALVES>(first);
        let mut powers = [first; GROUP];
        for (index, place) in powers.iter_mut().enumerate() {
            let power = index as i64;
            let halves = _mm_sll_epi64(first, _mm_cvtsi64_si128(power));
            let carries = _mm_srl_epi64(swapped, _mm_cvtsi64_si128(64 - power));
            let product = _mm_clmulepi64_si128::<0x00>(carries, _mm_set1_epi64x(0x86));
            *place = _mm_xor_si128(_mm_xor_si128(halves, carries), product);
        }
        powers
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    unsafe fn encrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP] {
        // SAFETY: the caller's promise; it reads the round keys and changes the registers it names.
        unsafe {
            aes!(sse, xmm_reg, "movdqa", ["pxor", "aesenc", "aesenclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3, b4 4, b5 5, b6 6, b7 7]);
            Self::powers(next_tweak)
        }
    }

    #[inline]
    #[target_feature(enable = "aes,pclmulqdq")]
    unsafe fn decrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP] {
        // SAFETY: the caller's promise; it reads the round keys and changes the registers it names.
        unsafe {
            aes!(sse, xmm_reg, "movdqa", ["pxor", "aesdec", "aesdeclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3, b4 4, b5 5, b6 6, b7 7]);
            Self::powers(next_tweak)
        }
    }
}
