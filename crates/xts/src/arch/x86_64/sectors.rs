//! The algorithm of all three kernels: XTS over a run of sectors, on vectors of any width.
//!
//! What limits it is the rate at which a processor starts AES instructions, so there must always be independent ones
//! ready: a group of eight vectors of data at a time, and the tweaks of a whole batch of sectors together.
//! Everything else (powers of tweaks, the two xors of a block, loads and stores) fits beside them on
//! other ports, and out-of-order execution lets the end of one group overlap the beginning of the next one.

use std::arch::asm;
use std::marker::PhantomData;

use super::schedule::{RoundKey, RoundKeys, Schedule};
use super::vector::{GROUP, Vector};
use crate::SECTOR_BYTES;
use crate::sectors::Sectors;

/// Vectors of tweaks that are encrypted together, once for as many sectors as they have blocks.
const TWEAK_VECTORS: usize = GROUP / 2;

/// The most sectors in a batch: `TWEAK_VECTORS` of the widest vector.
const MAX_BATCH: usize = 16;

/// Where a run of sectors is read and written, and the tweak value of its first sector.
pub(super) struct Run<'a> {
    from: *const u8,
    to: *mut u8,
    sectors: usize,
    first_tweak: u128,
    buffers: PhantomData<&'a mut [u8]>,
}

impl<'a> Run<'a> {
    /// Both pointers are valid for `sectors` sectors during `'a`; they are the same, or do not overlap.
    pub(super) fn over(first_tweak: u128, sectors: Sectors<'a>) -> Self {
        let count = sectors.count();
        let (from, to) = match sectors {
            Sectors::InPlace(sectors) => {
                let to = sectors.as_mut_ptr();
                (to.cast_const(), to)
            }
            Sectors::Apart { from, to } => (from.as_ptr(), to.as_mut_ptr()),
        };
        Self { from, to, sectors: count, first_tweak, buffers: PhantomData }
    }
}

/// Encrypted tweaks `T(n, 0)` of a batch of sectors.
#[repr(align(64))]
struct InitialTweaks([RoundKey; MAX_BATCH]);

impl InitialTweaks {
    /// Overwrites them, in a way that the compiler cannot take for useless.
    #[inline(always)]
    fn wipe(&mut self) {
        self.0 = [[0; 16]; MAX_BATCH];
        // SAFETY: it does nothing; the compiler must assume that it reads what the pointer leads to.
        unsafe { asm!("/* {} */", in(reg) self.0.as_ptr(), options(nostack, preserves_flags)) };
    }
}

/// Encrypts (or decrypts) a run.
///
/// # Safety
/// The processor has the instructions of `V`'s kernel.
#[inline(always)]
pub(super) unsafe fn run<V: Vector, const DECRYPT: bool>(keys: &RoundKeys, run: Run<'_>) {
    let mut tweaks = InitialTweaks([[0; 16]; MAX_BATCH]);
    let (mut from, mut to) = (run.from, run.to);
    let (mut low, high) = (run.first_tweak as u64, (run.first_tweak >> 64) as u64);
    let mut left = run.sectors;
    while left > 0 {
        let batch = left.min(TWEAK_VECTORS * V::BLOCKS);
        // SAFETY: the caller's promise; `left` sectors remain at both pointers.
        unsafe {
            encrypt_tweaks::<V>(&keys.tweak, low, high, &mut tweaks);
            for tweak in &tweaks.0[..batch] {
                sector::<V, DECRYPT>(keys, u128::from_le_bytes(*tweak), from, to);
                from = from.add(SECTOR_BYTES);
                to = to.add(SECTOR_BYTES);
            }
        }
        low = low.wrapping_add(batch as u64);
        left -= batch;
    }
    tweaks.wipe();
}

/// `T(n, 0)` for a whole batch of sectors, the first of which has the tweak value `high:low`.
#[inline(always)]
unsafe fn encrypt_tweaks<V: Vector>(keys: &Schedule, low: u64, high: u64, tweaks: &mut InitialTweaks) {
    const { assert!(TWEAK_VECTORS * V::BLOCKS <= MAX_BATCH) };
    // SAFETY: the caller's promise about the processor; the vectors fit in `tweaks`.
    unsafe {
        let mut blocks = [V::counting(low, high); TWEAK_VECTORS];
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = block.add_to_low((index * V::BLOCKS) as u64);
        }
        V::encrypt_half(&mut blocks, keys);
        for (index, block) in blocks.into_iter().enumerate() {
            block.store(tweaks.0.as_mut_ptr().add(index * V::BLOCKS).cast());
        }
    }
}

/// One sector: from `from` to `to`, with `tweak` = `T(n, 0)`.
#[inline(always)]
unsafe fn sector<V: Vector, const DECRYPT: bool>(
    keys: &RoundKeys,
    tweak: u128,
    from: *const u8,
    to: *mut u8,
) {
    let group_blocks = GROUP * V::BLOCKS;
    let mut tweak = tweak;
    // SAFETY: the caller's promises: the processor, and a sector at each pointer.
    unsafe {
        if DECRYPT && is_zero(from) {
            to.write_bytes(0, SECTOR_BYTES);
            return;
        }
        for first_block in (0..SECTOR_BYTES / 16).step_by(group_blocks) {
            let offset = first_block * 16;
            group::<V, DECRYPT>(keys, tweak, from.add(offset), to.add(offset));
            tweak = crate::field::times_x_to(tweak, group_blocks as u32);
        }
    }
}

/// `GROUP` vectors of one sector; `tweak` is that of their first block.
#[inline(always)]
unsafe fn group<V: Vector, const DECRYPT: bool>(keys: &RoundKeys, tweak: u128, from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promises: the processor, and `GROUP` vectors at each pointer.
    unsafe {
        let tweaks = V::powers(tweak);
        let mut blocks = tweaks;
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = block.xor(V::load(from.add(index * V::BLOCKS * 16)));
        }
        if DECRYPT {
            V::decrypt(&mut blocks, &keys.decrypt);
        } else {
            V::encrypt(&mut blocks, &keys.encrypt);
        }
        for (index, (block, tweak)) in blocks.into_iter().zip(tweaks).enumerate() {
            block.xor(tweak).store(to.add(index * V::BLOCKS * 16));
        }
    }
}

/// Whether the sector at `from` is unwritten. Of a written one the first word says no, but once in 2^64.
#[inline(always)]
unsafe fn is_zero(from: *const u8) -> bool {
    // SAFETY: the caller's promise that a sector can be read at `from`.
    unsafe { from.cast::<u64>().read_unaligned() == 0 && rest_is_zero(from) }
}

/// Whether a sector is all zeros.
#[cold]
#[inline(never)]
unsafe fn rest_is_zero(from: *const u8) -> bool {
    // SAFETY: the caller's promise that a sector can be read at `from`.
    let words = unsafe { from.cast::<[u64; SECTOR_BYTES / 8]>().read_unaligned() };
    words.iter().fold(0, |all, word| all | word) == 0
}
