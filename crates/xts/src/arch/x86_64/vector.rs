//! What the algorithm needs of a vector register: a few blocks side by side, and some arithmetic on them.

/// The `pshufd` order that exchanges the two 64-bit halves of every block.
pub(super) const SWAP_HALVES: i32 = 0b01_00_11_10;

/// One to four 16-byte blocks in a register. A block is also a 128-bit little-endian number: two 64-bit halves.
///
/// # Safety
/// Every method asks that the processor has the instructions of the implementing type's kernel. They are all
/// inlined into the kernel's one function for which the compiler knows that.
pub(super) trait Vector: Copy {
    /// How many blocks.
    const BLOCKS: usize;

    /// # Safety
    /// `BLOCKS` blocks can be read at `from`, at any alignment.
    unsafe fn load(from: *const u8) -> Self;

    /// # Safety
    /// `BLOCKS` blocks can be written at `to`, at any alignment.
    unsafe fn store(self, to: *mut u8);

    /// The block at `from` in every place.
    ///
    /// # Safety
    /// One block can be read at `from`, at any alignment.
    unsafe fn broadcast(from: *const u8) -> Self;

    /// Tweak values of consecutive sectors: high half `high`, low halves `low`, `low + 1`, … wrapping.
    unsafe fn counting(low: u64, high: u64) -> Self;

    /// Place `i` multiplied by `x^i`. All places hold the same number.
    unsafe fn ascending_powers(self) -> Self;

    /// Every place multiplied by `x^power`, `power < 58`.
    unsafe fn times_x_to(self, power: u32) -> Self;

    unsafe fn xor(self, other: Self) -> Self;

    /// One round of encryption (`aesenc`).
    unsafe fn encrypt_round(self, key: Self) -> Self;

    /// The last round of encryption (`aesenclast`).
    unsafe fn encrypt_last(self, key: Self) -> Self;

    /// One round of the equivalent inverse cipher (`aesdec`).
    unsafe fn decrypt_round(self, key: Self) -> Self;

    /// The last round of the equivalent inverse cipher (`aesdeclast`).
    unsafe fn decrypt_last(self, key: Self) -> Self;
}
