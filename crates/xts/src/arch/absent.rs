//! The vector kernels of an architecture that has none here: there is no such cipher, by type.
//!
//! `portable` then is the only kernel; on ARM it uses the AES instructions through the `aes` crate.

use crate::cipher::{Direction, HALF_BYTES};
use crate::sectors::Sectors;
use crate::{CipherError, Kernel};

/// Has no values.
pub(crate) enum VectorCipher {}

impl VectorCipher {
    pub(crate) fn new(
        kernel: Kernel,
        _data: &[u8; HALF_BYTES],
        _tweak: &[u8; HALF_BYTES],
    ) -> Result<Self, CipherError> {
        Err(CipherError::KernelUnavailable { kernel })
    }

    pub(crate) fn kernel(&self) -> Kernel {
        match *self {}
    }

    pub(crate) fn run(&self, _direction: Direction, _first_tweak: u128, _sectors: Sectors<'_>) {
        match *self {}
    }
}

pub(crate) fn is_available(_kernel: Kernel) -> bool {
    false
}
