//! The algorithm of all three kernels: XTS over a run of sectors, on vectors of any width.
//!
//! What limits it is how fast a processor starts AES instructions, so independent ones must always be ready, and
//! everything else must find its place beside them:
//! - data goes through AES in groups of eight vectors;
//! - the initial tweaks `T(n, 0)` of a batch of sectors are encrypted together;
//! - while AES works on one group, the tweaks of the next one are computed, also over the border between two
//!   sectors: `V::encrypt` and `V::decrypt` do both at once.

use std::arch::asm;
use std::marker::PhantomData;

use super::schedule::{RoundKeys, Schedule};
use super::vector::{Block, GROUP, TWEAK_VECTORS, Vector};
use crate::SECTOR_BYTES;
use crate::sectors::Sectors;
use crate::tweak::{following, times_x_to};

/// The most sectors in a batch: as many as `TWEAK_VECTORS` of the widest vector have blocks.
const MAX_BATCH: usize = 16;

/// Where a run of sectors is read and written.
///
/// Both pointers are valid for `sectors` sectors during `'a`; they are the same, or do not overlap.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    from: *const u8,
    to: *mut u8,
    sectors: usize,
    buffers: PhantomData<&'a mut [u8]>,
}

impl<'a> Run<'a> {
    pub(super) fn over(sectors: Sectors<'a>) -> Self {
        let count = sectors.count();
        let (from, to) = match sectors {
            Sectors::InPlace(sectors) => {
                let to = sectors.as_mut_ptr();
                (to.cast_const(), to)
            }
            Sectors::Apart { from, to } => (from.as_ptr(), to.as_mut_ptr()),
        };
        Self { from, to, sectors: count, buffers: PhantomData }
    }

    /// The run without its first `count` sectors.
    #[inline(always)]
    fn after(self, count: usize) -> Self {
        // Not beyond the end of the buffers, as the subtraction shows.
        let (from, to) =
            (self.from.wrapping_add(count * SECTOR_BYTES), self.to.wrapping_add(count * SECTOR_BYTES));
        Self { from, to, sectors: self.sectors - count, ..self }
    }
}

/// The encrypted tweaks `T(n, 0)` of a batch of sectors.
#[repr(align(64))]
struct InitialTweaks([Block; MAX_BATCH]);

impl InitialTweaks {
    const ZERO: Self = Self([[0; 16]; MAX_BATCH]);

    #[inline(always)]
    fn of(&self, sector: usize) -> u128 {
        u128::from_le_bytes(self.0[sector])
    }

    /// Overwrites them, in a way that the compiler cannot take for useless.
    #[inline(always)]
    fn wipe(&mut self) {
        *self = Self::ZERO;
        // SAFETY: it does nothing; the compiler must assume that it reads what the pointer leads to.
        unsafe { asm!("/* {} */", in(reg) self.0.as_ptr(), options(nostack, preserves_flags)) };
    }
}

/// Encrypts (or decrypts) a run, the first sector of which has the tweak value `first_tweak`.
///
/// # Safety
/// The processor has the instructions of `V`'s kernel.
#[inline(always)]
pub(super) unsafe fn run<V: Vector, const DECRYPT: bool>(keys: &RoundKeys, first_tweak: u128, run: Run<'_>) {
    const { assert!(TWEAK_VECTORS * V::BLOCKS <= MAX_BATCH) };
    let schedule = if DECRYPT { &keys.decrypt } else { &keys.encrypt };
    let mut tweaks = InitialTweaks::ZERO;
    let mut left = run;
    while left.sectors > 0 {
        // SAFETY: the caller's promise about the processor; at least one sector is left, and `tweaks` is large
        // enough.
        let done = unsafe {
            if DECRYPT && is_unwritten(left.from) {
                left.to.write_bytes(0, SECTOR_BYTES);
                1
            } else {
                let tweak = following(first_tweak, run.sectors - left.sectors);
                let first = V::encrypt_tweaks(tweak, &keys.tweak, tweaks.0.as_mut_ptr());
                batch::<V, DECRYPT>(schedule, first, &tweaks, left)
            }
        };
        left = left.after(done);
    }
    tweaks.wipe();
}

/// The first sectors of `run`, at most a batch, with their initial tweaks. Returns how many: at least one, which
/// is a written one; decryption stops before the next that may be unwritten.
#[inline(always)]
unsafe fn batch<V: Vector, const DECRYPT: bool>(
    keys: &Schedule,
    first: u128,
    initial: &InitialTweaks,
    run: Run<'_>,
) -> usize {
    let group_blocks = GROUP * V::BLOCKS;
    let group_bytes = group_blocks * size_of::<Block>();
    let sectors = run.sectors.min(TWEAK_VECTORS * V::BLOCKS);
    let (mut from, mut to) = (run.from, run.to);
    // SAFETY: the caller's promises about the processor and the run, of whose sectors no more are touched.
    unsafe {
        let mut tweak = first;
        let mut tweaks = V::powers(tweak);
        let mut blocks = load_xor(from, &tweaks);
        for sector in 1..=sectors {
            for group in 1..=SECTOR_BYTES / group_bytes {
                let last = group == SECTOR_BYTES / group_bytes;
                tweak = match (last, sector == sectors) {
                    (false, _) => times_x_to(tweak, group_blocks as u32),
                    (true, false) => initial.of(sector),
                    (true, true) => 0, // nothing follows; what is computed from this is not used
                };
                let next = if DECRYPT {
                    V::decrypt(&mut blocks, keys, tweak)
                } else {
                    V::encrypt(&mut blocks, keys, tweak)
                };
                xor_store(&blocks, &tweaks, to);
                tweaks = next;
                (from, to) = (from.wrapping_add(group_bytes), to.wrapping_add(group_bytes));
                if last && (sector == sectors || DECRYPT && begins_with_zero(from)) {
                    return sector;
                }
                blocks = load_xor(from, &tweaks);
            }
        }
    }
    sectors
}

/// A group of blocks from `from`, each xored with its tweak.
#[inline(always)]
unsafe fn load_xor<V: Vector>(from: *const u8, tweaks: &[V; GROUP]) -> [V; GROUP] {
    let mut blocks = *tweaks;
    for (index, block) in blocks.iter_mut().enumerate() {
        // SAFETY: the caller's promise that a group can be read at `from`.
        *block = unsafe { block.xor_load(from.add(index * V::BLOCKS * size_of::<Block>())) };
    }
    blocks
}

/// A group of blocks, each xored with its tweak, to `to`.
#[inline(always)]
unsafe fn xor_store<V: Vector>(blocks: &[V; GROUP], tweaks: &[V; GROUP], to: *mut u8) {
    for (index, (block, tweak)) in blocks.iter().zip(tweaks).enumerate() {
        // SAFETY: the caller's promise that a group can be written at `to`.
        unsafe { block.xor_store(*tweak, to.add(index * V::BLOCKS * size_of::<Block>())) };
    }
}

/// Whether the sector at `from` is unwritten: all zeros.
#[inline(always)]
unsafe fn is_unwritten(from: *const u8) -> bool {
    // SAFETY: the caller's promise that a sector can be read at `from`.
    unsafe { begins_with_zero(from) && all_zero(from) }
}

/// Whether the first word of the sector at `from` is zero: true of an unwritten one, and of one in 2^64 others.
#[inline(always)]
unsafe fn begins_with_zero(from: *const u8) -> bool {
    // SAFETY: the caller's promise that a sector can be read at `from`.
    unsafe { from.cast::<u64>().read_unaligned() == 0 }
}

/// Whether a sector is all zeros.
#[cold]
unsafe fn all_zero(from: *const u8) -> bool {
    // SAFETY: the caller's promise that a sector can be read at `from`.
    let words = unsafe { from.cast::<[u64; SECTOR_BYTES / 8]>().read_unaligned() };
    words.iter().fold(0, |all, word| all | word) == 0
}
