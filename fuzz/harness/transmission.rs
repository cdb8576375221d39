//! Transmission, given any bytes in any pieces: a whole connection over a pipe in memory, on one thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use sealblk_nbd::{ConnectionError, Ended, Limits, Stopper, serve_connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::answer::{Answer, Ask, BLOCK_STATUS, Chunk, Head, MOST_PAYLOAD, PAYLOAD_LEN, READ, Rules};
use super::bytes::{Bytes, Pieces};
use super::exports::{self, CONTEXTS, SIZE, stripe};
use super::oracle::{DISCONNECT, ENOTSUP, Shadow, Terms, WRITE, contexts_asked, may_be_unsupported};

/// How a connection is set up, from a byte: the dialect (its remainder by 3), a read-only export (bit 2), many requests
/// at a time (bit 3), a large unit (bit 4), no contexts (bit 5).
pub(crate) struct Setting {
    pub(crate) terms: Terms,
    many: bool,
    large_unit: bool,
}

impl Setting {
    pub(crate) fn new(byte: u8) -> Self {
        let (structured, extended) = (byte % 3 == 1, byte % 3 == 2);
        let contexts = (structured || extended) && byte & 32 == 0;
        let terms = Terms { structured, extended, contexts, read_only: byte & 4 != 0 };
        Self { terms, many: byte & 8 != 0, large_unit: byte & 16 != 0 }
    }

    /// What the client says until transmission.
    fn negotiation(&self) -> Vec<u8> {
        let option = |option: u32, data: &[u8]| {
            let length = u32::try_from(data.len()).expect("short");
            [b"IHAVEOPT", &option.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
        };
        let mut client = vec![0, 0, 0, 3];
        if self.terms.has_chunks() {
            client.extend(option(if self.terms.extended { 11 } else { 8 }, &[]));
        }
        if self.terms.contexts {
            let mut data = vec![0, 0, 0, 0, 0, 0, 0, 2];
            for context in CONTEXTS {
                data.extend(u32::try_from(context.len()).expect("short").to_be_bytes());
                data.extend(context.as_bytes());
            }
            client.extend(option(10, &data));
        }
        [client, option(7, &[0; 6])].concat()
    }
}

/// Gives the server a client's bytes in transmission: the first byte is a [`Setting`], the second chooses the pieces,
/// and the rest is what the client sends. Cookies are replaced by numbers, so that every answer has its request.
///
/// # Panics
/// If a complete request does not get exactly one answer, or the answer is not the one that an array of
/// bytes would give, or the connection ends otherwise than it should.
pub(crate) fn transmission(input: &[u8]) {
    let [setting, seed, client @ ..] = input else { return };
    let setting = Setting::new(*setting);
    let mut client = client.to_vec();
    let (asked, end) = read_requests(&mut client, setting.terms.extended);
    let (ended, received) = connect(&setting, &client, Pieces::new(u64::from(*seed)));
    match end {
        End::Between => assert!(matches!(ended, Ok(Ended::EndOfStream)), "{ended:?}"),
        End::Disconnect => assert!(matches!(ended, Ok(Ended::Disconnected)), "{ended:?}"),
        End::Cut => assert!(matches!(ended, Err(ConnectionError::Truncated)), "{ended:?}"),
        End::Violation => assert!(matches!(ended, Err(ConnectionError::Request(_))), "{ended:?}"),
    }
    let answers = read_answers(&setting, &asked, behind_negotiation(&received));
    assert_eq!(answers.len(), asked.len(), "every request has an answer");
    let mut judge = Judge { terms: setting.terms, shadow: (!setting.many).then(Shadow::new) };
    asked.iter().zip(answers.values()).for_each(|(ask, answer)| judge.judge(ask, answer));
}

/// How the client's bytes end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Between,
    Disconnect,
    Cut,
    Violation,
}

/// Reads the complete requests, and numbers their cookies.
fn read_requests(client: &mut [u8], extended: bool) -> (Vec<Ask>, End) {
    let mut asked = Vec::new();
    let mut at = 0;
    while at < client.len() {
        let cookie: u64 = asked.len().try_into().expect("64 bits");
        if let Some(place) = client.get_mut(at + 8..at + 16) {
            place.copy_from_slice(&cookie.to_be_bytes());
        }
        match read_request(&client[at..], extended) {
            Ok(ask) => {
                at += ask.to_bytes(extended).len();
                asked.push(ask);
            }
            Err(end) => return (asked, end),
        }
    }
    (asked, End::Between)
}

fn read_request(client: &[u8], extended: bool) -> Result<Ask, End> {
    let mut bytes = Bytes(client);
    let mut header = Bytes(bytes.take(if extended { 32 } else { 28 }).ok_or(End::Cut)?);
    if header.word() != Some(if extended { 0x21e4_1c71 } else { 0x2560_9513 }) {
        return Err(End::Violation);
    }
    let (flags, command) = (header.half().expect("a header"), header.half().expect("a header"));
    let [cookie, offset] = [(); 2].map(|()| header.number(8).expect("a header"));
    let length = header.number(if extended { 8 } else { 4 }).expect("a header");
    if command == DISCONNECT {
        return Err(End::Disconnect);
    }
    let carries = if extended { flags & PAYLOAD_LEN != 0 } else { command == WRITE };
    let unannounced = command == WRITE && !carries && length > 0;
    if unannounced || carries && length > MOST_PAYLOAD {
        return Err(End::Violation);
    }
    let payload = if carries { usize::try_from(length).expect("bounded") } else { 0 };
    let payload = bytes.take(payload).ok_or(End::Cut)?.to_vec();
    Ok(Ask { flags, command, cookie, offset, length, payload })
}

/// One connection from beginning to end: how it ended, and everything that the server sent.
fn connect(setting: &Setting, client: &[u8], pieces: Pieces) -> (Result<Ended, ConnectionError>, Vec<u8>) {
    let device = exports::device(setting.large_unit, setting.terms.read_only);
    let info = exports::info();
    let limits = Limits { workers: if setting.many { 8 } else { 1 }, ..Limits::default() };
    let stopper = Stopper::default();
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut answers, mut asking) = tokio::io::split(near);
        let sending = async move {
            // A server that has ended the connection takes no more: that is judged by how it ended.
            let _ = asking.write_all(&setting.negotiation()).await;
            let mut rest = client;
            for size in pieces {
                let (piece, more) = rest.split_at(size.min(rest.len()));
                if asking.write_all(piece).await.is_err() || more.is_empty() {
                    break;
                }
                rest = more;
                tokio::task::yield_now().await;
            }
            let _ = asking.shutdown().await;
        };
        let mut received = Vec::new();
        let statistics = Arc::default();
        let serving = serve_connection(far, &device, &info, &limits, stopper.signal(), &statistics);
        let ((), read, ended) = tokio::join!(sending, answers.read_to_end(&mut received), serving);
        read.expect("a pipe in memory does not fail");
        (ended, received)
    })
}

/// What follows the answer to GO.
fn behind_negotiation(received: &[u8]) -> Bytes<'_> {
    let mut rest = Bytes(received);
    rest.take(18).expect("the greeting");
    loop {
        let mut header = Bytes(rest.take(20).expect("a reply to an option"));
        let (_, option) = (header.number(8), header.word());
        let (kind, length) = (header.word(), header.word().expect("a header"));
        rest.take(length as usize).expect("a whole reply");
        if (option, kind) == (Some(7), Some(1)) {
            return rest;
        }
    }
}

/// Reads all answers, in the order of their requests.
fn read_answers(setting: &Setting, asked: &[Ask], mut bytes: Bytes<'_>) -> BTreeMap<u64, Answer> {
    let rules = Rules { extended: setting.terms.extended, contexts: &[1, 2], size: SIZE };
    let mut answers = BTreeMap::new();
    let mut begun: BTreeMap<u64, Vec<Chunk>> = BTreeMap::new();
    let ask = |cookie: u64| {
        let index = usize::try_from(cookie).expect("a number of ours");
        asked.get(index).expect("an answer to a request that was made")
    };
    while !bytes.0.is_empty() {
        let (cookie, answer) = if setting.terms.has_chunks() {
            let chunk = read_chunk(setting.terms.extended, &mut bytes);
            let (cookie, last) = (chunk.head.cookie, chunk.head.is_last());
            assert!(
                chunk.head.offset.is_none_or(|offset| offset == ask(cookie).offset),
                "the offset comes back"
            );
            begun.entry(cookie).or_default().push(chunk);
            if !last {
                continue;
            }
            (cookie, rules.judge(ask(cookie), &begun.remove(&cookie).expect("at least one")))
        } else {
            read_simple(&mut bytes, ask)
        };
        assert!(answers.insert(cookie, answer).is_none(), "request {cookie} is answered twice");
    }
    assert!(begun.is_empty(), "an answer has no end");
    answers
}

fn read_chunk(extended: bool, bytes: &mut Bytes<'_>) -> Chunk {
    let head = Head::read(extended, bytes.take(Head::bytes(extended)).expect("a whole header"));
    let data = bytes.take(head.data_bytes).expect("a whole chunk").to_vec();
    Chunk { head, data }
}

fn read_simple<'a>(bytes: &mut Bytes<'_>, ask: impl Fn(u64) -> &'a Ask) -> (u64, Answer) {
    assert_eq!(bytes.word(), Some(0x6744_6698), "a simple reply's magic");
    let (error, cookie) = (bytes.word().expect("an error"), bytes.number(8).expect("a cookie"));
    let mut answer = Answer { error: (error != 0).then_some(error), ..Answer::default() };
    let ask = ask(cookie);
    if error == 0 && ask.command == READ {
        let length = usize::try_from(ask.length).expect("a length that was served");
        answer.content = bytes.take(length).expect("content").to_vec();
    }
    (cookie, answer)
}

/// Judges answers in the order of their requests.
struct Judge {
    terms: Terms,
    /// There is one if requests were carried out in order.
    shadow: Option<Shadow>,
}

impl Judge {
    fn judge(&mut self, ask: &Ask, answer: &Answer) {
        let expected = self.terms.error(ask);
        if expected.is_none() && answer.error == Some(ENOTSUP) && may_be_unsupported(ask) {
            return;
        }
        assert_eq!(answer.error, expected, "{ask:?}");
        if expected.is_some() {
            return;
        }
        if ask.command == READ {
            assert_eq!(answer.content.len() as u64, ask.length);
        }
        if ask.command == BLOCK_STATUS {
            assert_eq!(answer.extents.len(), contexts_asked(ask), "{ask:?}");
            self.judge_status(ask, answer);
        }
        let Some(shadow) = &mut self.shadow else { return };
        if ask.command == READ {
            shadow.compare(ask, &answer.content);
        } else {
            shadow.apply(ask);
        }
    }

    /// Zeros are zeros, and stripes where they are.
    fn judge_status(&mut self, ask: &Ask, answer: &Answer) {
        for (id, extents) in &answer.extents {
            let mut offset = ask.offset;
            for (length, flags) in extents {
                if *id == 2 {
                    assert_eq!(*flags, u64::from(stripe(offset)));
                } else {
                    assert_eq!(flags & !3, 0, "reserved bits");
                    if let Some(shadow) = self.shadow.as_mut().filter(|_| flags & 2 != 0) {
                        shadow.expect_zeros(offset, *length);
                    }
                }
                offset += length;
            }
        }
    }
}
