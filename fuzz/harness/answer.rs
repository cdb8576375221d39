//! Answers in chunks, structured or extended, and the rules for them.
//!
//! Points 81 to 84 and 94 of the checklist are rules about every reply, and so they are checked on every reply here.

use std::collections::BTreeMap;

use super::bytes::Bytes;

pub(crate) const READ: u16 = 0;
pub(crate) const BLOCK_STATUS: u16 = 7;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const PAYLOAD_LEN: u16 = 32;
pub(crate) const MOST_PAYLOAD: u64 = 32 << 20;

pub(crate) const NONE: u16 = 0;
pub(crate) const OFFSET_DATA: u16 = 1;
pub(crate) const OFFSET_HOLE: u16 = 2;
pub(crate) const STATUS: u16 = 5;
pub(crate) const STATUS_EXT: u16 = 6;
pub(crate) const ERROR: u16 = 0x8001;
const ERROR_OFFSET: u16 = 0x8002;

/// A request in either form of header.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    /// The header's length, whatever it means.
    pub(crate) length: u64,
    pub(crate) payload: Vec<u8>,
}

impl Ask {
    pub(crate) fn new(command: u16, flags: u16, offset: u64, length: u64) -> Self {
        Self { flags, command, cookie: 0x1122_3344_5566_7788, offset, length, payload: Vec::new() }
    }

    pub(crate) fn carrying(self, payload: Vec<u8>) -> Self {
        Self { payload, ..self }
    }

    /// The request as it goes over the wire.
    pub(crate) fn to_bytes(&self, extended: bool) -> Vec<u8> {
        let magic = if extended { 0x21e4_1c71_u32 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        if extended {
            bytes.extend(self.length.to_be_bytes());
        } else {
            bytes.extend(u32::try_from(self.length).expect("a compact length").to_be_bytes());
        }
        bytes.extend(&self.payload);
        bytes
    }
}

/// A chunk's header.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    flags: u16,
    kind: u16,
    pub(crate) cookie: u64,
    /// The request's offset; only extended headers have it.
    pub(crate) offset: Option<u64>,
    pub(crate) data_bytes: usize,
}

impl Head {
    /// How long one is.
    pub(crate) const fn bytes(extended: bool) -> usize {
        if extended { 32 } else { 20 }
    }

    /// Reads one.
    pub(crate) fn read(extended: bool, header: &[u8]) -> Self {
        let mut fields = Bytes(header);
        let magic = if extended { 0x6e8a_278c } else { 0x668e_33ef };
        assert_eq!(fields.word(), Some(magic), "a chunk's magic");
        let flags = fields.half().expect("flags");
        let kind = fields.half().expect("a type");
        let cookie = fields.number(8).expect("a cookie");
        let offset = extended.then(|| fields.number(8).expect("an offset"));
        let length = fields.number(if extended { 8 } else { 4 }).expect("a length");
        assert!(length <= MOST_PAYLOAD + 64, "a chunk of {length} bytes");
        assert_eq!(flags & !1, 0, "unknown reply flags");
        Self { flags, kind, cookie, offset, data_bytes: usize::try_from(length).expect("bounded") }
    }

    /// Whether it is the last of its reply.
    pub(crate) fn is_last(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// One chunk as it came.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) head: Head,
    pub(crate) data: Vec<u8>,
}

/// A whole reply that kept all rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The types of its chunks, in order.
    pub(crate) kinds: Vec<u16>,
    /// The error, if it is one.
    pub(crate) error: Option<u32>,
    /// The content of a READ.
    pub(crate) content: Vec<u8>,
    /// Extents as length and flags, by the context's id.
    pub(crate) extents: BTreeMap<u32, Vec<(u64, u64)>>,
}

/// By what answers are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    /// Whether extended headers were agreed on.
    pub(crate) extended: bool,
    /// The ids of the contexts that were.
    pub(crate) contexts: &'a [u32],
    /// The size of the export.
    pub(crate) size: u64,
}

impl Rules<'_> {
    /// Holds the reply to `ask` against the rules. For a BLOCK_STATUS with a payload, `ask` is judged by the length
    /// in there.
    pub(crate) fn judge(&self, ask: &Ask, chunks: &[Chunk]) -> Answer {
        let mut answer = Answer::default();
        let mut covered: Vec<(u64, u64)> = Vec::new();
        let is_read = ask.command == READ;
        if is_read && ask.length <= MOST_PAYLOAD {
            answer.content = vec![0xee; usize::try_from(ask.length).expect("bounded")];
        }
        for chunk in chunks {
            answer.kinds.push(chunk.head.kind);
            match chunk.head.kind {
                NONE => assert!(chunk.data.is_empty() && chunk.head.flags == 1, "NONE is empty and last"),
                ERROR | ERROR_OFFSET => answer.error = Some(judge_error(ask, chunk)),
                OFFSET_DATA | OFFSET_HOLE => {
                    assert!(is_read, "content answers READ only");
                    covered.push(place_content(ask, chunk, &mut answer.content));
                }
                STATUS | STATUS_EXT => {
                    assert_eq!(chunk.head.kind == STATUS_EXT, self.extended, "the type of status");
                    assert!(ask.command == BLOCK_STATUS);
                    let (id, extents) = read_extents(chunk);
                    judge_extents(ask, &extents, self);
                    assert!(self.contexts.contains(&id), "context {id} was not agreed on");
                    assert!(answer.extents.insert(id, extents).is_none(), "two chunks for context {id}");
                }
                other => panic!("chunk type {other:#x}"),
            }
        }
        if answer.error.is_some() {
            answer.content.clear();
        } else if is_read {
            judge_coverage(ask, &mut covered);
        }
        answer
    }
}

/// Puts a content chunk in its place; says which bytes it covers.
fn place_content(ask: &Ask, chunk: &Chunk, content: &mut [u8]) -> (u64, u64) {
    let (offset, rest) = chunk.data.split_at(8);
    let offset = u64::from_be_bytes(offset.try_into().expect("eight bytes"));
    let length = if chunk.head.kind == OFFSET_HOLE {
        assert_eq!(rest.len(), 4, "a hole is 12 bytes");
        u64::from(u32::from_be_bytes(rest.try_into().expect("four bytes")))
    } else {
        rest.len() as u64
    };
    assert!(length > 0, "an empty content chunk");
    assert!(offset >= ask.offset && offset + length <= ask.offset + ask.length, "content outside");
    let start = usize::try_from(offset - ask.offset).expect("bounded");
    let place = &mut content[start..start + usize::try_from(length).expect("bounded")];
    if chunk.head.kind == OFFSET_HOLE {
        place.fill(0)
    } else {
        place.copy_from_slice(rest)
    }
    (offset, length)
}

/// The chunks of a READ cover it exactly once; with DF, there is one.
fn judge_coverage(ask: &Ask, covered: &mut [(u64, u64)]) {
    covered.sort_unstable();
    let mut at = ask.offset;
    for (offset, length) in covered.iter() {
        assert_eq!(*offset, at, "content with a gap or an overlap");
        at += length;
    }
    assert_eq!(at, ask.offset + ask.length, "content ends too soon");
    assert!(ask.flags & DF == 0 || covered.len() <= 1, "fragments in spite of DF");
}

/// An error chunk's error.
fn judge_error(ask: &Ask, chunk: &Chunk) -> u32 {
    let fixed = if chunk.head.kind == ERROR_OFFSET { 14 } else { 6 };
    assert!(chunk.data.len() >= fixed);
    let error = u32::from_be_bytes(chunk.data[..4].try_into().expect("four bytes"));
    let length = usize::from(u16::from_be_bytes([chunk.data[4], chunk.data[5]]));
    assert!([1, 5, 22, 28, 75, 95, 108].contains(&error), "error {error}");
    assert!(length <= 4096 && 6 + length <= chunk.data.len());
    let text = std::str::from_utf8(&chunk.data[6..6 + length]).expect("UTF-8");
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
    if let Some(offset) = chunk.data.get(6 + length..).filter(|_| chunk.head.kind == ERROR_OFFSET) {
        let offset = u64::from_be_bytes(offset.try_into().expect("eight bytes"));
        assert!(offset >= ask.offset && offset - ask.offset < ask.length, "an error outside the request");
    }
    error
}

/// The id and the extents of a status chunk.
fn read_extents(chunk: &Chunk) -> (u32, Vec<(u64, u64)>) {
    let number = |field: &[u8]| field.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let id = u32::try_from(number(&chunk.data[..4])).expect("four bytes");
    let (extents, half) = if chunk.head.kind == STATUS {
        (&chunk.data[4..], 4)
    } else {
        assert_eq!(number(&chunk.data[4..8]), (chunk.data.len() as u64 - 8) / 16, "the count");
        (&chunk.data[8..], 8)
    };
    assert_eq!(extents.len() % (2 * half), 0);
    let extents = extents.chunks(2 * half).map(|extent| {
        let (length, flags) = extent.split_at(half);
        (number(length), number(flags))
    });
    (id, extents.collect())
}

fn judge_extents(ask: &Ask, extents: &[(u64, u64)], rules: &Rules<'_>) {
    let asked = match ask.payload.get(..8) {
        Some(length) if rules.extended => u64::from_be_bytes(length.try_into().expect("eight bytes")),
        _ => ask.length,
    };
    assert!(!extents.is_empty() && extents.len() <= 1 << 20);
    assert!(extents.iter().all(|(length, _)| *length > 0), "an empty extent");
    let total: u64 = extents.iter().map(|(length, _)| length).sum();
    assert!(ask.offset + total <= rules.size.max(ask.offset + asked), "extents outside the export");
    let before_last: u64 = extents[..extents.len() - 1].iter().map(|(length, _)| length).sum();
    assert!(before_last < asked, "extents behind the request");
    assert!(extents.windows(2).all(|pair| pair[0].1 != pair[1].1), "equal neighbours: {extents:?}");
    if ask.flags & REQ_ONE != 0 {
        assert!(extents.len() == 1 && extents[0].0 <= asked, "REQ_ONE: {extents:?}");
    }
}
