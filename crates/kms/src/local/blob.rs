//! The wrapped data key: its bytes, and the cryptography that makes and opens it (ebs.md C.8). Knows nothing of
//! stores, states or permissions; `verbs` calls it with the backing key that the blob names.
//!
//! A wrapped key is 168 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0   | 7  | magic, ASCII `SEALKEY` |
//! | 7   | 1  | version, 1 |
//! | 8   | 16 | key id: the UUID, big-endian as RFC 9562 writes it |
//! | 24  | 32 | material id: which backing key of that key |
//! | 56  | 32 | nonce, random for every wrapping |
//! | 88  | 64 | the data key, AES-256-GCM ciphertext |
//! | 152 | 16 | GCM tag |
//!
//! Wrapping key: SP 800-108r1 in counter mode, one block of HMAC-SHA-256, so that
//! `W = HMAC(backing key, BE32(1) ‖ "sealblk kms data key" ‖ 0x00 ‖ nonce ‖ BE32(256))`.
//! `W` is used for this one message, so the GCM IV is twelve zero bytes and the 2^32 limit of random IVs is no concern.
//!
//! Associated data: bytes 0 to 87 of the blob, then the canonical encryption context:
//! `LE64(number of pairs)`, and for each pair, sorted by the bytes of its name,
//! `LE64(length) ‖ name ‖ LE64(length) ‖ value` in UTF-8.
//!
//! What is not protected: the HMAC and AES libraries compute on the stack. The expanded AES key is moved into locked
//! memory and wiped, the HMAC state and the GCM state are wiped by their own crates (feature `zeroize`), and the stack
//! below is scrubbed afterwards; registers and spills above it are not. The process that unwraps is short-lived for
//! that reason (design §4.8).

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use hmac::{Hmac, Mac};
use sealblk_keymem::{DATA_KEY_BYTES, DataKey, KeyMemError, Locked, Secret, scrub_stack};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroize;

use crate::context::EncryptionContext;
use crate::service::WrappedKey;

/// The length of every wrapped key of version 1.
pub(super) const BLOB_BYTES: usize = HEADER_BYTES + DATA_KEY_BYTES + TAG_BYTES;
const HEADER_BYTES: usize = 88;
const TAG_BYTES: usize = 16;
/// Magic and version: a later version has another last byte.
const PREFIX: &[u8; 8] = b"SEALKEY\x01";
const KDF_LABEL: &[u8] = b"sealblk kms data key";
const KDF_OUTPUT_BITS: u32 = 256;
const GCM_IV: [u8; 12] = [0; 12];

/// A key's backing key: the secret that a material id stands for.
pub(super) type BackingKey = Secret<32>;

/// Why a blob was not opened or made.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlobError {
    /// Damaged, of another context, or made under another backing key: which one is not known.
    #[error("the tag does not match")]
    Unauthentic,
    #[error(transparent)]
    KeyMemory(#[from] KeyMemError),
}

/// The readable part of a blob. Nothing in it is trusted until the tag has been checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) key_id: Uuid,
    pub(super) material_id: [u8; 32],
    pub(super) nonce: [u8; 32],
}

/// A blob taken apart.
pub(super) struct Blob<'a> {
    pub(super) header: Header,
    ciphertext: &'a [u8; DATA_KEY_BYTES],
    tag: &'a [u8; TAG_BYTES],
}

impl Header {
    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields = [&PREFIX[..], self.key_id.as_bytes(), &self.material_id, &self.nonce];
        for (byte, value) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *byte = *value;
        }
        bytes
    }

    fn associated_data(&self, context: &EncryptionContext) -> Vec<u8> {
        let mut data = self.bytes().to_vec();
        context.append_canonical(&mut data);
        data
    }
}

/// Takes a blob apart; `None` when it is not one of ours.
pub(super) fn parse(wrapped: &WrappedKey) -> Option<Blob<'_>> {
    let (prefix, rest) = wrapped.0.split_first_chunk::<8>()?;
    let (key_id, rest) = rest.split_first_chunk::<16>()?;
    let (material_id, rest) = rest.split_first_chunk::<32>()?;
    let (nonce, rest) = rest.split_first_chunk::<32>()?;
    let (ciphertext, rest) = rest.split_first_chunk::<DATA_KEY_BYTES>()?;
    let tag = <&[u8; TAG_BYTES]>::try_from(rest).ok()?;
    let header = Header { key_id: Uuid::from_bytes(*key_id), material_id: *material_id, nonce: *nonce };
    (prefix == PREFIX).then_some(Blob { header, ciphertext, tag })
}

/// The material id that a wrapped key of this store names, as DescribeKey writes it; not authenticated.
pub(crate) fn material_of(wrapped: &[u8]) -> Option<String> {
    let wrapped = WrappedKey(wrapped.to_vec());
    parse(&wrapped).map(|blob| super::hex::encode(&blob.header.material_id))
}

/// Wraps `data_key` for `context` under the backing key that `header` names.
pub(super) fn seal(
    header: &Header,
    backing: &BackingKey,
    context: &EncryptionContext,
    data_key: &DataKey,
) -> Result<WrappedKey, BlobError> {
    let cipher = wrapping_cipher(backing, &header.nonce)?;
    let associated = header.associated_data(context);
    let mut ciphertext = [0; DATA_KEY_BYTES];
    let tag = data_key.expose(|plain| {
        let buffer = InOutBuf::new(&plain[..], &mut ciphertext[..]).expect("both are 64 bytes");
        cipher.expose(|gcm| gcm.encrypt_inout_detached(&Nonce::from(GCM_IV), &associated, buffer))
    });
    scrub_stack();
    let tag = tag.expect("64 bytes are below GCM's limit");
    let mut bytes = Vec::with_capacity(BLOB_BYTES);
    bytes.extend_from_slice(&header.bytes());
    bytes.extend_from_slice(&ciphertext);
    bytes.extend_from_slice(&tag);
    Ok(WrappedKey(bytes))
}

/// Unwraps into locked memory: the ciphertext is copied there and decrypted where it lies.
pub(super) fn open(
    blob: &Blob<'_>,
    backing: &BackingKey,
    context: &EncryptionContext,
) -> Result<DataKey, BlobError> {
    let cipher = wrapping_cipher(backing, &blob.header.nonce)?;
    let associated = blob.header.associated_data(context);
    DataKey::init(|bytes| {
        bytes.copy_from_slice(blob.ciphertext);
        let (iv, tag) = (Nonce::from(GCM_IV), Tag::from(*blob.tag));
        cipher
            .expose(|gcm| gcm.decrypt_inout_detached(&iv, &associated, InOutBuf::from(&mut bytes[..]), &tag))
            .map_err(|_| BlobError::Unauthentic)
    })
}

/// The AES-256-GCM key of one wrapping, expanded inside locked memory.
fn wrapping_cipher(backing: &BackingKey, nonce: &[u8; 32]) -> Result<Locked<Aes256Gcm>, KeyMemError> {
    Locked::new(|| {
        let mut mac = backing.expose(|key| {
            <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length")
        });
        mac.update(&1u32.to_be_bytes());
        mac.update(KDF_LABEL);
        mac.update(&[0]);
        mac.update(nonce);
        mac.update(&KDF_OUTPUT_BITS.to_be_bytes());
        let mut key = mac.finalize().into_bytes();
        let cipher = Aes256Gcm::new(&key);
        key.as_mut_slice().zeroize();
        cipher
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret<const N: usize>(first: u8) -> Secret<N> {
        Secret::init(|bytes| {
            for (byte, value) in bytes.iter_mut().zip(first..) {
                *byte = value;
            }
            Ok::<(), KeyMemError>(())
        })
        .expect("locked memory")
    }

    fn header() -> Header {
        Header { key_id: Uuid::from_bytes([0x11; 16]), material_id: [0x22; 32], nonce: [0x33; 32] }
    }

    fn context() -> EncryptionContext {
        EncryptionContext::for_resource("vol-0123456789abcdef0")
    }

    fn sealed() -> WrappedKey {
        seal(&header(), &secret(0), &context(), &secret(100)).expect("sealed")
    }

    #[test]
    fn opening_undoes_sealing() {
        let wrapped = sealed();
        assert_eq!(wrapped.0.len(), BLOB_BYTES);
        let blob = parse(&wrapped).expect("our own blob");
        assert_eq!(blob.header, header());
        let opened = open(&blob, &secret(0), &context()).expect("opened");
        opened.expose(|o| secret::<64>(100).expose(|s| assert_eq!(o[..], s[..])));
    }

    /// Made with Python's hmac and cryptography modules from the table in the header: tests/blob_oracle.py.
    #[test]
    fn the_bytes_are_those_of_an_independent_implementation() {
        let expected = include_str!("../../tests/blob_oracle.hex").trim();
        assert_eq!(super::super::hex::encode(&sealed().0), expected);
    }

    #[test]
    fn a_change_of_any_byte_is_noticed() {
        let wrapped = sealed();
        for position in 0..BLOB_BYTES {
            let mut bytes = wrapped.0.clone();
            bytes[position] ^= 1;
            let changed = WrappedKey(bytes);
            let opened = parse(&changed).map(|blob| open(&blob, &secret(0), &context()));
            assert!(matches!(opened, None | Some(Err(BlobError::Unauthentic))), "byte {position}");
        }
    }

    #[test]
    fn another_length_is_not_a_blob() {
        for length in (0..BLOB_BYTES).chain([BLOB_BYTES + 1, 6144]) {
            let mut bytes = sealed().0;
            bytes.resize(length, 0);
            assert!(parse(&WrappedKey(bytes)).is_none(), "{length} bytes");
        }
    }

    #[test]
    fn another_context_or_backing_key_does_not_open_it() {
        let wrapped = sealed();
        let blob = parse(&wrapped).expect("our own blob");
        let other = EncryptionContext::for_resource("vol-0123456789abcdef1");
        assert!(matches!(open(&blob, &secret(0), &other), Err(BlobError::Unauthentic)));
        assert!(matches!(open(&blob, &secret(1), &context()), Err(BlobError::Unauthentic)));
    }
}
