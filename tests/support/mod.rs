//! What the end-to-end tests stand on: a pool of their own, attachments that are ready when they say so and gone
//! when the test is, foreign programs, and a client that is not ours. Everything waits for a signal, never for a
//! while, and gives up with the other side's output when the signal does not come.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test file uses its own part of it")]

mod attachment;
mod certificates;
mod client;
pub mod hanging;
mod key;
mod killing;
mod loop_device;
mod memory;
mod nbdkit;
mod pool;
mod process;
mod repository;
pub mod restoring;
pub mod services;
pub mod snapshots;

pub use attachment::Attachment;
pub use certificates::certificates;
pub use client::Client;
pub use key::{data_key, data_key_hex, grants, key_store};
pub use killing::{STEPS, killed_at, killed_at_path};
pub use loop_device::LoopDevice;
pub use memory::{in_memory, readable_memory};
pub use nbdkit::Nbdkit;
pub use pool::Pool;
pub use process::{Finished, foreign, require, run, wait_within};
pub use repository::Snapshots;

/// The exit codes of the command line (design §6).
pub mod exit {
    pub const FAILED: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const NOT_FOUND: i32 = 3;
    pub const WRONG_STATE: i32 = 4;
    pub const DENIED: i32 = 5;
    pub const UNREACHABLE: i32 = 6;
}

/// Bytes in a KiB.
pub const KIB: u64 = 1024;
/// Bytes in a MiB.
pub const MIB: u64 = 1024 * KIB;

/// `len` bytes that look random, repeat nowhere and depend only on `seed` (SplitMix64 from a mixed seed).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = mix(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bytes.extend_from_slice(&mix(state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Which of `needles`, each at least two bytes long, are somewhere in `haystack`; by index, in order.
pub fn found(haystack: &[u8], needles: &[Vec<u8>]) -> Vec<usize> {
    let mut begins = vec![false; 1 << 16];
    let pair = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
    needles.iter().for_each(|needle| begins[pair(needle)] = true);
    let mut hits = vec![false; needles.len()];
    for (at, window) in haystack.windows(2).enumerate() {
        if begins[pair(window)] {
            let here = &haystack[at..];
            needles.iter().zip(&mut hits).for_each(|(needle, hit)| *hit |= here.starts_with(needle));
        }
    }
    (0..needles.len()).filter(|&index| hits[index]).collect()
}
