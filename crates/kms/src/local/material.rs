//! Backing keys: the material behind a KMS key, as its record holds it, wrapped under the root key.
//!
//! The wrapped form is 60 bytes, base64 in the record: 12 random bytes of IV, 32 of ciphertext, 16 of tag, by
//! AES-256-GCM under the root key. Associated data: `"sealblk kms material" ‖ key id (16) ‖ material id (32)`, so
//! that material moved to another record, or under another id, does not open.

use std::io;

use crate::data_key::DataKeyError;
use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealblk_keymem::{KeyMemError, Locked, scrub_stack};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::blob::BackingKey;
use super::hex;
use super::root_key::RootKey;
use super::rotation::RotationType;

const LABEL: &[u8] = b"sealblk kms material";

/// One backing key in a key's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Material {
    /// 64 hex digits, random.
    pub(super) key_material_id: String,
    /// Seconds since the epoch.
    pub(super) creation_date: f64,
    /// The wrapped form, base64.
    pub(super) wrapped_material: String,
    /// What made it; absent for a key's first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) rotation_type: Option<RotationType>,
}

/// Why a backing key could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum MaterialError {
    /// The record is damaged or belongs to another root key.
    #[error(
        "the key's material does not open under the root key: the record is damaged or the root key is another"
    )]
    Unauthentic,
    #[error("no random bytes")]
    Random(#[source] io::Error),
    #[error(transparent)]
    KeyMemory(#[from] KeyMemError),
    #[error(transparent)]
    DataKey(#[from] DataKeyError),
}

impl Material {
    /// A new random backing key for `key`, wrapped under `root`.
    pub(super) fn generate(root: &RootKey, key: Uuid, creation_date: f64) -> Result<Self, MaterialError> {
        let (mut id, mut iv) = ([0; 32], [0; 12]);
        random(&mut id)?;
        random(&mut iv)?;
        let backing = BackingKey::init(|bytes| random(bytes))?;
        let cipher = expand(root)?;
        let mut ciphertext = [0; 32];
        let tag = backing.expose(|plain| {
            let buffer = InOutBuf::new(&plain[..], &mut ciphertext[..]).expect("both are 32 bytes");
            cipher.expose(|gcm| {
                gcm.encrypt_inout_detached(&Nonce::from(iv), &associated_data(key, &id), buffer)
            })
        });
        scrub_stack();
        let tag = tag.expect("32 bytes are below GCM's limit");
        let wrapped: Vec<u8> = [&iv[..], &ciphertext, &tag].concat();
        Ok(Self {
            key_material_id: hex::encode(&id),
            creation_date,
            wrapped_material: STANDARD.encode(wrapped),
            rotation_type: None,
        })
    }

    /// The backing key, in locked memory.
    pub(super) fn open(&self, root: &RootKey, key: Uuid) -> Result<BackingKey, MaterialError> {
        let id = self.id().ok_or(MaterialError::Unauthentic)?;
        let wrapped = STANDARD.decode(&self.wrapped_material).map_err(|_| MaterialError::Unauthentic)?;
        let (iv, ciphertext, tag) = split(&wrapped).ok_or(MaterialError::Unauthentic)?;
        let cipher = expand(root)?;
        BackingKey::init(|bytes| {
            bytes.copy_from_slice(ciphertext);
            let buffer = InOutBuf::from(&mut bytes[..]);
            let aad = associated_data(key, &id);
            cipher
                .expose(|gcm| gcm.decrypt_inout_detached(&Nonce::from(*iv), &aad, buffer, &Tag::from(*tag)))
                .map_err(|_| MaterialError::Unauthentic)
        })
    }

    /// The material id's bytes; `None` if the record does not hold 64 hex digits.
    pub(super) fn id(&self) -> Option<[u8; 32]> {
        hex::decode_32(&self.key_material_id)
    }
}

fn split(wrapped: &[u8]) -> Option<(&[u8; 12], &[u8; 32], &[u8; 16])> {
    let (iv, rest) = wrapped.split_first_chunk()?;
    let (ciphertext, rest) = rest.split_first_chunk()?;
    Some((iv, ciphertext, rest.try_into().ok()?))
}

fn associated_data(key: Uuid, material_id: &[u8; 32]) -> Vec<u8> {
    [LABEL, key.as_bytes(), material_id].concat()
}

fn expand(root: &RootKey) -> Result<Locked<Aes256Gcm>, KeyMemError> {
    Locked::new(|| root.expose(|key| Aes256Gcm::new(key.into())))
}

fn random(bytes: &mut [u8]) -> Result<(), MaterialError> {
    getrandom::fill(bytes).map_err(|error| MaterialError::Random(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> RootKey {
        RootKey::init(|bytes| random(bytes)).expect("random bytes in locked memory")
    }

    #[test]
    fn material_opens_only_where_it_belongs() {
        let (root, key) = (root(), Uuid::new_v4());
        let material = Material::generate(&root, key, 0.0).expect("generated");
        material.open(&root, key).expect("opens under its own key id");
        let elsewhere = material.open(&root, Uuid::new_v4());
        assert!(matches!(elsewhere, Err(MaterialError::Unauthentic)), "another key's record");
        let renamed = Material { key_material_id: "0".repeat(64), ..material.clone() };
        assert!(matches!(renamed.open(&root, key), Err(MaterialError::Unauthentic)), "another material id");
        assert!(
            matches!(material.open(&self::root(), key), Err(MaterialError::Unauthentic)),
            "another root key"
        );
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        let (root, key) = (root(), Uuid::new_v4());
        let material = Material::generate(&root, key, 0.0).expect("generated");
        for damaged in ["", "!", "AAAA", &format!("{}AAAA", material.wrapped_material)] {
            let record = Material { wrapped_material: damaged.to_owned(), ..material.clone() };
            assert!(matches!(record.open(&root, key), Err(MaterialError::Unauthentic)), "{damaged}");
        }
    }
}
