//! [`SectorCipher`]: a key, expanded once, and the kernel that uses it.

use std::fmt;

use sealblk_keymem::{DATA_KEY_BYTES, DataKey, KeyMemError, Locked};
use subtle::ConstantTimeEq;

use crate::sectors::Sectors;
use crate::{Kernel, arch, portable};

/// Bytes in one of the two AES-256 keys of a data key.
pub(crate) const HALF_BYTES: usize = DATA_KEY_BYTES / 2;

/// AES-256-XTS with 512-byte sectors under one data key.
///
/// `Send` and `Sync`: any number of threads may use one cipher at once. Not `Clone`; `Debug` shows the kernel
/// and nothing of the key. The expanded keys are in locked memory and are wiped on drop. No method allocates.
///
/// # Panics
/// The methods that encrypt and decrypt panic if a buffer is not a whole number of sectors, if source and
/// destination differ in length, or if the last sector's number does not fit in 64 bits: their caller has
/// checked the request against the volume's size.
pub struct SectorCipher {
    engine: Engine,
}

/// The expanded keys, in the form that the chosen kernel reads.
enum Engine {
    Portable(Locked<portable::Keys>),
    Vector(arch::VectorCipher),
}

/// Encrypt or decrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Encrypt,
    Decrypt,
}

impl SectorCipher {
    /// Expands `key`, which is `K1 ‖ K2` as dm-crypt has it, for the fastest kernel of this processor.
    ///
    /// # Errors
    /// The key's halves are equal, or there is no locked memory for the round keys.
    pub fn new(key: &DataKey) -> Result<Self, CipherError> {
        Self::with_kernel(key, Kernel::fastest())
    }

    /// As [`new`](Self::new) with the kernel given: for tests and measurements.
    ///
    /// # Errors
    /// As [`new`](Self::new); also that this processor does not have what `kernel` needs.
    pub fn with_kernel(key: &DataKey, kernel: Kernel) -> Result<Self, CipherError> {
        key.expose(|key| {
            let (data, tweak) = halves(key);
            if bool::from(data.ct_eq(tweak)) {
                return Err(CipherError::EqualHalves);
            }
            let engine = match kernel {
                Kernel::Portable => Engine::Portable(Locked::new(|| portable::Keys::expand(data, tweak))?),
                _ => Engine::Vector(arch::VectorCipher::new(kernel, data, tweak)?),
            };
            Ok(Self { engine })
        })
    }

    /// The kernel that this cipher runs.
    pub fn kernel(&self) -> Kernel {
        match &self.engine {
            Engine::Portable(_) => Kernel::Portable,
            Engine::Vector(vector) => vector.kernel(),
        }
    }

    /// Encrypts `sectors`, the first of which is sector `first_sector` of the volume, where they are.
    pub fn encrypt_in_place(&self, first_sector: u64, sectors: &mut [u8]) {
        self.run_checked(Direction::Encrypt, first_sector, Sectors::in_place(sectors));
    }

    /// Encrypts `plaintext`, the first sector of which is `first_sector`, into `ciphertext`.
    pub fn encrypt(&self, first_sector: u64, plaintext: &[u8], ciphertext: &mut [u8]) {
        self.run_checked(Direction::Encrypt, first_sector, Sectors::apart(plaintext, ciphertext));
    }

    /// Decrypts `sectors`, the first of which is sector `first_sector` of the volume, where they are.
    ///
    /// A sector that is all zeros stays all zeros: it is unwritten.
    pub fn decrypt_in_place(&self, first_sector: u64, sectors: &mut [u8]) {
        self.run_checked(Direction::Decrypt, first_sector, Sectors::in_place(sectors));
    }

    /// Decrypts `ciphertext`, the first sector of which is `first_sector`, into `plaintext`.
    ///
    /// A sector that is all zeros becomes all zeros: it is unwritten.
    pub fn decrypt(&self, first_sector: u64, ciphertext: &[u8], plaintext: &mut [u8]) {
        self.run_checked(Direction::Decrypt, first_sector, Sectors::apart(ciphertext, plaintext));
    }

    fn run_checked(&self, direction: Direction, first_sector: u64, sectors: Sectors<'_>) {
        let others = (sectors.count() as u64).saturating_sub(1);
        assert!(
            first_sector.checked_add(others).is_some(),
            "the last sector's number does not fit in 64 bits"
        );
        self.run(direction, u128::from(first_sector), sectors);
    }

    /// As the public methods do, with the whole 128-bit tweak value of the first sector, which NIST's vectors
    /// have. Only its low 64 bits count on from sector to sector.
    pub(crate) fn run(&self, direction: Direction, first_tweak: u128, sectors: Sectors<'_>) {
        match &self.engine {
            Engine::Portable(keys) => {
                keys.expose(|keys| portable::run(keys, direction, first_tweak, sectors))
            }
            Engine::Vector(vector) => vector.run(direction, first_tweak, sectors),
        }
    }
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorCipher").field("kernel", &self.kernel()).finish_non_exhaustive()
    }
}

/// Splits a data key into the key for data and the key for tweaks.
fn halves(key: &[u8; DATA_KEY_BYTES]) -> (&[u8; HALF_BYTES], &[u8; HALF_BYTES]) {
    let (data, rest) = key.split_first_chunk().expect("a data key is two halves");
    let tweak = rest.first_chunk().expect("a data key is two halves");
    (data, tweak)
}

/// Why there is no cipher for a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CipherError {
    /// `K1 = K2`, which IEEE 1619 clause 5.1 and FIPS 140-3 IG C.I forbid: tweaks would then leak.
    #[error("the two halves of the data key are equal")]
    EqualHalves,
    /// The processor, or its operating system, lacks what the kernel needs.
    #[error("this processor cannot run the {kernel} cipher kernel")]
    KernelUnavailable {
        /// The kernel that was asked for.
        kernel: Kernel,
    },
    /// There is no locked memory for the round keys.
    #[error("no locked memory for the cipher's round keys")]
    KeyMemory(#[from] KeyMemError),
}
