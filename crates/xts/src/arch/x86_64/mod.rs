//! The x86-64 kernels: one algorithm (`sectors`), written over a vector of blocks (`vector`), in three widths.
//!
//! | file | register | blocks | needs |
//! |---|---|---|---|
//! | `aes_ni` | `xmm` | 1 | AES-NI, PCLMULQDQ |
//! | `vaes_256` | `ymm` | 2 | AVX2, VAES, VPCLMULQDQ |
//! | `vaes_512` | `zmm` | 4 | AVX-512F, VAES |
//!
//! # What stays behind after a call
//!
//! Nothing of a round key (`residue` looks for it): each is loaded from locked memory into the one register that
//! the assembly in `vector` and `vaes_512` uses, so there is none that the compiler could store. At the end vector
//! registers are cleared, and the encrypted tweaks of the last batch, which are on the stack, are overwritten.
//!
//! Not covered: tweaks of the last sectors in general registers and, in the narrow kernels, whose 16 registers do
//! not hold everything, in spill slots below the caller's frame until something else uses that stack. They tell
//! neither key, but together with a sector's two texts what went into AES and what came out. And what the operating
//! system saves of registers when it interrupts a call.

mod aes_ni;
#[cfg(test)]
mod residue;
mod schedule;
mod sectors;
mod vaes_256;
mod vaes_512;
mod vector;

use sealblk_keymem::Locked;

use crate::cipher::{Direction, HALF_BYTES};
use crate::sectors::Sectors;
use crate::{CipherError, Kernel};
use schedule::RoundKeys;
use sectors::Run;

/// Expanded keys, and a kernel that this processor has.
pub(crate) struct VectorCipher {
    /// Set by [`VectorCipher::new`] alone, after [`is_available`] said yes.
    kernel: Kernel,
    keys: Locked<RoundKeys>,
}

impl VectorCipher {
    /// # Errors
    /// The processor lacks the kernel's instructions, or there is no locked memory.
    pub(crate) fn new(
        kernel: Kernel,
        data: &[u8; HALF_BYTES],
        tweak: &[u8; HALF_BYTES],
    ) -> Result<Self, CipherError> {
        if !is_available(kernel) {
            return Err(CipherError::KernelUnavailable { kernel });
        }
        // SAFETY: every kernel of this module needs AES-NI, so the processor has it.
        let keys = Locked::new(|| unsafe { RoundKeys::expand(data, tweak) })?;
        Ok(Self { kernel, keys })
    }

    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Encrypts or decrypts `sectors`, the first of which has the tweak value `first_tweak`.
    pub(crate) fn run(&self, direction: Direction, first_tweak: u128, sectors: Sectors<'_>) {
        let run = Run::over(sectors);
        // SAFETY: the processor has the kernel's instructions (`new` asked), and `run` is over slices borrowed
        // until the end of this call.
        self.keys.expose(|keys| unsafe {
            match (self.kernel, direction) {
                (Kernel::Vaes512, Direction::Encrypt) => vaes_512::encrypt(keys, first_tweak, run),
                (Kernel::Vaes512, Direction::Decrypt) => vaes_512::decrypt(keys, first_tweak, run),
                (Kernel::Vaes256, Direction::Encrypt) => vaes_256::encrypt(keys, first_tweak, run),
                (Kernel::Vaes256, Direction::Decrypt) => vaes_256::decrypt(keys, first_tweak, run),
                (Kernel::AesNi, Direction::Encrypt) => aes_ni::encrypt(keys, first_tweak, run),
                (Kernel::AesNi, Direction::Decrypt) => aes_ni::decrypt(keys, first_tweak, run),
                (Kernel::Portable, _) => unreachable!("`is_available` says no to it"),
            }
        });
    }
}

/// Whether the processor and the operating system let `kernel` run. The standard library remembers the answer.
pub(crate) fn is_available(kernel: Kernel) -> bool {
    let aes = is_x86_feature_detected!("aes");
    let vaes = aes && is_x86_feature_detected!("vaes");
    match kernel {
        Kernel::Portable => false,
        Kernel::AesNi => aes && is_x86_feature_detected!("pclmulqdq"),
        Kernel::Vaes256 => vaes && is_x86_feature_detected!("vpclmulqdq") && is_x86_feature_detected!("avx2"),
        Kernel::Vaes512 => vaes && is_x86_feature_detected!("avx512f"),
    }
}
