//! Locked memory for keys and for anything derived from them.
//!
//! A [`Secret`] is `N` bytes, a [`Locked`] any one value (round keys, say). Each has a mapping of its own:
//!
//! ```text
//! +------------+---------------------------+------------+
//! | guard page | zeros ......... the value | guard page |
//! | PROT_NONE  | PROT_READ once it is made | PROT_NONE  |
//! +------------+---------------------------+------------+
//! ```
//!
//! What holds for the pages in the middle, each shown by a test against the running kernel:
//! - never written to swap; if they cannot be locked there is an error and no secret;
//! - absent from core dumps and from forked children;
//! - with [`Backing::SecretMemory`] also out of reach of `/proc/PID/mem`, `ptrace` and every other access
//!   through the kernel's own map of memory;
//! - not writable after the value is made; a run over either end of the pages is a fault, not a leak;
//! - overwritten with zeros before they are unmapped, whatever the way out (`Drop`, an error, a panic that
//!   unwinds). `SIGKILL` and `abort` leave it to the kernel, which clears a page before anybody gets it.
//!
//! # What is not protected
//!
//! - **Registers.** A cipher works in them; the kernel saves them on its own stacks at every switch.
//! - **Spill slots and temporaries** of code that works on an exposed value. [`Locked::new`] and
//!   [`Secret::init`] scrub the stack below themselves; whoever computes with a key elsewhere calls
//!   [`scrub_stack`] afterwards, which has limits of its own.
//! - **Kernel buffers**: a key that comes through a pipe or a socket was in kernel memory on its way.
//! - **Copies that a library makes**: of its input, in its own buffers and on its own heap.
//! - **Root and the hypervisor**: root can read locked anonymous memory, load code into the kernel, or
//!   attach to the process and make it read its own pages.
//! - **Side channels** in time, cache and speculation.
//!
//! Called by `xts` (round keys), `kms` and `control` (data keys), and the binary ([`harden_process`]). It
//! knows nothing of ciphers, volumes or files.
#![deny(unsafe_code)]

mod error;
mod locked;
mod page;
mod process;
mod secret;
mod stack;

pub use error::KeyMemError;
pub use locked::Locked;
pub use page::{Backing, backing};
pub use process::harden_process;
pub use secret::{DATA_KEY_BYTES, DataKey, Secret};
pub use stack::{SCRUBBED_STACK_BYTES, scrub_stack};
