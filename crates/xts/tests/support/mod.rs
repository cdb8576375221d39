//! What the cipher's tests share: keys, ciphers for every kernel of this machine, and the oracle.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use aes::Aes256;
use aes::cipher::KeyInit;
use sealblk_keymem::{DataKey, KeyMemError};
use sealblk_xts::{Kernel, SECTOR_BYTES, SectorCipher};
use xts_mode::{Xts128, get_tweak_default};

/// A data key with the given bytes.
pub(crate) fn data_key(bytes: [u8; 64]) -> DataKey {
    DataKey::init::<KeyMemError>(|key| {
        *key = bytes;
        Ok(())
    })
    .expect("locked memory")
}

/// A key with no structure, for tests that are not about keys.
pub(crate) fn some_key() -> [u8; 64] {
    std::array::from_fn(|index| (index as u8).wrapping_mul(167).wrapping_add(13))
}

/// One cipher for each kernel of this machine.
pub(crate) fn ciphers(key: [u8; 64]) -> Vec<SectorCipher> {
    let key = data_key(key);
    Kernel::available()
        .map(|kernel| SectorCipher::with_kernel(&key, kernel).expect("an available kernel"))
        .collect()
}

/// `len` bytes that look random and are the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The independent implementation: the `xts-mode` crate over single blocks of the `aes` crate.
pub(crate) struct Oracle(Xts128<Aes256>);

impl Oracle {
    pub(crate) fn new(key: &[u8; 64]) -> Self {
        let cipher = |half: &[u8]| Aes256::new_from_slice(half).expect("32 bytes");
        Self(Xts128::new(cipher(&key[..32]), cipher(&key[32..])))
    }

    pub(crate) fn encrypt(&self, first_sector: u64, plaintext: &[u8]) -> Vec<u8> {
        let mut sectors = plaintext.to_vec();
        self.0.encrypt_area(&mut sectors, SECTOR_BYTES, first_sector.into(), get_tweak_default);
        sectors
    }

    pub(crate) fn decrypt(&self, first_sector: u64, ciphertext: &[u8]) -> Vec<u8> {
        let mut sectors = ciphertext.to_vec();
        self.0.decrypt_area(&mut sectors, SECTOR_BYTES, first_sector.into(), get_tweak_default);
        sectors
    }
}
