//! VAES with AVX-512: four blocks in a register, 32 blocks (a whole sector) under way together.

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm_cvtsi64_si128, _mm_loadu_si128, _mm512_aesdec_epi128, _mm512_aesdeclast_epi128,
    _mm512_aesenc_epi128, _mm512_aesenclast_epi128, _mm512_broadcast_i32x4, _mm512_clmulepi64_epi128,
    _mm512_loadu_si512, _mm512_set_epi64, _mm512_set1_epi64, _mm512_shuffle_epi32, _mm512_sll_epi64,
    _mm512_sllv_epi64, _mm512_srl_epi64, _mm512_srlv_epi64, _mm512_storeu_si512, _mm512_ternarylogic_epi64,
    _mm512_xor_si512,
};

use super::schedule::RoundKeys;
use super::sectors::{self, Run};
use super::vector::{SWAP_HALVES, Vector};

/// Four registers hold the tweaks of 16 sectors; encrypting them takes no longer than encrypting one.
const TWEAK_VECTORS: usize = 4;

/// # Safety
/// The processor has AVX-512F, VAES and VPCLMULQDQ.
#[target_feature(enable = "avx512f,vaes,vpclmulqdq")]
pub(super) unsafe fn encrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m512i, TWEAK_VECTORS, false>(keys, run) };
    clear_registers();
}

/// # Safety
/// As [`encrypt`].
#[target_feature(enable = "avx512f,vaes,vpclmulqdq")]
pub(super) unsafe fn decrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m512i, TWEAK_VECTORS, true>(keys, run) };
    clear_registers();
}

/// Sets all 32 vector registers to zero; about ten cycles.
#[target_feature(enable = "avx512f")]
fn clear_registers() {
    // SAFETY: it changes the registers it names, and no memory.
    unsafe {
        asm!(
            "vzeroall", // registers 0 to 15, in full width
            "vpxord xmm16, xmm16, xmm16", "vpxord xmm17, xmm17, xmm17",
            "vpxord xmm18, xmm18, xmm18", "vpxord xmm19, xmm19, xmm19",
            "vpxord xmm20, xmm20, xmm20", "vpxord xmm21, xmm21, xmm21",
            "vpxord xmm22, xmm22, xmm22", "vpxord xmm23, xmm23, xmm23",
            "vpxord xmm24, xmm24, xmm24", "vpxord xmm25, xmm25, xmm25",
            "vpxord xmm26, xmm26, xmm26", "vpxord xmm27, xmm27, xmm27",
            "vpxord xmm28, xmm28, xmm28", "vpxord xmm29, xmm29, xmm29",
            "vpxord xmm30, xmm30, xmm30", "vpxord xmm31, xmm31, xmm31",
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
            out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
            out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// The last step of a multiplication by `x^j`: `halves` were shifted left by `j`, `carries` are the bits that
/// this pushed out of the other half. Those of the low half belong at the bottom of the high one. Those of the high
/// half come back at the bottom of the low one, times 0x87: once as they are, and times 0x86.
#[target_feature(enable = "avx512f,vpclmulqdq")]
fn reduced(halves: __m512i, carries: __m512i) -> __m512i {
    const XOR_OF_THREE: i32 = 0x96;
    let product = _mm512_clmulepi64_epi128::<0x00>(carries, _mm512_set1_epi64(0x86));
    _mm512_ternarylogic_epi64::<XOR_OF_THREE>(halves, carries, product)
}

// SAFETY of every block below: the trait's contract, which each method repeats.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, stated by the trait")]
impl Vector for __m512i {
    const BLOCKS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        unsafe { _mm512_storeu_si512(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn counting(low: u64, high: u64) -> Self {
        let (low, high) = (low.cast_signed(), high.cast_signed());
        let after = |count| low.wrapping_add(count);
        unsafe { _mm512_set_epi64(high, after(3), high, after(2), high, after(1), high, low) }
    }

    #[inline(always)]
    unsafe fn ascending_powers(self) -> Self {
        unsafe {
            let left = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
            let right = _mm512_set_epi64(61, 61, 62, 62, 63, 63, 64, 64);
            let swapped = _mm512_shuffle_epi32::<SWAP_HALVES>(self);
            reduced(_mm512_sllv_epi64(self, left), _mm512_srlv_epi64(swapped, right))
        }
    }

    #[inline(always)]
    unsafe fn times_x_to(self, power: u32) -> Self {
        unsafe {
            let left = _mm_cvtsi64_si128(power.into());
            let right = _mm_cvtsi64_si128((64 - power).into());
            let swapped = _mm512_shuffle_epi32::<SWAP_HALVES>(self);
            reduced(_mm512_sll_epi64(self, left), _mm512_srl_epi64(swapped, right))
        }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm512_xor_si512(self, other) }
    }

    #[inline(always)]
    unsafe fn encrypt_round(self, key: Self) -> Self {
        unsafe { _mm512_aesenc_epi128(self, key) }
    }

    #[inline(always)]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        unsafe { _mm512_aesenclast_epi128(self, key) }
    }

    #[inline(always)]
    unsafe fn decrypt_round(self, key: Self) -> Self {
        unsafe { _mm512_aesdec_epi128(self, key) }
    }

    #[inline(always)]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        unsafe { _mm512_aesdeclast_epi128(self, key) }
    }
}
