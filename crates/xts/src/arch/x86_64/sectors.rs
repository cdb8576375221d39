//! The algorithm of all three kernels: XTS over a run of sectors, on vectors of any width.
//!
//! AES instructions have a latency of 3 to 8 cycles and a throughput of one or two a cycle, so what counts is
//! to have enough independent ones under way. Eight vectors of data are, and for the tweaks of a batch of sectors
//! up to eight. Everything else (tweak powers, the two xors of a block, loads and stores) fits beside them on the
//! processor's other ports; out-of-order execution lets the end of one group of eight overlap the next one's beginning.

use std::marker::PhantomData;

use super::schedule::{ROUNDS, RoundKey, RoundKeys, Schedule};
use super::vector::Vector;
use crate::SECTOR_BYTES;
use crate::sectors::Sectors;

/// Vectors of data under way together.
const GROUP: usize = 8;

/// The most sectors whose initial tweaks are encrypted together.
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
            Sectors::InPlace(sectors) => (sectors.as_ptr(), sectors.as_mut_ptr()),
            Sectors::Apart { from, to } => (from.as_ptr(), to.as_mut_ptr()),
        };
        Self { from, to, sectors: count, first_tweak, buffers: PhantomData }
    }
}

/// Encrypted tweaks `T(n, 0)` of a batch of sectors.
#[repr(align(64))]
pub(super) struct InitialTweaks([RoundKey; MAX_BATCH]);

/// Encrypts (or decrypts) a run, `TWEAK_VECTORS` vectors of initial tweaks at a time.
///
/// # Safety
/// The processor has the instructions of `V`'s kernel.
#[inline(always)]
pub(super) unsafe fn run<V: Vector, const TWEAK_VECTORS: usize, const DECRYPT: bool>(
    keys: &RoundKeys,
    run: Run<'_>,
) {
    let mut tweaks = InitialTweaks([[0; 16]; MAX_BATCH]);
    let (mut from, mut to) = (run.from, run.to);
    let (mut low, high) = (run.first_tweak as u64, (run.first_tweak >> 64) as u64);
    let mut left = run.sectors;
    while left > 0 {
        let batch = left.min(TWEAK_VECTORS * V::BLOCKS);
        // SAFETY: the caller's promise; `left` sectors remain at both pointers.
        unsafe {
            encrypt_tweaks::<V, TWEAK_VECTORS>(&keys.tweak, low, high, &mut tweaks);
            for tweak in &tweaks.0[..batch] {
                sector::<V, DECRYPT>(keys, tweak, from, to);
                from = from.add(SECTOR_BYTES);
                to = to.add(SECTOR_BYTES);
            }
        }
        low = low.wrapping_add(batch as u64);
        left -= batch;
    }
}

/// `T(n, 0)` for as many sectors from tweak value `high:low` on as `N` vectors hold.
#[inline(always)]
unsafe fn encrypt_tweaks<V: Vector, const N: usize>(
    keys: &Schedule,
    low: u64,
    high: u64,
    tweaks: &mut InitialTweaks,
) {
    const { assert!(N * V::BLOCKS <= MAX_BATCH) };
    // SAFETY: the caller's promise about the processor; `N` vectors fit in `tweaks`.
    unsafe {
        let mut blocks = [V::counting(low, high); N];
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = V::counting(low.wrapping_add((index * V::BLOCKS) as u64), high);
        }
        cipher::<V, N, false>(keys, &mut blocks);
        for (index, block) in blocks.into_iter().enumerate() {
            block.store(tweaks.0.as_mut_ptr().add(index * V::BLOCKS).cast());
        }
    }
}

/// One sector: from `from` to `to`, with `tweak` = `T(n, 0)`.
#[inline(always)]
unsafe fn sector<V: Vector, const DECRYPT: bool>(
    keys: &RoundKeys,
    tweak: &RoundKey,
    from: *const u8,
    to: *mut u8,
) {
    let group_bytes = GROUP * V::BLOCKS * 16;
    // SAFETY: the caller's promises: the processor, and a sector at each pointer.
    unsafe {
        if DECRYPT && is_zero(from) {
            to.write_bytes(0, SECTOR_BYTES);
            return;
        }
        let mut first = V::broadcast(tweak.as_ptr()).ascending_powers();
        for group in 0..SECTOR_BYTES / group_bytes {
            let offset = group * group_bytes;
            self::group::<V, DECRYPT>(keys, first, from.add(offset), to.add(offset));
            first = first.times_x_to((GROUP * V::BLOCKS) as u32);
        }
    }
}

/// `GROUP` vectors of one sector; `first` are the tweaks of the first vector.
#[inline(always)]
unsafe fn group<V: Vector, const DECRYPT: bool>(keys: &RoundKeys, first: V, from: *const u8, to: *mut u8) {
    let schedule = if DECRYPT { &keys.decrypt } else { &keys.encrypt };
    // SAFETY: the caller's promises: the processor, and `GROUP` vectors at each pointer.
    unsafe {
        let mut tweaks = [first; GROUP];
        let mut blocks = [first; GROUP];
        for index in 0..GROUP {
            tweaks[index] = first.times_x_to((index * V::BLOCKS) as u32);
            blocks[index] = V::load(from.add(index * V::BLOCKS * 16)).xor(tweaks[index]);
        }
        cipher::<V, GROUP, DECRYPT>(schedule, &mut blocks);
        for index in 0..GROUP {
            blocks[index].xor(tweaks[index]).store(to.add(index * V::BLOCKS * 16));
        }
    }
}

/// AES-256 over `N` vectors at once.
#[inline(always)]
unsafe fn cipher<V: Vector, const N: usize, const DECRYPT: bool>(schedule: &Schedule, blocks: &mut [V; N]) {
    // SAFETY: the caller's promise about the processor; a round key is one block.
    unsafe {
        let key = V::broadcast(schedule[0].as_ptr());
        for block in blocks.iter_mut() {
            *block = block.xor(key);
        }
        for key in &schedule[1..ROUNDS] {
            let key = V::broadcast(key.as_ptr());
            for block in blocks.iter_mut() {
                *block = if DECRYPT { block.decrypt_round(key) } else { block.encrypt_round(key) };
            }
        }
        let key = V::broadcast(schedule[ROUNDS].as_ptr());
        for block in blocks.iter_mut() {
            *block = if DECRYPT { block.decrypt_last(key) } else { block.encrypt_last(key) };
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
