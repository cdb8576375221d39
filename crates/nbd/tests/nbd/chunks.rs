//! A client of replies in chunks, structured or extended, that judges what it reads.
//!
//! Its reader is written from the protocol's text and shares no code and no constant with the server. Points 81
//! to 84 and 94 of the checklist are rules about every reply, and so they are checked on every reply here.

use std::collections::BTreeMap;

use sealblk_block::{BlockDevice, ByteDevice};
use sealblk_nbd::ExportInfo;
use sealblk_testkit::nbd_client::{MODERN, OptionReply, RequestHeader, go_data};

use crate::support::{Client, READ, SIZE, Session, connect_to};

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

    fn to_bytes(&self, extended: bool) -> Vec<u8> {
        if extended {
            let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
            bytes.extend(self.flags.to_be_bytes());
            bytes.extend(self.command.to_be_bytes());
            bytes.extend(self.cookie.to_be_bytes());
            bytes.extend(self.offset.to_be_bytes());
            bytes.extend(self.length.to_be_bytes());
            return [bytes, self.payload.clone()].concat();
        }
        let Self { flags, command, cookie, offset, .. } = *self;
        let length = u32::try_from(self.length).expect("a compact length");
        let header = RequestHeader { flags, command, cookie, offset, length };
        [header.to_bytes(), self.payload.clone()].concat()
    }
}

/// One chunk as it came.
#[derive(Debug)]
struct Chunk {
    flags: u16,
    kind: u16,
    cookie: u64,
    data: Vec<u8>,
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

/// A client that has agreed on chunks.
pub(crate) struct ChunkClient {
    pub(crate) client: Client,
    extended: bool,
    /// The ids of the contexts that were agreed on, in the order in which they came.
    pub(crate) contexts: Vec<u32>,
    /// What GO said of the export.
    pub(crate) flags: u16,
}

/// The data of SET_META_CONTEXT and LIST_META_CONTEXT.
pub(crate) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).expect("few").to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).expect("short").to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// The ids and names in the replies to a SET_META_CONTEXT or LIST_META_CONTEXT that succeeded.
pub(crate) fn contexts(replies: &[OptionReply]) -> Vec<(u32, String)> {
    let (last, told) = replies.split_last().expect("replies");
    assert_eq!((last.kind, last.data.len()), (1, 0), "{replies:?}");
    let read = |reply: &OptionReply| {
        assert_eq!(reply.kind, 4, "{reply:?}");
        let (id, name) = reply.data.split_at(4);
        let name = String::from_utf8(name.to_vec()).expect("UTF-8");
        (u32::from_be_bytes(id.try_into().expect("four bytes")), name)
    };
    told.iter().map(read).collect()
}

/// A session with chunks on `device`; `extended` headers or compact ones, with the `asked` contexts.
pub(crate) fn chunked_on<D: BlockDevice>(
    device: &ByteDevice<D>,
    info: ExportInfo,
    extended: bool,
    asked: &[&str],
) -> (ChunkClient, Session) {
    let (mut client, session) = connect_to(device, info);
    client.greet(MODERN).expect("a greeting");
    let option = if extended { 11 } else { 8 };
    assert_eq!(client.option(option, &[]).expect("an answer")[0].kind, 1);
    let mut ids = Vec::new();
    if !asked.is_empty() {
        let chosen = contexts(&client.option(10, &queries("", asked)).expect("an answer"));
        ids = chosen.into_iter().map(|(id, _)| id).collect();
    }
    let replies = client.option(7, &go_data(b"", &[])).expect("an answer");
    assert_eq!(replies.last().expect("a reply").kind, 1, "GO succeeds: {replies:?}");
    let export = replies.iter().find(|reply| reply.kind == 3 && reply.data.starts_with(&[0, 0]));
    let flags = &export.expect("INFO_EXPORT").data[10..12];
    let flags = u16::from_be_bytes([flags[0], flags[1]]);
    (ChunkClient { client, extended, contexts: ids, flags }, session)
}

impl ChunkClient {
    /// Sends a request.
    pub(crate) fn send(&mut self, ask: &Ask) {
        let bytes = ask.to_bytes(self.extended);
        self.client.send(&bytes).expect("sent");
    }

    /// Sends a request and receives its reply.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Answer {
        self.send(ask);
        self.answer(ask)
    }

    /// Receives the reply to `ask`, which must come next, and holds it against the rules. For a BLOCK_STATUS with
    /// a payload, `ask` is judged by the length in there.
    pub(crate) fn answer(&mut self, ask: &Ask) -> Answer {
        let mut chunks = Vec::new();
        loop {
            let chunk = self.chunk(ask);
            assert_eq!(chunk.cookie, ask.cookie, "the cookie comes back");
            let done = chunk.flags & 1 != 0;
            chunks.push(chunk);
            if done {
                return self.judge(ask, &chunks);
            }
        }
    }

    /// Sends a WRITE in the form of this session.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Answer {
        let flags = if self.extended { PAYLOAD_LEN } else { 0 };
        let length = data.len().try_into().expect("64 bits");
        self.ask(&Ask::new(1, flags, offset, length).carrying(data.to_vec()))
    }

    /// READ; its content.
    pub(crate) fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let answer = self.ask(&Ask::new(READ, 0, offset, length));
        assert_eq!(answer.error, None);
        answer.content
    }

    /// The extents of the one context of a range.
    pub(crate) fn extents(&mut self, flags: u16, offset: u64, length: u64) -> Vec<(u64, u64)> {
        let answer = self.ask(&Ask::new(BLOCK_STATUS, flags, offset, length));
        assert_eq!(answer.error, None);
        answer.extents.into_values().next().expect("a context was agreed on")
    }

    fn chunk(&mut self, ask: &Ask) -> Chunk {
        let magic = if self.extended { 0x6e8a_278c_u32 } else { 0x668e_33ef };
        let header = self.client.receive(if self.extended { 32 } else { 20 }).expect("a chunk's header");
        let mut at = 0;
        let mut field = |len: usize| {
            let bytes = &header[at..at + len];
            at += len;
            bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        assert_eq!(field(4), u64::from(magic), "a chunk's magic");
        let (flags, kind, cookie) = (field(2), field(2), field(8));
        if self.extended {
            assert_eq!(field(8), ask.offset, "every chunk repeats the request's offset");
        }
        let length = field(if self.extended { 8 } else { 4 });
        assert!(length <= MOST_PAYLOAD + 64, "a chunk of {length} bytes");
        assert_eq!(flags & !1, 0, "unknown reply flags");
        let data = self.client.receive(usize::try_from(length).expect("bounded")).expect("a chunk");
        let narrow = |value: u64| u16::try_from(value).expect("two bytes");
        Chunk { flags: narrow(flags), kind: narrow(kind), cookie, data }
    }

    fn judge(&self, ask: &Ask, chunks: &[Chunk]) -> Answer {
        let mut answer = Answer::default();
        let mut covered: Vec<(u64, u64)> = Vec::new();
        let is_read = ask.command == READ;
        if is_read && ask.length <= MOST_PAYLOAD {
            answer.content = vec![0xee; usize::try_from(ask.length).expect("bounded")];
        }
        for chunk in chunks {
            answer.kinds.push(chunk.kind);
            match chunk.kind {
                NONE => assert!(chunk.data.is_empty() && chunk.flags == 1, "NONE is empty and last"),
                ERROR | ERROR_OFFSET => answer.error = Some(judge_error(ask, chunk)),
                OFFSET_DATA | OFFSET_HOLE => {
                    assert!(is_read, "content answers READ only");
                    covered.push(place_content(ask, chunk, &mut answer.content));
                }
                STATUS | STATUS_EXT => {
                    assert_eq!(chunk.kind == STATUS_EXT, self.extended, "the type of status");
                    assert!(ask.command == BLOCK_STATUS);
                    let (id, extents) = read_extents(chunk);
                    judge_extents(ask, &extents, self.extended);
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
    let length = if chunk.kind == OFFSET_HOLE {
        assert_eq!(rest.len(), 4, "a hole is 12 bytes");
        u64::from(u32::from_be_bytes(rest.try_into().expect("four bytes")))
    } else {
        rest.len() as u64
    };
    assert!(length > 0, "an empty content chunk");
    assert!(offset >= ask.offset && offset + length <= ask.offset + ask.length, "content outside");
    let start = usize::try_from(offset - ask.offset).expect("bounded");
    let place = &mut content[start..start + usize::try_from(length).expect("bounded")];
    if chunk.kind == OFFSET_HOLE {
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
    let fixed = if chunk.kind == ERROR_OFFSET { 14 } else { 6 };
    assert!(chunk.data.len() >= fixed);
    let error = u32::from_be_bytes(chunk.data[..4].try_into().expect("four bytes"));
    let length = usize::from(u16::from_be_bytes([chunk.data[4], chunk.data[5]]));
    assert!([1, 5, 22, 28, 75, 95, 108].contains(&error), "error {error}");
    assert!(length <= 4096 && 6 + length <= chunk.data.len());
    let text = std::str::from_utf8(&chunk.data[6..6 + length]).expect("UTF-8");
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
    if let Some(offset) = chunk.data.get(6 + length..).filter(|_| chunk.kind == ERROR_OFFSET) {
        let offset = u64::from_be_bytes(offset.try_into().expect("eight bytes"));
        assert!(offset >= ask.offset && offset - ask.offset < ask.length, "an error outside the request");
    }
    error
}

/// The id and the extents of a status chunk.
fn read_extents(chunk: &Chunk) -> (u32, Vec<(u64, u64)>) {
    let number = |field: &[u8]| field.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let id = u32::try_from(number(&chunk.data[..4])).expect("four bytes");
    let (extents, half) = if chunk.kind == STATUS {
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

fn judge_extents(ask: &Ask, extents: &[(u64, u64)], extended: bool) {
    let asked = match ask.payload.get(..8) {
        Some(length) if extended => u64::from_be_bytes(length.try_into().expect("eight bytes")),
        _ => ask.length,
    };
    assert!(!extents.is_empty() && extents.len() <= 1 << 20);
    assert!(extents.iter().all(|(length, _)| *length > 0), "an empty extent");
    let total: u64 = extents.iter().map(|(length, _)| length).sum();
    assert!(ask.offset + total <= SIZE.max(ask.offset + asked), "extents outside the export");
    let before_last: u64 = extents[..extents.len() - 1].iter().map(|(length, _)| length).sum();
    assert!(before_last < asked, "extents behind the request");
    assert!(extents.windows(2).all(|pair| pair[0].1 != pair[1].1), "equal neighbours: {extents:?}");
    if ask.flags & REQ_ONE != 0 {
        assert!(extents.len() == 1 && extents[0].0 <= asked, "REQ_ONE: {extents:?}");
    }
}
