//! VAES with AVX-512: four blocks in a register, 32 blocks (a whole sector) under way together.

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm_cvtsi128_si64, _mm_set_epi64x, _mm_unpackhi_epi64, _mm512_add_epi64, _mm512_broadcast_i32x4,
    _mm512_castsi512_si128, _mm512_loadu_si512, _mm512_set_epi64, _mm512_setzero_si512, _mm512_storeu_si512,
    _mm512_xor_si512,
};

use super::schedule::{RoundKeys, Schedule};
use super::sectors::{self, Run};
use super::vector::{Block, GROUP, TWEAK_VECTORS, Vector, aes, vex};

/// # Safety
/// The processor has AVX-512F and VAES.
#[target_feature(enable = "avx512f,vaes")]
pub(super) unsafe fn encrypt(keys: &RoundKeys, first_tweak: u128, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m512i, false>(keys, first_tweak, run) };
    clear_registers();
}

/// # Safety
/// As [`encrypt`].
#[target_feature(enable = "avx512f,vaes")]
pub(super) unsafe fn decrypt(keys: &RoundKeys, first_tweak: u128, run: Run<'_>) {
    // SAFETY: the caller's promise.
    unsafe { sectors::run::<__m512i, true>(keys, first_tweak, run) };
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

/// How far the halves of a tweak are shifted for its powers, eight 64-bit places to a register.
///
/// Unpacking a register of low halves and one of high halves, both in this order, gives the powers 0, 1, 2, 3 and
/// 4, 5, 6, 7, plus 8 for each pair of registers before.
#[repr(C, align(64))]
struct Shifts {
    /// Left, by the power of x.
    left: [[u64; 8]; GROUP / 2],
    /// Right, by 64 minus that: what the left shift pushes out.
    right: [[u64; 8]; GROUP / 2],
}

static SHIFTS: Shifts = {
    let order = [0, 4, 1, 5, 2, 6, 3, 7];
    let mut shifts = Shifts { left: [[0; 8]; GROUP / 2], right: [[0; 8]; GROUP / 2] };
    let mut place = 0;
    while place < 8 * GROUP / 2 {
        let power = order[place % 8] + 8 * (place as u64 / 8);
        shifts.left[place / 8][place % 8] = power;
        shifts.right[place / 8][place % 8] = 64 - power;
        place += 1;
    }
    shifts
};

/// The instructions for one pair of registers of powers, `$even` and `$odd`, in three steps of four instructions;
/// `$step` says what is between them. With `low` and `high` the halves of the tweak in every place:
///
/// ```text
/// c         = high >> right                                    what the left shift pushes out at the top
/// low'      = (low << left) ⊕ c ⊕ c << 1 ⊕ c << 2 ⊕ c << 7     with the carry-less product c · 0x87
/// high'     = (high << left) | (low >> right)
/// even, odd = unpack(low', high')
/// ```
///
/// VPCLMULQDQ would need fewer instructions, but on Zen 4 it runs on the same pipes as AES and takes its place.
#[rustfmt::skip]
macro_rules! pair {
    (
        $step:ident, $op:literal, [$first:literal, $second:literal, $third:literal],
        $pair:literal, $even:literal, $odd:literal
    ) => {
        concat!(
            $step!($op, $first,
                concat!("vpsrlvq {x}, {high}, [{right} + 64 * ", $pair, "]"),
                concat!("vpsllvq ", $even, ", {low}, [{left} + 64 * ", $pair, "]"),
                "vpsllq {y}, {x}, 1",
                "vpsllq {z}, {x}, 2"),
            $step!($op, $second,
                concat!("vpternlogq ", $even, ", {x}, {y}, 0x96"), // a ⊕ b ⊕ c
                "vpsllq {x}, {x}, 7",
                concat!("vpsrlvq {y}, {low}, [{right} + 64 * ", $pair, "]"),
                concat!("vpternlogq ", $even, ", {x}, {z}, 0x96")),
            $step!($op, $third,
                concat!("vpsllvq {z}, {high}, [{left} + 64 * ", $pair, "]"),
                "vporq {z}, {z}, {y}",
                concat!("vpunpckhqdq ", $odd, ", ", $even, ", {z}"),
                concat!("vpunpcklqdq ", $even, ", ", $even, ", {z}")),
        )
    };
}

/// A step of `pair` alone.
macro_rules! bare {
    ($op:literal, $key:literal, $a:expr, $b:expr, $c:expr, $d:expr) => {
        concat!($a, "\n", $b, "\n", $c, "\n", $d, "\n")
    };
}

/// A step of `pair` between the instructions of one AES round: `$op` on each of the eight blocks, with round key
/// number `$key`.
#[rustfmt::skip]
macro_rules! round {
    ($op:literal, $key:literal, $a:expr, $b:expr, $c:expr, $d:expr) => {
        concat!(
            "vmovdqa64 {key}, [{keys} + 64 * ", $key, "]\n",
            $op, " {b0}, {b0}, {key}\n", $op, " {b1}, {b1}, {key}\n", $a, "\n",
            $op, " {b2}, {b2}, {key}\n", $op, " {b3}, {b3}, {key}\n", $b, "\n",
            $op, " {b4}, {b4}, {key}\n", $op, " {b5}, {b5}, {key}\n", $c, "\n",
            $op, " {b6}, {b6}, {key}\n", $op, " {b7}, {b7}, {key}\n", $d, "\n",
        )
    };
}

/// AES over a group, with the powers of the next tweak in between.
///
/// AES keeps two of Zen 4's four vector pipes busy without a gap. Given many shifts at once, the processor puts
/// half of them on one of those two, which costs 19 cycles a sector of 115; given one at a time between AES
/// instructions, it puts them where there is room.
macro_rules! aes_and_powers {
    ($round:literal, $last:literal, $blocks:expr, $keys:expr, $tweak:expr) => {{
        let mut powers = [_mm512_setzero_si512(); GROUP];
        // SAFETY: it reads the round keys and the table of shifts, and changes the registers it names.
        unsafe {
            asm!(
                round!("vpxorq", 0, "vpbroadcastq {low}, {low_half}", "", "vpbroadcastq {high}, {high_half}", ""),
                pair!(round, $round, [1, 2, 3], 0, "{p0}", "{p1}"),
                pair!(round, $round, [4, 5, 6], 1, "{p2}", "{p3}"),
                pair!(round, $round, [7, 8, 9], 2, "{p4}", "{p5}"),
                pair!(round, $round, [10, 11, 12], 3, "{p6}", "{p7}"),
                round!($round, 13, "", "", "", ""),
                round!($last, 14, "", "", "", ""),
                keys = in(reg) std::ptr::from_ref::<Schedule>($keys),
                left = in(reg) &raw const SHIFTS.left,
                right = in(reg) &raw const SHIFTS.right,
                low_half = in(reg) $tweak as u64,
                high_half = in(reg) ($tweak >> 64) as u64,
                low = out(zmm_reg) _, high = out(zmm_reg) _, key = out(zmm_reg) _,
                x = out(zmm_reg) _, y = out(zmm_reg) _, z = out(zmm_reg) _,
                b0 = inout(zmm_reg) $blocks[0], b1 = inout(zmm_reg) $blocks[1],
                b2 = inout(zmm_reg) $blocks[2], b3 = inout(zmm_reg) $blocks[3],
                b4 = inout(zmm_reg) $blocks[4], b5 = inout(zmm_reg) $blocks[5],
                b6 = inout(zmm_reg) $blocks[6], b7 = inout(zmm_reg) $blocks[7],
                p0 = out(zmm_reg) powers[0], p1 = out(zmm_reg) powers[1],
                p2 = out(zmm_reg) powers[2], p3 = out(zmm_reg) powers[3],
                p4 = out(zmm_reg) powers[4], p5 = out(zmm_reg) powers[5],
                p6 = out(zmm_reg) powers[6], p7 = out(zmm_reg) powers[7],
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        powers
    }};
}

impl Vector for __m512i {
    const BLOCKS: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn xor_load(self, from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        _mm512_xor_si512(self, unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn xor_store(self, other: Self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), _mm512_xor_si512(self, other)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn encrypt_tweaks(first: u128, keys: &Schedule, to: *mut Block) -> u128 {
        let value = _mm_set_epi64x((first >> 64) as i64, first as i64);
        let values =
            _mm512_add_epi64(_mm512_broadcast_i32x4(value), _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0));
        let mut blocks = [values; TWEAK_VECTORS];
        for (index, block) in blocks.iter_mut().enumerate() {
            let skipped = _mm_set_epi64x(0, (index * Self::BLOCKS) as i64);
            *block = _mm512_add_epi64(values, _mm512_broadcast_i32x4(skipped));
        }
        // SAFETY: it reads the round keys and changes the registers it names.
        unsafe {
            aes!(vex, zmm_reg, "vmovdqa64", ["vpxorq", "vaesenc", "vaesenclast"], keys, blocks,
                [b0 0, b1 1, b2 2, b3 3]);
        }
        for (index, block) in blocks.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_si512(to.add(index * Self::BLOCKS).cast(), block) };
        }
        let first = _mm512_castsi512_si128(blocks[0]);
        let (low, high) = (_mm_cvtsi128_si64(first), _mm_cvtsi128_si64(_mm_unpackhi_epi64(first, first)));
        u128::from(high.cast_unsigned()) << 64 | u128::from(low.cast_unsigned())
    }

    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn powers(tweak: u128) -> [Self; GROUP] {
        let mut powers = [_mm512_setzero_si512(); GROUP];
        // SAFETY: it reads the table of shifts, and changes the registers it names.
        unsafe {
            asm!(
                "vpbroadcastq {low}, {low_half}",
                "vpbroadcastq {high}, {high_half}",
                pair!(bare, "", [0, 0, 0], 0, "{p0}", "{p1}"),
                pair!(bare, "", [0, 0, 0], 1, "{p2}", "{p3}"),
                pair!(bare, "", [0, 0, 0], 2, "{p4}", "{p5}"),
                pair!(bare, "", [0, 0, 0], 3, "{p6}", "{p7}"),
                left = in(reg) &raw const SHIFTS.left,
                right = in(reg) &raw const SHIFTS.right,
                low_half = in(reg) tweak as u64,
                high_half = in(reg) (tweak >> 64) as u64,
                low = out(zmm_reg) _, high = out(zmm_reg) _,
                x = out(zmm_reg) _, y = out(zmm_reg) _, z = out(zmm_reg) _,
                p0 = out(zmm_reg) powers[0], p1 = out(zmm_reg) powers[1],
                p2 = out(zmm_reg) powers[2], p3 = out(zmm_reg) powers[3],
                p4 = out(zmm_reg) powers[4], p5 = out(zmm_reg) powers[5],
                p6 = out(zmm_reg) powers[6], p7 = out(zmm_reg) powers[7],
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        powers
    }

    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn encrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP] {
        aes_and_powers!("vaesenc", "vaesenclast", blocks, keys, next_tweak)
    }

    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn decrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP] {
        aes_and_powers!("vaesdec", "vaesdeclast", blocks, keys, next_tweak)
    }
}
