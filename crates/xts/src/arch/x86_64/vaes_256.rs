//! VAES with AVX2: two blocks in a register, half a sector under way together.

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _mm_cvtsi64_si128, _mm_loadu_si128, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128,
    _mm256_aesenc_epi128, _mm256_aesenclast_epi128, _mm256_broadcastsi128_si256, _mm256_clmulepi64_epi128,
    _mm256_loadu_si256, _mm256_set_epi64x, _mm256_set1_epi64x, _mm256_shuffle_epi32, _mm256_sll_epi64,
    _mm256_sllv_epi64, _mm256_srl_epi64, _mm256_srlv_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};

use super::schedule::RoundKeys;
use super::sectors::{self, Run};
use super::vector::{SWAP_HALVES, Vector};

/// Eight registers hold the tweaks of 16 sectors.
const TWEAK_VECTORS: usize = 8;

/// # Safety
/// The processor has AVX2, VAES and VPCLMULQDQ.
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) unsafe fn encrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m256i, TWEAK_VECTORS, false>(keys, run) };
    clear_registers();
}

/// # Safety
/// As [`encrypt`].
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) unsafe fn decrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m256i, TWEAK_VECTORS, true>(keys, run) };
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

/// As the function of this name in `vaes_512`.
#[target_feature(enable = "avx2,vpclmulqdq")]
fn reduced(halves: __m256i, carries: __m256i) -> __m256i {
    let product = _mm256_clmulepi64_epi128::<0x00>(carries, _mm256_set1_epi64x(0x86));
    _mm256_xor_si256(_mm256_xor_si256(halves, carries), product)
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, stated by the trait")]
impl Vector for __m256i {
    const BLOCKS: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        unsafe { _mm256_storeu_si256(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn counting(low: u64, high: u64) -> Self {
        let (low, high) = (low.cast_signed(), high.cast_signed());
        unsafe { _mm256_set_epi64x(high, low.wrapping_add(1), high, low) }
    }

    #[inline(always)]
    unsafe fn ascending_powers(self) -> Self {
        unsafe {
            let left = _mm256_set_epi64x(1, 1, 0, 0);
            let right = _mm256_set_epi64x(63, 63, 64, 64);
            let swapped = _mm256_shuffle_epi32::<SWAP_HALVES>(self);
            reduced(_mm256_sllv_epi64(self, left), _mm256_srlv_epi64(swapped, right))
        }
    }

    #[inline(always)]
    unsafe fn times_x_to(self, power: u32) -> Self {
        unsafe {
            let left = _mm_cvtsi64_si128(power.into());
            let right = _mm_cvtsi64_si128((64 - power).into());
            let swapped = _mm256_shuffle_epi32::<SWAP_HALVES>(self);
            reduced(_mm256_sll_epi64(self, left), _mm256_srl_epi64(swapped, right))
        }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm256_xor_si256(self, other) }
    }

    #[inline(always)]
    unsafe fn encrypt_round(self, key: Self) -> Self {
        unsafe { _mm256_aesenc_epi128(self, key) }
    }

    #[inline(always)]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        unsafe { _mm256_aesenclast_epi128(self, key) }
    }

    #[inline(always)]
    unsafe fn decrypt_round(self, key: Self) -> Self {
        unsafe { _mm256_aesdec_epi128(self, key) }
    }

    #[inline(always)]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        unsafe { _mm256_aesdeclast_epi128(self, key) }
    }
}
