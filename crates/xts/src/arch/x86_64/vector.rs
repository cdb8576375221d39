//! What the algorithm needs of a vector register: a few blocks side by side, and some arithmetic on them.

use super::schedule::Schedule;

/// Vectors that AES works on together: enough to fill the pipelines of any processor (latency 3 to 8 cycles,
/// one or two started a cycle), and few enough for 16 registers.
pub(super) const GROUP: usize = 8;

/// The `pshufd` order that exchanges the two 64-bit halves of every block.
pub(super) const SWAP_HALVES: i32 = 0b01_00_11_10;

/// One to four 16-byte blocks in a register. A block is also a 128-bit little-endian number: two 64-bit halves.
///
/// # Safety
/// Every method asks that the processor has the instructions of the implementing type's kernel. They are all
/// inlined into the kernel's own functions, for which the compiler knows that.
pub(super) trait Vector: Copy {
    /// How many blocks.
    const BLOCKS: usize;

    /// # Safety
    /// `BLOCKS` blocks can be read at `from`, at any alignment.
    unsafe fn load(from: *const u8) -> Self;

    /// # Safety
    /// `BLOCKS` blocks can be written at `to`, at any alignment.
    unsafe fn store(self, to: *mut u8);

    unsafe fn xor(self, other: Self) -> Self;

    /// Tweak values of consecutive sectors: high half `high`, low halves `low`, `low + 1`, … wrapping.
    unsafe fn counting(low: u64, high: u64) -> Self;

    /// Adds to the low half of every block, wrapping.
    unsafe fn add_to_low(self, count: u64) -> Self;

    /// `tweak · x^i` for `i` from 0 on, in order, as many as a group has blocks.
    unsafe fn powers(tweak: u128) -> [Self; GROUP];

    /// AES-256 of a group of blocks.
    unsafe fn encrypt(blocks: &mut [Self; GROUP], keys: &Schedule);

    /// The inverse; `keys` are those of the equivalent inverse cipher.
    unsafe fn decrypt(blocks: &mut [Self; GROUP], keys: &Schedule);

    /// AES-256 of half a group of blocks.
    unsafe fn encrypt_half(blocks: &mut [Self; GROUP / 2], keys: &Schedule);
}

/// AES over the vectors `$blocks`, as one piece of assembly.
///
/// It is one piece for two reasons. The compiler would order the rounds by block, and no processor looks far enough
/// ahead to find the others' work behind 14 dependent instructions; here it is by round. And the
/// compiler would keep round keys, which are the same for every group, and for want of registers copy them to
/// the stack; here each is in one register until the next is loaded.
macro_rules! aes {
    (
        $form:ident, $class:ident, $load:literal, [$xor:literal, $round:literal, $last:literal],
        $keys:expr, $blocks:expr, [$($block:ident $index:literal),+]
    ) => {
        ::std::arch::asm!(
            concat!($load, " {key}, [{keys}]"),
            $($form!($xor, $block),)+
            // Round keys 1 to 13, 16 bytes each.
            ".irp offset, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208",
            concat!($load, " {key}, [{keys} + \\offset]"),
            $($form!($round, $block),)+
            ".endr",
            concat!($load, " {key}, [{keys} + 224]"),
            $($form!($last, $block),)+
            keys = in(reg) ::std::ptr::from_ref::<$crate::arch::x86_64::schedule::Schedule>($keys),
            key = out($class) _,
            $($block = inout($class) $blocks[$index],)+
            options(pure, readonly, nostack, preserves_flags),
        )
    };
}

/// An instruction that has its result in place of its first source, in the three-operand encoding of AVX.
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
