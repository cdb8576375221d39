//! Overwriting the stack that code working on a secret has just used.

use std::hint::black_box;

use zeroize::Zeroize;

/// How much of the stack [`scrub_stack`] overwrites, in bytes.
///
/// The AES key schedules and KMS parsers called on secrets use a few hundred bytes to a few KiB; threads have
/// 2 MiB by default.
pub const SCRUBBED_STACK_BYTES: usize = 32 * 1024;

/// Overwrites the [`SCRUBBED_STACK_BYTES`] of stack below the caller's frame with zeros.
///
/// Call it from the function that called the one to clean up after, and only if that one was not inlined
/// (`#[inline(never)]`): its frame then began where this one's begins, so its locals, temporaries and spilled
/// registers, and those of all it called, are overwritten as far as the size reaches.
///
/// Not covered: the caller's own frame and those above it, deeper stack, the stacks of other threads, signal
/// stacks, registers, and the heap.
#[inline(never)]
pub fn scrub_stack() {
    // Words, not bytes: `zeroize` writes element by element.
    let mut area = [0u64; SCRUBBED_STACK_BYTES / size_of::<u64>()];
    // The array has to exist on the stack: the optimizer must believe that somebody looks at it.
    black_box(&mut area);
    area.zeroize();
    black_box(&area);
}

/// Runs `work` in a stack frame of its own, so that a [`scrub_stack`] by the same caller covers it.
#[inline(never)]
pub(crate) fn in_own_frame<R>(work: impl FnOnce() -> R) -> R {
    work()
}
