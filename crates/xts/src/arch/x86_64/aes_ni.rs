//! AES-NI: one block in a register, eight blocks under way together.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, _mm_aesdec_si128, _mm_aesdeclast_si128, _mm_aesenc_si128, _mm_aesenclast_si128,
    _mm_clmulepi64_si128, _mm_cvtsi64_si128, _mm_loadu_si128, _mm_set_epi64x, _mm_set1_epi64x,
    _mm_shuffle_epi32, _mm_sll_epi64, _mm_srl_epi64, _mm_storeu_si128, _mm_xor_si128,
};

use super::schedule::RoundKeys;
use super::sectors::{self, Run};
use super::vector::{SWAP_HALVES, Vector};

/// Eight registers hold the tweaks of eight sectors.
const TWEAK_VECTORS: usize = 8;

/// # Safety
/// The processor has AES-NI and PCLMULQDQ.
#[target_feature(enable = "aes,pclmulqdq")]
pub(super) unsafe fn encrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m128i, TWEAK_VECTORS, false>(keys, run) };
    clear_registers();
}

/// # Safety
/// As [`encrypt`].
#[target_feature(enable = "aes,pclmulqdq")]
pub(super) unsafe fn decrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m128i, TWEAK_VECTORS, true>(keys, run) };
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

#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, stated by the trait")]
impl Vector for __m128i {
    const BLOCKS: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { _mm_loadu_si128(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        unsafe { _mm_storeu_si128(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        unsafe { _mm_loadu_si128(from.cast()) }
    }

    #[inline(always)]
    unsafe fn counting(low: u64, high: u64) -> Self {
        unsafe { _mm_set_epi64x(high.cast_signed(), low.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn ascending_powers(self) -> Self {
        self
    }

    /// As `reduced` in `vaes_512` says.
    #[inline(always)]
    unsafe fn times_x_to(self, power: u32) -> Self {
        unsafe {
            let halves = _mm_sll_epi64(self, _mm_cvtsi64_si128(power.into()));
            let swapped = _mm_shuffle_epi32::<SWAP_HALVES>(self);
            let carries = _mm_srl_epi64(swapped, _mm_cvtsi64_si128((64 - power).into()));
            let product = _mm_clmulepi64_si128::<0x00>(carries, _mm_set1_epi64x(0x86));
            _mm_xor_si128(_mm_xor_si128(halves, carries), product)
        }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm_xor_si128(self, other) }
    }

    #[inline(always)]
    unsafe fn encrypt_round(self, key: Self) -> Self {
        unsafe { _mm_aesenc_si128(self, key) }
    }

    #[inline(always)]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        unsafe { _mm_aesenclast_si128(self, key) }
    }

    #[inline(always)]
    unsafe fn decrypt_round(self, key: Self) -> Self {
        unsafe { _mm_aesdec_si128(self, key) }
    }

    #[inline(always)]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        unsafe { _mm_aesdeclast_si128(self, key) }
    }
}
