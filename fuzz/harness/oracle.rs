//! What the answer to a request must be, by the words of the protocol and the choices in docs/NBD.md: a plain array of
//! bytes beside the device.

use super::answer::{Ask, BLOCK_STATUS, DF, PAYLOAD_LEN, READ, REQ_ONE};
use super::bytes::Bytes;
use super::exports::SIZE;

pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const FAST_ZERO: u16 = 16;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
pub(crate) const ENOTSUP: u32 = 95;

/// What the client and the server agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Terms {
    pub(crate) structured: bool,
    pub(crate) extended: bool,
    /// Whether all contexts were selected, or none.
    pub(crate) contexts: bool,
    pub(crate) read_only: bool,
}

impl Terms {
    pub(crate) fn has_chunks(self) -> bool {
        self.structured || self.extended
    }

    /// The error that a request must get, if one; it depends on nothing but the request.
    pub(crate) fn error(self, ask: &Ask) -> Option<u32> {
        let (allowed, modifies, outside) = match ask.command {
            READ => (if self.has_chunks() { DF } else { 0 }, false, EINVAL),
            WRITE => (if self.extended { PAYLOAD_LEN } else { 0 }, true, ENOSPC),
            FLUSH | 5 => (0, false, EINVAL),
            TRIM => (0, true, EINVAL),
            WRITE_ZEROES => (NO_HOLE | FAST_ZERO, true, ENOSPC),
            BLOCK_STATUS if self.contexts => {
                (REQ_ONE | if self.extended { PAYLOAD_LEN } else { 0 }, false, EINVAL)
            }
            _ => return Some(EINVAL),
        };
        if ask.flags & !(allowed | FUA) != 0 {
            return Some(EINVAL);
        }
        if modifies && self.read_only {
            return Some(EPERM);
        }
        match ask.command {
            FLUSH => (ask.offset != 0 || ask.length != 0).then_some(EINVAL),
            BLOCK_STATUS => (!self.status_is_sound(ask)).then_some(EINVAL),
            _ => (!inside(ask.offset, ask.length)).then_some(outside),
        }
    }

    fn status_is_sound(self, ask: &Ask) -> bool {
        if ask.flags & PAYLOAD_LEN == 0 {
            return ask.length > 0 && inside(ask.offset, ask.length);
        }
        status_payload(&ask.payload)
            .is_some_and(|(length, ids)| length > 0 && inside(ask.offset, length) && !ids.is_empty())
    }
}

/// Whether ENOTSUP may be the answer, with nothing changed: FAST_ZERO, where zeroing is no faster than writing.
pub(crate) fn may_be_unsupported(ask: &Ask) -> bool {
    ask.command == WRITE_ZEROES && ask.flags & FAST_ZERO != 0
}

/// Length and ids of a BLOCK_STATUS payload, if each id is one of ours, and there once.
fn status_payload(payload: &[u8]) -> Option<(u64, Vec<u32>)> {
    let mut bytes = Bytes(payload);
    let length = bytes.number(8)?;
    let mut ids = Vec::new();
    while !bytes.0.is_empty() {
        let id = bytes.word()?;
        if !(1..=2).contains(&id) || ids.contains(&id) {
            return None;
        }
        ids.push(id);
    }
    Some((length, ids))
}

/// How many contexts a sound BLOCK_STATUS asks about.
pub(crate) fn contexts_asked(ask: &Ask) -> usize {
    if ask.flags & PAYLOAD_LEN == 0 {
        2
    } else {
        status_payload(&ask.payload).map_or(0, |(_, ids)| ids.len())
    }
}

fn inside(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= SIZE)
}

/// The device's content as far as it is known.
pub(crate) struct Shadow {
    bytes: Vec<u8>,
    /// What was trimmed since: as before, or zero.
    trimmed: Vec<bool>,
}

impl Shadow {
    pub(crate) fn new() -> Self {
        let size = usize::try_from(SIZE).expect("small");
        Self { bytes: vec![0; size], trimmed: vec![false; size] }
    }

    /// A request has succeeded.
    pub(crate) fn apply(&mut self, ask: &Ask) {
        let range = range(ask.offset, ask.length);
        match ask.command {
            WRITE => self.bytes[range.clone()].copy_from_slice(&ask.payload),
            WRITE_ZEROES => self.bytes[range.clone()].fill(0),
            TRIM => return self.trimmed[range].fill(true),
            _ => return,
        }
        self.trimmed[range].fill(false);
    }

    /// A READ has given `content`.
    pub(crate) fn compare(&mut self, ask: &Ask, content: &[u8]) {
        for (at, byte) in range(ask.offset, ask.length).zip(content) {
            let known = *byte == self.bytes[at] || self.trimmed[at] && *byte == 0;
            assert!(known, "byte {at} reads {byte:#x} and was {:#x}", self.bytes[at]);
            (self.bytes[at], self.trimmed[at]) = (*byte, false);
        }
    }

    /// A range is said to read as zeros.
    pub(crate) fn expect_zeros(&mut self, offset: u64, length: u64) {
        for at in range(offset, length) {
            assert!(self.bytes[at] == 0 || self.trimmed[at], "byte {at} is not zero");
            (self.bytes[at], self.trimmed[at]) = (0, false);
        }
    }
}

fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
    let end = usize::try_from(offset + length).expect("inside a small export");
    usize::try_from(offset).expect("inside a small export")..end
}
