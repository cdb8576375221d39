//! What stands between a volume's sectors and its device: AES-256-XTS, or nothing. A type parameter of
//! [`crate::Volume`], so that an unencrypted volume takes the same path and costs what is left of it.

use sealblk_block::Lba;
use sealblk_xts::SectorCipher;

/// A length-preserving cipher over whole 512-byte sectors.
///
/// The result depends on the key, the sector's number and its bytes only, never on how a run of sectors
/// was split into calls. Sectors whose stored bytes are all zero decrypt to zeros (design §4.3).
pub trait Cipher: Send + Sync + 'static {
    /// Whether stored bytes differ from what they mean. Where they do not, zeros on the device are
    /// written zeros, and nothing need ever be materialised.
    const ENCRYPTS: bool;

    /// Turns plaintext into what is stored, in place. `sectors` is a multiple of 512 bytes, from `first`.
    fn encrypt(&self, first: Lba, sectors: &mut [u8]);

    /// Turns what is stored into plaintext, in place. `sectors` is a multiple of 512 bytes, from `first`.
    fn decrypt(&self, first: Lba, sectors: &mut [u8]);
}

impl Cipher for SectorCipher {
    const ENCRYPTS: bool = true;

    fn encrypt(&self, first: Lba, sectors: &mut [u8]) {
        self.encrypt_in_place(first.0, sectors);
    }

    fn decrypt(&self, first: Lba, sectors: &mut [u8]) {
        self.decrypt_in_place(first.0, sectors);
    }
}

/// No cipher: of unencrypted volumes.
#[derive(Debug)]
pub struct NullCipher;

impl Cipher for NullCipher {
    const ENCRYPTS: bool = false;

    fn encrypt(&self, _first: Lba, _sectors: &mut [u8]) {}

    fn decrypt(&self, _first: Lba, _sectors: &mut [u8]) {}
}
