//! A line of the log and its place in the chain.
//!
//! The last members of the document are `"sequence":N,"previousHash":"…","hash":"…"`: the record's number, from 1; the
//! `hash` of the record before, 64 zeros for the first; and the SHA-256 of the line's bytes up to the comma before
//! `"hash"`. Who changes a byte of a line breaks its own hash; who mends that breaks the next line's `previousHash`.

use std::io;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::hex;
use super::event::Event;

/// A record's hash.
pub(super) type Hash = [u8; 32];
/// What the first record has for the hash of the one before.
pub(super) const GENESIS: Hash = [0; 32];
const HASH_MEMBER: &[u8] = b",\"hash\":\"";
const HASH_DIGITS: usize = 64;
const END: &[u8] = b"\"}";

/// The end of a chain: what the next record is chained to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// The last record's number; 0: there is none.
    pub(super) sequence: u64,
    /// The last record's hash.
    pub(super) hash: Hash,
}

impl Link {
    /// Before the first record.
    pub(super) const NONE: Self = Self { sequence: 0, hash: GENESIS };

    /// Appends the line of the next record to `out`, and becomes the end of the chain behind it.
    pub(super) fn append(&mut self, event: &Event, out: &mut Vec<u8>) -> io::Result<()> {
        let sequence =
            self.sequence.checked_add(1).ok_or_else(|| io::Error::other("the log is full of numbers"))?;
        let mut line = serde_json::to_vec(event)?;
        line.pop_if(|last| *last == b'}');
        let previous = hex::encode(&self.hash);
        line.extend_from_slice(
            format!(",\"sequence\":{sequence},\"previousHash\":\"{previous}\"").as_bytes(),
        );
        let hash: Hash = Sha256::digest(&line).into();
        line.extend_from_slice(HASH_MEMBER);
        line.extend_from_slice(hex::encode(&hash).as_bytes());
        line.extend_from_slice(END);
        line.push(b'\n');
        if line.len() > super::LINE_BYTES_MAX {
            return Err(io::Error::other("the record of this call would be longer than 1 MiB"));
        }
        out.extend_from_slice(&line);
        *self = Self { sequence, hash };
        Ok(())
    }
}

/// A line that is whole: its bytes are those that were hashed.
pub(super) struct ChainedRecord {
    pub(super) link: Link,
    pub(super) previous: Hash,
    pub(super) event_name: String,
    pub(super) parameters: NoteParameters,
}

/// What the log's notes on itself tell.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NoteParameters {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) from: u64,
    pub(super) to: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    event_name: String,
    #[serde(default)]
    request_parameters: Option<serde_json::Value>,
    sequence: u64,
    previous_hash: String,
}

impl ChainedRecord {
    /// Reads a line without its end; `None`: it is not a record, or not as it was written.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let covered = line.len().checked_sub(HASH_MEMBER.len() + HASH_DIGITS + END.len())?;
        let (covered, tail) = line.split_at_checked(covered)?;
        let digits = tail.strip_prefix(HASH_MEMBER)?.strip_suffix(END)?;
        let hash = hex::decode_32(str::from_utf8(digits).ok()?)?;
        if hash != Hash::from(Sha256::digest(covered)) {
            return None;
        }
        let members: Members = serde_json::from_slice(line).ok()?;
        // Only the log's own notes are read further; a call's parameters may be anything.
        let parameters = members.request_parameters.filter(|_| members.event_name.starts_with("AuditLog"));
        let parameters = parameters.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default();
        Some(Self {
            link: Link { sequence: members.sequence, hash },
            previous: hex::decode_32(&members.previous_hash)?,
            event_name: members.event_name,
            parameters,
        })
    }
}
