//! The wrapped form of a root key: the record, the key that wraps it, and where that key comes from.
//!
//! `WrappedRootKey` is 60 bytes in base64: IV 12 ‖ ciphertext 32 ‖ tag 16, AES-256-GCM under the wrapping key.
//! Associated data: `"sealblk kms root key" ‖ method (1 byte) ‖ salt (32) ‖ parameters`, where a passphrase is method 1
//! with parameters `BE32(memory in KiB) ‖ BE32(passes) ‖ BE32(lanes)`, a credential method 2 with its name.
//!
//! Wrapping key of a passphrase: Argon2id (RFC 9106, version 1.3) with the stored salt and parameters, 32 bytes. Of a
//! credential: `HMAC-SHA-256(salt, credential)`, HKDF's extract step.
//!
//! What is not protected: Argon2id works in ordinary memory (64 MiB), wiped before it is given back; the hash state of
//! the libraries is on the stack, which is scrubbed. Both belong to a process that ends soon.

use std::fs::File;
use std::io;
use std::path::Path;

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use rustix::io::Errno;
use sealblk_keymem::{KeyMemError, Locked, Secret, scrub_stack};
use sealblk_record::Document;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroize;

use super::{ROOT_KEY_BYTES, RootKey, RootKeyError};
use crate::passphrase::Passphrase;

pub(super) const SALT_BYTES: usize = 32;
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const LABEL: &[u8] = b"sealblk kms root key";
const CREDENTIAL_BYTES_MIN: usize = 32;
const CREDENTIAL_BYTES_MAX: usize = 4096;

/// The cost of Argon2id, stored beside the salt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ArgonParameters {
    /// Memory, in KiB.
    #[serde(rename = "MemoryKiB")]
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl ArgonParameters {
    /// RFC 9106, section 4, second recommended option: 64 MiB, 3 passes, 4 lanes.
    pub const DEFAULT: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 };

    /// Whether a release of ours could have chosen them; others would cost unbounded memory and time.
    fn are_sane(self) -> bool {
        (8 * 1024..=1024 * 1024).contains(&self.memory_kib)
            && (1..=32).contains(&self.passes)
            && (1..=16).contains(&self.lanes)
    }
}

/// How a root key is protected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "Method", rename_all_fields = "PascalCase")]
pub enum RootKeyProtection {
    /// By the permissions of the file that holds it.
    #[serde(rename = "file")]
    KeyFile,
    /// By a passphrase.
    #[serde(rename = "passphrase")]
    Passphrase(ArgonParameters),
    /// By a credential of the service manager.
    #[serde(rename = "credential")]
    Credential {
        /// Its name.
        #[serde(rename = "Credential")]
        name: String,
    },
}

/// The record `root.key` of a root key that is wrapped.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct WrappedRootKey {
    protection: RootKeyProtection,
    salt: String,
    wrapped_root_key: String,
}

impl Document for WrappedRootKey {
    const FORMAT: &'static str = "sealblk-kms-root-key";
    const VERSION: u32 = 1;
}

impl WrappedRootKey {
    /// Wraps `root` under `key`, which comes from what `protection` and `salt` say.
    pub(super) fn seal(
        root: &RootKey,
        key: &WrappingKey,
        protection: RootKeyProtection,
        salt: &[u8; SALT_BYTES],
    ) -> Result<Self, RootKeyError> {
        let cipher = key.expand()?;
        // The wrapping key is used for this one message: its salt is new.
        let iv = [0; IV_BYTES];
        let mut ciphertext = [0; ROOT_KEY_BYTES];
        let tag = root.expose(|plain| {
            let buffer = InOutBuf::new(&plain[..], &mut ciphertext[..]).expect("both are 32 bytes");
            let aad = associated_data(&protection, salt);
            cipher.expose(|gcm| gcm.encrypt_inout_detached(&Nonce::from(iv), &aad, buffer))
        });
        scrub_stack();
        let tag = tag.expect("32 bytes are below GCM's limit");
        Ok(Self {
            protection,
            salt: STANDARD.encode(salt),
            wrapped_root_key: STANDARD.encode([&iv[..], &ciphertext, &tag].concat()),
        })
    }

    /// The root key; `None`: not under this key, or damaged.
    pub(super) fn open(&self, key: &WrappingKey, path: &Path) -> Result<Option<RootKey>, RootKeyError> {
        let malformed = || RootKeyError::Parameters { path: path.to_owned(), what: "the wrapped root key" };
        let bytes = STANDARD.decode(&self.wrapped_root_key).map_err(|_| malformed())?;
        let (iv, rest) = bytes.split_first_chunk::<IV_BYTES>().ok_or_else(malformed)?;
        let (ciphertext, tag) = rest.split_first_chunk::<ROOT_KEY_BYTES>().ok_or_else(malformed)?;
        let tag = <[u8; TAG_BYTES]>::try_from(tag).map_err(|_| malformed())?;
        let aad = associated_data(&self.protection, &self.salt(path)?);
        let cipher = key.expand()?;
        let opened = RootKey::init(|plain| {
            plain.copy_from_slice(ciphertext);
            let buffer = InOutBuf::from(&mut plain[..]);
            cipher
                .expose(|gcm| gcm.decrypt_inout_detached(&Nonce::from(*iv), &aad, buffer, &Tag::from(tag)))
                .map_err(|_| NotOpened::Unauthentic)
        });
        match opened {
            Ok(root) => Ok(Some(root)),
            Err(NotOpened::Unauthentic) => Ok(None),
            Err(NotOpened::KeyMemory(error)) => Err(error.into()),
        }
    }

    /// How it is wrapped, with parameters that are safe to use.
    pub(super) fn protection(&self, path: &Path) -> Result<RootKeyProtection, RootKeyError> {
        let bad = |what| Err(RootKeyError::Parameters { path: path.to_owned(), what });
        match &self.protection {
            RootKeyProtection::KeyFile => bad("a record that says it is a key file"),
            RootKeyProtection::Passphrase(cost) if !cost.are_sane() => bad("the cost of Argon2id"),
            RootKeyProtection::Credential { name } if !is_credential_name(name) => {
                bad("the credential's name")
            }
            sane => Ok(sane.clone()),
        }
    }

    pub(super) fn salt(&self, path: &Path) -> Result<[u8; SALT_BYTES], RootKeyError> {
        let malformed = || RootKeyError::Parameters { path: path.to_owned(), what: "the salt" };
        let salt = STANDARD.decode(&self.salt).map_err(|_| malformed())?;
        salt.try_into().map_err(|_| malformed())
    }
}

/// Why a root key did not come out of its wrapping.
enum NotOpened {
    Unauthentic,
    KeyMemory(KeyMemError),
}

impl From<KeyMemError> for NotOpened {
    fn from(error: KeyMemError) -> Self {
        Self::KeyMemory(error)
    }
}

/// The key that wraps a root key.
pub(super) struct WrappingKey(pub(super) Secret<32>);

impl WrappingKey {
    /// The key that Argon2id makes of a passphrase.
    pub(super) fn of_passphrase(
        passphrase: &Passphrase,
        cost: ArgonParameters,
        salt: &[u8; SALT_BYTES],
    ) -> Result<Self, RootKeyError> {
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32));
        let params = params.map_err(|_| RootKeyError::Memory)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(params.block_count()).map_err(|_| RootKeyError::Memory)?;
        memory.resize(params.block_count(), Block::new());
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let key = Secret::init(|key: &mut [u8; 32]| {
            let hashed = passphrase
                .expose(|text| argon.hash_password_into_with_memory(text, salt, key, &mut memory[..]));
            hashed.map_err(|_| RootKeyError::Memory)
        });
        memory.iter_mut().for_each(Zeroize::zeroize);
        Ok(Self(key?))
    }

    /// The key that a credential's file stands for.
    pub(super) fn of_credential(path: &Path, salt: &[u8; SALT_BYTES]) -> Result<Self, RootKeyError> {
        let mut length = 0;
        let content = Secret::<{ CREDENTIAL_BYTES_MAX + 1 }>::init(|bytes| {
            length = read_whole(path, bytes)
                .map_err(|source| RootKeyError::Credential { path: path.to_owned(), source })?;
            if (CREDENTIAL_BYTES_MIN..=CREDENTIAL_BYTES_MAX).contains(&length) {
                Ok(())
            } else {
                Err(RootKeyError::CredentialLength { path: path.to_owned(), length })
            }
        })?;
        let key = Secret::init(|key: &mut [u8; 32]| {
            let mut mac =
                <Hmac<Sha256> as KeyInit>::new_from_slice(salt).expect("HMAC takes a key of any length");
            content.expose(|bytes| mac.update(bytes.get(..length).unwrap_or_default()));
            let mut made = mac.finalize().into_bytes();
            key.copy_from_slice(&made);
            made.as_mut_slice().zeroize();
            Ok::<(), KeyMemError>(())
        })?;
        Ok(Self(key))
    }

    fn expand(&self) -> Result<Locked<Aes256Gcm>, KeyMemError> {
        Locked::new(|| self.0.expose(|key| Aes256Gcm::new(key.into())))
    }
}

/// Whether it is a file's name in a directory, and nothing else.
pub(super) fn is_credential_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len()) && name.bytes().all(plain) && ![".", ".."].contains(&name)
}

/// Reads a file into locked memory without a copy anywhere else; the number of bytes.
fn read_whole(path: &Path, mut into: &mut [u8]) -> io::Result<usize> {
    let file = File::open(path)?;
    let mut length = 0;
    while !into.is_empty() {
        match rustix::io::read(&file, &mut *into) {
            Ok(0) => break,
            Ok(count) => {
                length += count;
                into = into.get_mut(count..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(length)
}

fn associated_data(protection: &RootKeyProtection, salt: &[u8; SALT_BYTES]) -> Vec<u8> {
    let mut data = LABEL.to_vec();
    match protection {
        RootKeyProtection::KeyFile => data.push(0),
        RootKeyProtection::Passphrase(cost) => {
            data.push(1);
            data.extend_from_slice(salt);
            for number in [cost.memory_kib, cost.passes, cost.lanes] {
                data.extend_from_slice(&number.to_be_bytes());
            }
        }
        RootKeyProtection::Credential { name } => {
            data.push(2);
            data.extend_from_slice(salt);
            data.extend_from_slice(name.as_bytes());
        }
    }
    data
}
