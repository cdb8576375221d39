//! The implementations compared, each behind the same small trait.

use std::ptr::{null, null_mut};

use aes::Aes256;
use aes::cipher::KeyInit;
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use sealblk_keymem::{DataKey, KeyMemError};
use sealblk_xts::{Kernel, SectorCipher};
use xts_mode::{Xts128, get_tweak_default};

/// One implementation with one key.
pub trait Peer {
    /// Encrypts `data`, data units of `unit` bytes, the first of which is number 0, in place.
    fn encrypt(&mut self, unit: usize, data: &mut [u8]);
    /// The inverse.
    fn decrypt(&mut self, unit: usize, data: &mut [u8]);
}

/// The key of every measurement; its value does not matter to any of them.
fn key() -> [u8; 64] {
    std::array::from_fn(|index| index as u8 + 1)
}

/// The tweak value of data unit `number`.
fn tweak_value(number: usize) -> [u8; 16] {
    (number as u128).to_le_bytes()
}

/// Sealblk's own, with one kernel.
pub struct Ours(SectorCipher);

impl Ours {
    pub fn new(kernel: Kernel) -> Self {
        let key = DataKey::init::<KeyMemError>(|bytes| {
            *bytes = key();
            Ok(())
        });
        let cipher = SectorCipher::with_kernel(&key.expect("locked memory"), kernel);
        Self(cipher.expect("a kernel of this machine"))
    }
}

impl Peer for Ours {
    fn encrypt(&mut self, unit: usize, data: &mut [u8]) {
        assert_eq!(unit, sealblk_xts::SECTOR_BYTES);
        self.0.encrypt_in_place(0, data);
    }

    fn decrypt(&mut self, unit: usize, data: &mut [u8]) {
        assert_eq!(unit, sealblk_xts::SECTOR_BYTES);
        self.0.decrypt_in_place(0, data);
    }
}

/// AWS-LC through its EVP interface: keys set once, one initialisation with the tweak value and one update
/// a data unit.
pub struct AwsLc {
    encrypt: *mut aws_lc_sys::EVP_CIPHER_CTX,
    decrypt: *mut aws_lc_sys::EVP_CIPHER_CTX,
}

impl AwsLc {
    pub fn new() -> Self {
        let key = key();
        // SAFETY: the contexts are used by this value alone, the key is as long as the cipher wants it.
        unsafe {
            let cipher = aws_lc_sys::EVP_aes_256_xts();
            let (encrypt, decrypt) = (aws_lc_sys::EVP_CIPHER_CTX_new(), aws_lc_sys::EVP_CIPHER_CTX_new());
            assert!(!encrypt.is_null() && !decrypt.is_null());
            let done = aws_lc_sys::EVP_EncryptInit_ex(encrypt, cipher, null_mut(), key.as_ptr(), null());
            assert_eq!(done, 1);
            let done = aws_lc_sys::EVP_DecryptInit_ex(decrypt, cipher, null_mut(), key.as_ptr(), null());
            assert_eq!(done, 1);
            Self { encrypt, decrypt }
        }
    }
}

impl Drop for AwsLc {
    fn drop(&mut self) {
        // SAFETY: made by `new`, used by nobody else.
        unsafe {
            aws_lc_sys::EVP_CIPHER_CTX_free(self.encrypt);
            aws_lc_sys::EVP_CIPHER_CTX_free(self.decrypt);
        }
    }
}

impl Peer for AwsLc {
    fn encrypt(&mut self, unit: usize, data: &mut [u8]) {
        for (number, data) in data.chunks_exact_mut(unit).enumerate() {
            let (iv, bytes, mut out) = (tweak_value(number), data.as_mut_ptr(), 0);
            // SAFETY: a context of this value; input and output are the same `unit` bytes.
            unsafe {
                let set =
                    aws_lc_sys::EVP_EncryptInit_ex(self.encrypt, null(), null_mut(), null(), iv.as_ptr());
                let done = aws_lc_sys::EVP_EncryptUpdate(self.encrypt, bytes, &mut out, bytes, unit as i32);
                assert!(set == 1 && done == 1);
            }
        }
    }

    fn decrypt(&mut self, unit: usize, data: &mut [u8]) {
        for (number, data) in data.chunks_exact_mut(unit).enumerate() {
            let (iv, bytes, mut out) = (tweak_value(number), data.as_mut_ptr(), 0);
            // SAFETY: a context of this value; input and output are the same `unit` bytes.
            unsafe {
                let set =
                    aws_lc_sys::EVP_DecryptInit_ex(self.decrypt, null(), null_mut(), null(), iv.as_ptr());
                let done = aws_lc_sys::EVP_DecryptUpdate(self.decrypt, bytes, &mut out, bytes, unit as i32);
                assert!(set == 1 && done == 1);
            }
        }
    }
}

/// The system's OpenSSL, used as AWS-LC is.
pub struct OpenSsl {
    encrypt: CipherCtx,
    decrypt: CipherCtx,
}

impl OpenSsl {
    pub fn new() -> Self {
        let (mut encrypt, mut decrypt) =
            (CipherCtx::new().expect("memory"), CipherCtx::new().expect("memory"));
        encrypt.encrypt_init(Some(Cipher::aes_256_xts()), Some(&key()), None).expect("a valid key");
        decrypt.decrypt_init(Some(Cipher::aes_256_xts()), Some(&key()), None).expect("a valid key");
        Self { encrypt, decrypt }
    }
}

impl Peer for OpenSsl {
    fn encrypt(&mut self, unit: usize, data: &mut [u8]) {
        for (number, data) in data.chunks_exact_mut(unit).enumerate() {
            self.encrypt.encrypt_init(None, None, Some(&tweak_value(number))).expect("a tweak value");
            self.encrypt.cipher_update_inplace(data, unit).expect("whole blocks");
        }
    }

    fn decrypt(&mut self, unit: usize, data: &mut [u8]) {
        for (number, data) in data.chunks_exact_mut(unit).enumerate() {
            self.decrypt.decrypt_init(None, None, Some(&tweak_value(number))).expect("a tweak value");
            self.decrypt.cipher_update_inplace(data, unit).expect("whole blocks");
        }
    }
}

/// The `xts-mode` crate over the `aes` crate.
pub struct XtsMode(Xts128<Aes256>);

impl XtsMode {
    pub fn new() -> Self {
        let key = key();
        let half = |bytes: &[u8]| Aes256::new_from_slice(bytes).expect("32 bytes");
        Self(Xts128::new(half(&key[..32]), half(&key[32..])))
    }
}

impl Peer for XtsMode {
    fn encrypt(&mut self, unit: usize, data: &mut [u8]) {
        self.0.encrypt_area(data, unit, 0, get_tweak_default);
    }

    fn decrypt(&mut self, unit: usize, data: &mut [u8]) {
        self.0.decrypt_area(data, unit, 0, get_tweak_default);
    }
}
