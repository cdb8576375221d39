//! VAES with AVX-512: four blocks in a register, 32 blocks (a whole sector) under way together.

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm_set_epi64x, _mm512_add_epi64, _mm512_broadcast_i32x4, _mm512_loadu_si512, _mm512_set_epi64,
    _mm512_set1_epi64, _mm512_shldv_epi64, _mm512_slli_epi64, _mm512_sllv_epi64, _mm512_srlv_epi64,
    _mm512_storeu_si512, _mm512_sub_epi64, _mm512_ternarylogic_epi64, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi64, _mm512_xor_si512,
};

use super::schedule::{RoundKeys, Schedule};
use super::sectors::{self, Run};
use super::vector::{GROUP, Vector, aes, vex};

/// # Safety
/// The processor has AVX-512F, AVX-512 VBMI2 and VAES.
#[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
pub(super) unsafe fn encrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m512i, false>(keys, run) };
    clear_registers();
}

/// # Safety
/// As [`encrypt`].
#[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
pub(super) unsafe fn decrypt(keys: &RoundKeys, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m512i, true>(keys, run) };
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

/// `a ⊕ b ⊕ c`.
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

impl Vector for __m512i {
    const BLOCKS: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), self) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn xor(self, other: Self) -> Self {
        _mm512_xor_si512(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn counting(low: u64, high: u64) -> Self {
        let first = _mm512_broadcast_i32x4(_mm_set_epi64x(high.cast_signed(), low.cast_signed()));
        _mm512_add_epi64(first, _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn add_to_low(self, count: u64) -> Self {
        _mm512_add_epi64(self, _mm512_broadcast_i32x4(_mm_set_epi64x(0, count.cast_signed())))
    }

    /// Low and high halves are computed apart, eight to a register, and put together at the end. The carry-less product
    /// with 0x87 is three shifts: on Zen 4 VPCLMULQDQ would take turns with AES on the same ports, shifts do not.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn powers(tweak: u128) -> [Self; GROUP] {
        let tweak_low = _mm512_set1_epi64((tweak as u64).cast_signed());
        let tweak_high = _mm512_set1_epi64(((tweak >> 64) as u64).cast_signed());
        let mut powers = [tweak_low; GROUP];
        for (index, pair) in powers.chunks_exact_mut(2).enumerate() {
            // In this order unpacking gives the powers 0, 1, 2, 3 and 4, 5, 6, 7, plus 8 for each pair before.
            let power = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
            let power = _mm512_add_epi64(power, _mm512_set1_epi64(index as i64 * 8));
            let carry = _mm512_srlv_epi64(tweak_high, _mm512_sub_epi64(_mm512_set1_epi64(64), power));
            let product = xor3(carry, _mm512_slli_epi64::<1>(carry), _mm512_slli_epi64::<2>(carry));
            let low = xor3(_mm512_sllv_epi64(tweak_low, power), _mm512_slli_epi64::<7>(carry), product);
            let high = _mm512_shldv_epi64(tweak_high, tweak_low, power);
            pair[0] = _mm512_unpacklo_epi64(low, high);
            pair[1] = _mm512_unpackhi_epi64(low, high);
        }
        powers
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn encrypt(blocks: &mut [Self; GROUP], keys: &Schedule) {
        // SAFETY: it reads the round keys and changes the registers it names.
        unsafe {
            aes!(vex, zmm_reg, "vbroadcasti32x4", ["vpxorq", "vaesenc", "vaesenclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3, b4 4, b5 5, b6 6, b7 7]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn decrypt(blocks: &mut [Self; GROUP], keys: &Schedule) {
        // SAFETY: it reads the round keys and changes the registers it names.
        unsafe {
            aes!(vex, zmm_reg, "vbroadcasti32x4", ["vpxorq", "vaesdec", "vaesdeclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3, b4 4, b5 5, b6 6, b7 7]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2,vaes")]
    unsafe fn encrypt_half(blocks: &mut [Self; GROUP / 2], keys: &Schedule) {
        // SAFETY: it reads the round keys and changes the registers it names.
        unsafe {
            aes!(vex, zmm_reg, "vbroadcasti32x4", ["vpxorq", "vaesenc", "vaesenclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3]);
        }
    }
}
