//! A client of replies in chunks, structured or extended, that judges what it reads by the rules of [`crate::harness::answer`].

use sealblk_block::{BlockDevice, ByteDevice};
use sealblk_nbd::ExportInfo;
use sealblk_testkit::nbd_client::{MODERN, OptionReply, go_data};

pub(crate) use crate::harness::answer::{
    Answer, Ask, BLOCK_STATUS, DF, ERROR, MOST_PAYLOAD, NONE, OFFSET_DATA, OFFSET_HOLE, PAYLOAD_LEN, REQ_ONE,
    STATUS, STATUS_EXT,
};
use crate::harness::answer::{Chunk, Head, Rules};
use crate::support::{Client, READ, SIZE, Session, connect_to};

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
            assert_eq!(chunk.head.cookie, ask.cookie, "the cookie comes back");
            let done = chunk.head.is_last();
            chunks.push(chunk);
            if done {
                return Rules { extended: self.extended, contexts: &self.contexts, size: SIZE }
                    .judge(ask, &chunks);
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
        let header = self.client.receive(Head::bytes(self.extended)).expect("a chunk's header");
        let head = Head::read(self.extended, &header);
        if self.extended {
            assert_eq!(head.offset, Some(ask.offset), "every chunk repeats the request's offset");
        }
        let data = self.client.receive(head.data_bytes).expect("a chunk");
        Chunk { head, data }
    }
}
