//! Shows that the kernels leave no round key on the stack.

use std::hint::black_box;

use super::VectorCipher;
use super::schedule::RoundKeys;
use super::vector::Block;
use crate::cipher::Direction;
use crate::sectors::Sectors;
use crate::{Kernel, SECTOR_BYTES};

/// How much of the stack is searched, and how much of it the search itself may use.
const SEARCHED: usize = 64 * 1024;
const OWN: usize = 2 * 1024;

/// Runs `work` so far down the stack that the search's own frames do not overwrite what it leaves.
#[inline(never)]
fn deep_down(work: impl FnOnce()) {
    let mut distance = [0_u8; 2 * OWN];
    black_box(&mut distance);
    work();
    black_box(&distance);
}

/// Whether the unused stack below this frame holds any of `keys`.
#[inline(never)]
fn stack_holds<'k>(keys: impl Iterator<Item = &'k Block> + Clone) -> bool {
    let here = 0_u64;
    let top = (&raw const here).addr() & !7;
    (OWN..SEARCHED).step_by(8).any(|below| {
        let place = std::ptr::with_exposed_provenance::<[u64; 2]>(top - below);
        // SAFETY: not an object of Rust's, but mapped: a test thread has 2 MiB of stack, hardly used.
        let found = unsafe { place.read_volatile() };
        keys.clone().any(|key| {
            let (words, _) = key.as_chunks::<8>();
            found[0] == u64::from_ne_bytes(words[0]) && found[1] == u64::from_ne_bytes(words[1])
        })
    })
}

/// All round keys but the two of each key that are the key itself, which this test has had in its own hands.
fn derived(keys: &RoundKeys) -> impl Iterator<Item = &Block> + Clone {
    let schedules = [&keys.encrypt[2..], &keys.decrypt[..13], &keys.tweak[2..]];
    schedules.into_iter().flatten().map(|key| &key[0])
}

#[test]
fn no_round_key_stays_on_the_stack() {
    for kernel in Kernel::available().filter(|kernel| *kernel != Kernel::Portable) {
        let cipher = VectorCipher::new(kernel, &[0x31; 32], &[0x74; 32]).expect("a kernel of this machine");
        let mut sectors = vec![0x5a; 37 * SECTOR_BYTES];
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            deep_down(|| cipher.run(direction, 5, Sectors::in_place(&mut sectors)));
            assert!(!cipher.keys.expose(|keys| stack_holds(derived(keys))), "{kernel}, {direction:?}");
        }
    }
}

#[test]
fn the_search_finds_a_key_that_is_there() {
    for kernel in Kernel::available().filter(|kernel| *kernel != Kernel::Portable) {
        let cipher = VectorCipher::new(kernel, &[0x31; 32], &[0x74; 32]).expect("a kernel of this machine");
        deep_down(|| {
            cipher.keys.expose(|keys| {
                let mut copy = keys.encrypt[7];
                black_box(&mut copy);
            });
        });
        assert!(cipher.keys.expose(|keys| stack_holds(derived(keys))));
    }
}
