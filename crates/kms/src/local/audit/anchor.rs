//! The anchor: the log's end, kept apart from the log, and sealed.
//!
//! The seal is `HMAC-SHA-256(K, "sealblk audit seal" ‖ LE64(sequence) ‖ hash)` with `K = HMAC-SHA-256(root key,
//! "sealblk kms audit seal key")`. It is renewed by every call that has the root key at hand: every call while that is in
//! a key file or under a credential, and under a passphrase those that use a key.

use std::io;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sealblk_keymem::{KeyMemError, Secret, scrub_stack};
use sealblk_record::{Document, RecordError, RecordFile};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroize;

use super::super::hex;
use super::super::root_key::RootKey;
use super::record::Link;

const KEY_LABEL: &[u8] = b"sealblk kms audit seal key";
const SEAL_LABEL: &[u8] = b"sealblk audit seal";

/// The record `audit.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Anchor {
    /// When the log was begun: before its first call did anything.
    since: Timestamp,
    last_sequence: u64,
    last_hash: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    seal: Option<Seal>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Seal {
    sequence: u64,
    hash: String,
    mac: String,
}

impl Document for Anchor {
    const FORMAT: &'static str = "sealblk-kms-audit-anchor";
    const VERSION: u32 = 1;
}

/// What is found in the anchor's place.
pub(super) enum Found {
    Absent,
    /// Not a record, or one with members that mean nothing.
    Damaged,
    Whole(Anchor),
}

impl Anchor {
    pub(super) fn load(dir: &Path) -> io::Result<Found> {
        match file(dir).load() {
            Ok(anchor) if hex::decode_32(&anchor.last_hash).is_some() => Ok(Found::Whole(anchor)),
            Ok(_) => Ok(Found::Damaged),
            Err(RecordError::Missing { .. }) => Ok(Found::Absent),
            Err(error @ RecordError::Io { .. }) => Err(io::Error::other(error)),
            Err(_) => Ok(Found::Damaged),
        }
    }

    /// The anchor of a chain that ends with `last`, sealed if there is a root key; else with the seal it had.
    pub(super) fn at(last: Link, before: Option<&Self>, root: Option<&RootKey>) -> io::Result<Self> {
        let seal = match root {
            Some(root) => Some(Seal {
                sequence: last.sequence,
                hash: hex::encode(&last.hash),
                mac: hex::encode(&mac(root, last)?),
            }),
            None => before.and_then(|anchor| anchor.seal.clone()),
        };
        let since = before.map_or_else(Timestamp::now, |anchor| anchor.since);
        Ok(Self { since, last_sequence: last.sequence, last_hash: hex::encode(&last.hash), seal })
    }

    /// When the log was begun.
    pub(super) fn since(&self) -> Timestamp {
        self.since
    }

    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        file(dir).store(self).map_err(io::Error::other)
    }

    /// The end of the log.
    pub(super) fn last(&self) -> Link {
        let hash = hex::decode_32(&self.last_hash).unwrap_or_default();
        Link { sequence: self.last_sequence, hash }
    }

    /// The record that the seal is about; `None`: there is no seal.
    pub(super) fn sealed(&self) -> Option<Link> {
        let seal = self.seal.as_ref()?;
        Some(Link { sequence: seal.sequence, hash: hex::decode_32(&seal.hash).unwrap_or_default() })
    }

    /// Whether the seal was made with this root key.
    pub(super) fn seal_is_ours(&self, root: &RootKey) -> io::Result<bool> {
        let (Some(link), Some(seal)) = (self.sealed(), &self.seal) else { return Ok(false) };
        Ok(hex::decode_32(&seal.mac) == Some(mac(root, link)?))
    }
}

fn file(dir: &Path) -> RecordFile<Anchor> {
    RecordFile::new(dir.join("audit.json"))
}

/// Compared with what is in a file that whoever could measure the time can read: no secret to keep in constant time.
fn mac(root: &RootKey, link: Link) -> io::Result<[u8; 32]> {
    let key = Secret::<32>::init(|key| {
        let mut made = root.expose(|root| keyed(root).chain_update(KEY_LABEL).finalize().into_bytes());
        key.copy_from_slice(&made);
        made.as_mut_slice().zeroize();
        Ok::<(), KeyMemError>(())
    });
    let key = key.map_err(io::Error::other)?;
    let mac = key.expose(|key| {
        let hashed = keyed(key).chain_update(SEAL_LABEL).chain_update(link.sequence.to_le_bytes());
        hashed.chain_update(link.hash).finalize().into_bytes()
    });
    scrub_stack();
    Ok(mac.into())
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length")
}
