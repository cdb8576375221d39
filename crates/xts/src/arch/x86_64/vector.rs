//! What the algorithm needs of a vector register: a few blocks side by side, and some arithmetic on them.

use super::schedule::Schedule;

/// Vectors that AES works on together: enough to fill the pipelines of any processor (latency 3 to 8 cycles,
/// one or two started a cycle), and few enough for 16 registers.
pub(super) const GROUP: usize = 8;

/// Vectors of initial tweaks that are encrypted together.
pub(super) const TWEAK_VECTORS: usize = GROUP / 2;

/// A block as bytes.
pub(super) type Block = [u8; 16];

/// The `pshufd` order that exchanges the two 64-bit halves of every block.
pub(super) const SWAP_HALVES: i32 = 0b01_00_11_10;

/// One to four 16-byte blocks in a register. A block is also a little-endian number, an element of GF(2^128).
///
/// # Safety
/// Every method asks that the processor has the instructions of the implementing type's kernel. They are
/// inlined into the kernel's own functions, for which the compiler knows that.
pub(super) trait Vector: Copy {
    /// How many blocks.
    const BLOCKS: usize;

    /// `self` xored with the `BLOCKS` blocks at `from`.
    ///
    /// # Safety
    /// They can be read, at any alignment.
    unsafe fn xor_load(self, from: *const u8) -> Self;

    /// `self` xored with `other`, to the `BLOCKS` blocks at `to`.
    ///
    /// # Safety
    /// They can be written, at any alignment.
    unsafe fn xor_store(self, other: Self, to: *mut u8);

    /// AES-256 of the tweak value `first` and of those that follow it, as many as `TWEAK_VECTORS` vectors hold,
    /// to `to`. The low 64 bits of a tweak value count on, wrapping. Returns the first result, so that nobody
    /// has to wait for it to come back from memory.
    ///
    /// # Safety
    /// That many blocks can be written.
    unsafe fn encrypt_tweaks(first: u128, keys: &Schedule, to: *mut Block) -> u128;

    /// `tweak · x^i` for `i` from 0 on, in order, as many as a group has blocks.
    unsafe fn powers(tweak: u128) -> [Self; GROUP];

    /// AES-256 of a group of blocks, and meanwhile `powers(next_tweak)`.
    unsafe fn encrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP];

    /// The same with the inverse cipher; `keys` are its own.
    unsafe fn decrypt(blocks: &mut [Self; GROUP], keys: &Schedule, next_tweak: u128) -> [Self; GROUP];
}

/// AES over the vectors `$blocks`, as one piece of assembly.
///
/// It is one piece for two reasons. The compiler would put the 14 rounds of one block after another, and no
/// processor looks far enough ahead to find the other blocks' behind them; here the order is by round. And the
/// compiler would keep round keys, which are the same for every group, and for want of registers copy them to the
/// stack; here each is in one register until the next is loaded.
///
/// `$form` is [`vex`] or [`sse`], `$load` loads an aligned vector.
macro_rules! aes {
    (
        $form:ident, $class:ident, $load:literal, [$xor:literal, $round:literal, $last:literal],
        $keys:expr, $blocks:expr, [$($block:ident $index:literal),+]
    ) => {
        ::std::arch::asm!(
            concat!($load, " {key}, [{keys}]"),
            $($form!($xor, $block),)+
            // Round keys 1 to 13, 64 bytes each.
            ".irp offset, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832",
            concat!($load, " {key}, [{keys} + \\offset]"),
            $($form!($round, $block),)+
            ".endr",
            concat!($load, " {key}, [{keys} + 896]"),
            $($form!($last, $block),)+
            keys = in(reg) ::std::ptr::from_ref::<$crate::arch::x86_64::schedule::Schedule>($keys),
            key = out($class) _,
            $($block = inout($class) $blocks[$index],)+
            options(pure, readonly, nostack, preserves_flags),
        )
    };
}

/// An instruction on a block and the round key, in the three-operand encoding of AVX.
macro_rules! vex {
    ($op:literal, $block:ident) => {
        concat!($op, " {", stringify!($block), "}, {", stringify!($block), "}, {key}")
    };
}

/// The same in the two-operand encoding of SSE.
macro_rules! sse {
    ($op:literal, $block:ident) => {
        concat!($op, " {", stringify!($block), "}, {key}")
    };
}

pub(super) use {aes, sse, vex};
