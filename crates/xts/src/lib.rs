//! AES-256-XTS over whole 512-byte sectors: the cipher of an encrypted volume.
//!
//! One type does the work, [`SectorCipher`]; behind it is the fastest [`Kernel`] that the processor has.
//! It knows sectors, keys and nothing else: no files, no volumes, no requests. `volume` calls it, between a
//! guest's buffer and the storage seam.
//!
//! # The arithmetic
//!
//! XTS-AES as IEEE Std 1619 (clause 5) and NIST SP 800-38E define it, with data units of 512 bytes, which are
//! 32 blocks of 16, so that ciphertext stealing (clause 5.3.2, the case of an incomplete last block) never
//! happens. The 64-byte key is `K1 ‖ K2`: `K1` encrypts data, `K2` tweaks. For block `j` of sector `n`
//!
//! ```text
//! T(n, 0)   = AES-256(K2, n)              n: 64-bit little-endian, zero-extended to 128 bits ("plain64")
//! T(n, j)   = T(n, 0) · x^j               in GF(2^128), 0 <= j < 32
//! C(n, j)   = AES-256(K1, P(n, j) ⊕ T(n, j)) ⊕ T(n, j)
//! P(n, j)   = AES-256⁻¹(K1, C(n, j) ⊕ T(n, j)) ⊕ T(n, j)
//! ```
//!
//! An element of the field is 16 bytes read as a little-endian 128-bit number, bit `i` being the coefficient of
//! `x^i`, modulo `x^128 + x^7 + x^2 + x + 1` (clause 5.2). So multiplying by `x` is a left shift; the bit that
//! falls out at the top, worth `x^128`, comes back as `x^7 + x^2 + x + 1 = 0x87`. Multiplying by `x^j` with
//! `j < 58` at once is one shift by `j`; the `j` bits `c` that fall out come back as the carry-less product
//! `c · 0x87`, which has at most `j + 7` bits and so lies in the low half, without a second reduction:
//!
//! ```text
//! T · x^j = (T << j) ⊕ clmul(T >> (128 − j), 0x87)
//! ```
//!
//! That makes all tweaks of a sector independent of each other, which is what lets the kernels compute them in
//! vectors and in any order.
//!
//! dm-crypt calls this `aes-xts-plain64` with `sector_size:512`, and so does LUKS1: the same key opens the same
//! bytes there.
//!
//! # Unwritten sectors
//!
//! Decryption turns a sector whose 512 ciphertext bytes are all zero into 512 zero bytes (a sector nobody wrote;
//! design §4.3). A written sector has such a ciphertext with probability 2^-4096. The test is part of the
//! kernels and stops at the first 8 bytes that are not zero, so it costs a load and a branch for a written
//! sector; whether a ciphertext is zero is no secret from whoever stores it.
//!
//! # What is protected, and what is not
//!
//! The expanded keys are in [`sealblk_keymem`]'s locked pages and nowhere else, with the exceptions that
//! `arch::x86_64` and `portable` name in their headers. No kernel looks anything up in a table by secret data, or
//! branches on secret data. XTS has no authentication: a store can put back an older state of a sector, or turn
//! blocks into noise, and nothing here notices.
#![deny(unsafe_code)]

mod arch;
mod cipher;

mod kernel;
mod portable;
mod sectors;
mod tweak;

#[cfg(test)]
mod cavp;

pub use cipher::{CipherError, SectorCipher};
pub use kernel::{Kernel, UnknownKernel};
pub use sectors::SECTOR_BYTES;
