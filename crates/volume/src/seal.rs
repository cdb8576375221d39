//! The seal of an encrypted volume's record: proof, under the data key, that this is the key and that
//! nobody changed what the volume's bytes mean (design §4.7, docs/FORMAT.md).
//!
//! It does not cover the wrapped key: the KMS authenticates that, and re-wrapping needs no plaintext. Keys
//! derived here live in locked memory, and what computes with them runs where the stack is scrubbed.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sealblk_keymem::{DATA_KEY_BYTES, DataKey, KeyMemError, Locked};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::id::VolumeId;
use crate::size::VolumeSize;

/// First field of what the MAC covers: which kind of statement this is.
const DOMAIN: &[u8] = b"sealblk-volume-seal";
/// Version of the meaning of a volume's bytes and of this seal; not the record's, which may gain fields
/// without a data key at hand.
const LAYOUT_VERSION: u32 = 1;
/// The one cipher of layout version 1.
const CIPHER: &[u8] = b"aes-256-xts";
/// HKDF info of the key check value.
const KEY_CHECK_INFO: &[u8] = b"sealblk volume v1 key check";
/// HKDF info of the MAC key.
const MAC_INFO: &[u8] = b"sealblk volume v1 record mac";

/// Bytes of a tag and of a derived key.
const TAG_BYTES: usize = 32;

/// A key check value and a MAC. Both are public: they tell nothing of the key to whom does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Seal {
    /// Equal for equal data keys.
    key_check: KeyCheck,
    /// Over the sealed fields.
    mac: Tag,
}

/// What a data key derives to, for comparing with what another one does: equal for equal keys, and public. In JSON
/// base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyCheck(Tag);

impl KeyCheck {
    /// What `key` derives to.
    pub fn of(key: &DataKey) -> Result<Self, KeyMemError> {
        let derived = Locked::new(|| key.expose(|key| expand(key, KEY_CHECK_INFO)))?;
        Ok(Self(Tag(derived.expose(|tag| *tag))))
    }

    /// Whether `key` is the one; in constant time.
    pub fn verify(&self, key: &DataKey) -> Result<(), SealError> {
        self.expect(&Self::of(key)?)
    }

    fn expect(&self, found: &Self) -> Result<(), SealError> {
        if bool::from(self.0.0.ct_eq(&found.0.0)) { Ok(()) } else { Err(SealError::WrongKey) }
    }
}

/// 32 public bytes; in JSON base64.
#[derive(Clone, PartialEq, Eq)]
struct Tag([u8; TAG_BYTES]);

/// Why a seal does not hold.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The record was sealed under another data key. Nothing is said of the other fields.
    #[error("the unwrapped data key is not this volume's (key check value differs)")]
    WrongKey,
    /// The key is right, and a sealed field is not what it was.
    #[error(
        "the volume's record was changed after it was sealed: one of VolumeId, SizeBytes, Cipher, \
         DataUnitBytes, TweakOrigin, Discard, Lineage is not what it was (MAC differs)"
    )]
    Tampered,
    /// The record is sealed: to change it takes the volume's key.
    #[error("the volume's record is sealed, and its key is not at hand")]
    KeyNeeded,
    /// No locked memory for the derived keys.
    #[error("the seal could not be computed")]
    KeyMemory(#[from] KeyMemError),
}

/// The fields that decide what a volume's bytes mean.
pub(crate) struct SealedFields {
    pub(crate) volume_id: VolumeId,
    pub(crate) size: VolumeSize,
    pub(crate) data_unit_bytes: u32,
    pub(crate) tweak_origin: u64,
    pub(crate) discard: bool,
    pub(crate) lineage: VolumeId,
}

impl SealedFields {
    /// The MAC's input. Each field stands behind its length, so that no two records have one encoding.
    fn encode(&self) -> Vec<u8> {
        let volume_id = self.volume_id.to_string();
        let lineage = self.lineage.to_string();
        let fields: [&[u8]; 9] = [
            DOMAIN,
            &LAYOUT_VERSION.to_le_bytes(),
            volume_id.as_bytes(),
            &self.size.bytes().to_le_bytes(),
            CIPHER,
            &self.data_unit_bytes.to_le_bytes(),
            &self.tweak_origin.to_le_bytes(),
            &[u8::from(self.discard)],
            lineage.as_bytes(),
        ];
        let mut encoded = Vec::new();
        for field in fields {
            let length = u32::try_from(field.len()).expect("every field is a few bytes");
            encoded.extend_from_slice(&length.to_le_bytes());
            encoded.extend_from_slice(field);
        }
        encoded
    }
}

/// What it takes to seal a volume's record again when it grows: a key derived from its data key, in locked memory. It
/// neither decrypts anything nor leads back to the data key.
pub struct Sealer {
    key_check: KeyCheck,
    mac_key: Locked<[u8; TAG_BYTES]>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("key_check", &self.key_check).finish_non_exhaustive()
    }
}

impl Sealer {
    /// The one of the volume whose data key is `key`.
    pub fn new(key: &DataKey) -> Result<Self, KeyMemError> {
        let key_check = KeyCheck::of(key)?;
        Ok(Self { key_check, mac_key: Locked::new(|| key.expose(|key| expand(key, MAC_INFO)))? })
    }

    pub(crate) fn seal(&self, fields: &SealedFields) -> Result<Seal, KeyMemError> {
        let encoded = fields.encode();
        let mac = Locked::new(|| self.mac_key.expose(|mac_key| authenticate(mac_key, &encoded)))?;
        Ok(Seal { key_check: self.key_check.clone(), mac: Tag(mac.expose(|tag| *tag)) })
    }

    /// Checks the key first, then the fields, each in constant time.
    pub(crate) fn verify(&self, seal: &Seal, fields: &SealedFields) -> Result<(), SealError> {
        let expected = self.seal(fields)?;
        seal.key_check.expect(&expected.key_check)?;
        if !bool::from(seal.mac.0.ct_eq(&expected.mac.0)) {
            return Err(SealError::Tampered);
        }
        Ok(())
    }
}

impl Seal {
    /// Seals `fields` under the volume's data key.
    pub(crate) fn new(key: &DataKey, fields: &SealedFields) -> Result<Self, KeyMemError> {
        Sealer::new(key)?.seal(fields)
    }

    /// What the data key derives to.
    pub fn key_check(&self) -> &KeyCheck {
        &self.key_check
    }

    /// As [`Sealer::verify`].
    pub(crate) fn verify(&self, key: &DataKey, fields: &SealedFields) -> Result<(), SealError> {
        Sealer::new(key)?.verify(self, fields)
    }
}

/// HKDF-SHA-256 (RFC 5869) without salt: the data key is uniform already.
fn expand(key: &[u8; DATA_KEY_BYTES], info: &[u8]) -> [u8; TAG_BYTES] {
    let mut derived = [0; TAG_BYTES];
    Hkdf::<Sha256>::new(None, key).expand(info, &mut derived).expect("HKDF-SHA-256 gives up to 8160 bytes");
    derived
}

/// HMAC-SHA-256 (RFC 2104).
fn authenticate(key: &[u8; TAG_BYTES], message: &[u8]) -> [u8; TAG_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl Serialize for Tag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| D::Error::custom("a seal's tag is 32 bytes in base64"))
    }
}
