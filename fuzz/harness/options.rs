//! The negotiation, given any bytes in any pieces.

use std::collections::BTreeSet;

use sealblk_block::BlockDevice;
use sealblk_nbd::Export;
use sealblk_nbd::negotiation::{Negotiation, Outcome, TlsMode};
use sealblk_nbd::session::Dialect;

use super::bytes::{Bytes, Pieces};
use super::exports::{self, ALIAS, CONTEXTS, DESCRIPTION, NAME, SIZE};
use super::model::{Expected, Framing, Model, Tls};

/// Replies to one option are never longer than this: one option's answer must not cost memory.
const LONGEST_ANSWER: usize = 64 << 10;

/// Feeds a client's bytes to the negotiation, in pieces, and compares it with the model: the first byte
/// chooses TLS (bit 0) and a read-only export (bit 1), the second the pieces, and the rest is what the client sends.
///
/// # Panics
/// If an answer is not one that the protocol allows, comes before its option has been read, or is not well formed; if
/// bytes are taken that belong to the next message; if a connection is ended, or not, against the model.
pub(crate) fn options(input: &[u8]) {
    let [setting, seed, client @ ..] = input else { return };
    let tls = setting & 1 != 0;
    let device = exports::device(false, setting & 2 != 0);
    let export = Export::new(exports::info(), device.device().geometry());
    let mut negotiation = Negotiation::new(&export, if tls { TlsMode::Required } else { TlsMode::Off });
    assert_eq!(negotiation.replies().as_slice(), b"NBDMAGICIHAVEOPT\0\x03", "the greeting");
    negotiation.replies().clear();
    let model = Model::new(if tls { Tls::Before } else { Tls::Off });
    Walk { negotiation, model, pieces: Pieces::new(u64::from(*seed)), read_only: setting & 2 != 0 }
        .run(client);
}

/// One message of the client's, as an independent reader sees it.
struct Message<'b> {
    option: u32,
    data: &'b [u8],
}

/// What comes next in the client's bytes.
enum Next<'b> {
    /// A whole option of that many bytes.
    Whole(Message<'b>, usize),
    /// The end, within an option (if it is known by now) that may be refused for what is there of it.
    Cut { option: Option<u32>, refusable: bool },
}

fn next_option(client: &[u8]) -> Next<'_> {
    let mut bytes = Bytes(client);
    let magic = bytes.take(8);
    if magic.is_some_and(|magic| magic != b"IHAVEOPT") {
        return Next::Cut { option: None, refusable: true };
    }
    let (Some(option), Some(length)) = (bytes.word(), bytes.word()) else {
        return Next::Cut { option: None, refusable: false };
    };
    match bytes.take(length as usize) {
        Some(data) if !Model::too_long(option, length) => {
            Next::Whole(Message { option, data }, 16 + data.len())
        }
        _ => Next::Cut { option: Some(option), refusable: Model::too_long(option, length) },
    }
}

/// A negotiation beside its model.
struct Walk<'e> {
    negotiation: Negotiation<'e>,
    model: Model,
    pieces: Pieces,
    read_only: bool,
}

/// How a message went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Went {
    Closed,
    Answered(Option<Outcome>),
}

impl Walk<'_> {
    fn run(mut self, client: &[u8]) {
        let Some((flags, mut rest)) = client.split_at_checked(4) else { return };
        let lives = self.model.client_flags(Bytes(flags).word().expect("four bytes"));
        let Some(fed) = self.greet(flags) else { return assert!(!lives, "flags that were offered") };
        assert!(lives && fed, "flags that were not offered");
        loop {
            let (message, length) = match next_option(rest) {
                Next::Whole(message, length) => (message, length),
                Next::Cut { option, refusable } => {
                    let hopeless = option.is_some_and(|option| self.model.is_hopeless(option));
                    return self.cut(rest, refusable || hopeless);
                }
            };
            let expected = self.model.option(message.option, message.data);
            let went = self.feed(rest, length, &expected);
            if !self.judge(message.option, &expected, went) {
                return;
            }
            rest = &rest[length..];
        }
    }

    /// The client's flags, byte by byte or at once. Says whether all was taken; `None` if they ended the connection.
    fn greet(&mut self, flags: &[u8]) -> Option<bool> {
        let size = self.pieces.next().expect("pieces have no end");
        for piece in flags.chunks(size) {
            let fed = self.negotiation.feed(piece).ok()?;
            assert!(fed.ended.is_none() && self.negotiation.replies().is_empty(), "flags have no answer");
            assert_eq!(fed.consumed, piece.len());
        }
        Some(true)
    }

    /// Feeds the message of `length` bytes at the front of `client`, and maybe more in the same piece.
    fn feed(&mut self, client: &[u8], length: usize, expected: &Expected) -> Went {
        let mut taken = 0;
        loop {
            let size = self.pieces.next().expect("pieces have no end").min(client.len() - taken);
            let Ok(fed) = self.negotiation.feed(&client[taken..taken + size]) else {
                let injected = *expected == Expected::StartTls && taken + size > length;
                assert!(injected || may_close(expected), "closed instead of {expected:?}");
                return Went::Closed;
            };
            assert!(fed.consumed > 0 && fed.consumed <= size, "it gets on");
            taken += fed.consumed;
            assert!(taken <= length, "the next message was touched");
            if taken == length {
                let injected = *expected == Expected::StartTls && fed.consumed < size;
                assert!(!injected, "bytes behind STARTTLS");
                return Went::Answered(fed.ended);
            }
            assert!(
                fed.ended.is_none() && self.negotiation.replies().is_empty(),
                "answered before it was read"
            );
        }
    }

    /// Holds the answer against the model. Says whether the negotiation goes on.
    fn judge(&mut self, option: u32, expected: &Expected, went: Went) -> bool {
        let Went::Answered(ended) = went else { return false };
        let bytes = std::mem::take(self.negotiation.replies());
        assert!(bytes.len() <= LONGEST_ANSWER, "an answer of {} bytes", bytes.len());
        if let Expected::Exported { padded } = expected {
            assert_eq!(ended, Some(Outcome::Transmission));
            self.judge_exported(&bytes, *padded);
            return false;
        }
        let replies = read_replies(option, &bytes);
        let (last, before) = replies.split_last().unwrap_or_else(|| panic!("no answer, not {expected:?}"));
        match expected {
            Expected::Refused(errors) => {
                assert!(
                    before.is_empty() && errors.contains(&last.kind),
                    "{:#x}, not {expected:x?}",
                    last.kind
                );
            }
            Expected::RefusedOrClosed => assert!(before.is_empty() && last.kind >> 31 == 1, "{replies:?}"),
            _ => assert_eq!((last.kind, last.data), (1, &[][..]), "not {expected:?}"),
        }
        self.judge_told(expected, before);
        let end = match expected {
            Expected::Aborted => Some(Outcome::Aborted),
            Expected::StartTls => Some(Outcome::StartTls),
            Expected::Informed { go: true, .. } => Some(Outcome::Transmission),
            _ => None,
        };
        assert_eq!(ended, end, "{expected:?}");
        match end {
            Some(Outcome::StartTls) => self.negotiation.tls_established(),
            Some(Outcome::Transmission) => self.judge_agreement(),
            _ => {}
        }
        matches!(end, None | Some(Outcome::StartTls))
    }

    /// What comes before the ACK.
    fn judge_told(&self, expected: &Expected, told: &[Reply<'_>]) {
        match expected {
            Expected::Listed => {
                let names = told.iter().map(|server| {
                    let mut data = Bytes(server.data);
                    let length = data.word().expect("a length");
                    (server.kind, data.take(length as usize))
                });
                assert!(names.eq([NAME, ALIAS].map(|name| (2, Some(name.as_bytes())))), "{told:?}");
            }
            Expected::Informed { asked, .. } => self.judge_information(asked, told),
            Expected::Contexts { names, set } => judge_contexts(names, *set, told),
            _ => assert!(told.is_empty(), "{told:?}"),
        }
    }

    /// Every type at most once, those that were asked for and are known, and always the export itself (27, 30 to 32).
    fn judge_information(&self, asked: &BTreeSet<u16>, told: &[Reply<'_>]) {
        let mut seen = BTreeSet::new();
        for reply in told {
            let mut data = Bytes(reply.data);
            let kind = data.half().expect("a type");
            assert!(reply.kind == 3 && seen.insert(kind), "{told:?}");
            match kind {
                0 => self.judge_export(data.0),
                1 => assert_eq!(data.0, NAME.as_bytes()),
                2 => assert_eq!(data.0, DESCRIPTION.as_bytes()),
                3 => judge_sizes(data),
                other => panic!("information {other}"),
            }
        }
        assert!(seen.contains(&0) && asked.iter().all(|kind| *kind > 3 || seen.contains(kind)), "{told:?}");
    }

    /// Size and flags (56, 59, 70).
    fn judge_export(&self, data: &[u8]) {
        assert_eq!(data.len(), 10);
        let mut data = Bytes(data);
        let (size, flags) = (data.number(8), data.half().expect("two bytes"));
        assert_eq!(size, Some(SIZE));
        assert_eq!(flags & 1, 1, "HAS_FLAGS");
        assert_eq!(flags & 2 != 0, self.read_only, "READ_ONLY");
        assert_eq!(flags & 1 << 7 != 0, self.model.framing != Framing::Simple, "SEND_DF");
        let payload = self.model.framing == Framing::Extended && !self.model.contexts.is_empty();
        assert_eq!(flags & 1 << 12 != 0, payload, "BLOCK_STATUS_PAYLOAD");
        assert_eq!(flags & !0x1fff, 0, "flags that do not exist");
    }

    fn judge_exported(&self, bytes: &[u8], padded: bool) {
        assert_eq!(bytes.len(), if padded { 134 } else { 10 });
        self.judge_export(&bytes[..10]);
        assert!(bytes[10..].iter().all(|byte| *byte == 0), "padding is zeros");
        self.judge_agreement();
    }

    /// Both sides go into transmission with the same idea of it.
    fn judge_agreement(&self) {
        let agreement = self.negotiation.agreement();
        let framing = match agreement.dialect {
            Dialect::Simple => Framing::Simple,
            Dialect::Structured => Framing::Structured,
            Dialect::Extended => Framing::Extended,
        };
        assert_eq!(framing, self.model.framing);
        let selected: Vec<&str> = agreement.contexts.numbers().map(|number| CONTEXTS[number]).collect();
        assert_eq!(selected, self.model.contexts);
    }

    /// The bytes end within a message: nothing is answered, and only what can be refused already is.
    fn cut(&mut self, mut rest: &[u8], refusable: bool) {
        while !rest.is_empty() {
            let size = self.pieces.next().expect("pieces have no end").min(rest.len());
            let Ok(fed) = self.negotiation.feed(&rest[..size]) else {
                return assert!(refusable, "closed within a message");
            };
            assert!(fed.consumed > 0 && fed.ended.is_none(), "it gets on");
            assert!(self.negotiation.replies().is_empty() || refusable, "answered before it was read");
            self.negotiation.replies().clear();
            rest = &rest[fed.consumed..];
        }
    }
}

fn may_close(expected: &Expected) -> bool {
    matches!(expected, Expected::Closed | Expected::RefusedOrClosed)
}

/// A reply to an option.
#[derive(Debug)]
struct Reply<'b> {
    kind: u32,
    data: &'b [u8],
}

/// Reads the replies to `option`: the last one is its only ACK or error, and errors have a text (8, 16).
fn read_replies(option: u32, bytes: &[u8]) -> Vec<Reply<'_>> {
    let mut rest = Bytes(bytes);
    let mut replies: Vec<Reply<'_>> = Vec::new();
    while !rest.0.is_empty() {
        assert!(replies.last().is_none_or(|reply| !is_final(reply.kind)), "more after the last reply");
        assert_eq!(rest.number(8), Some(0x0003_e889_0455_65a9), "a reply's magic");
        assert_eq!(rest.word(), Some(option), "the option comes back");
        let (kind, length) = (rest.word().expect("a type"), rest.word().expect("a length"));
        let data = rest.take(length as usize).expect("a whole reply");
        if kind >> 31 == 1 {
            let text = std::str::from_utf8(data).expect("UTF-8");
            assert!(!text.is_empty() && text.len() <= 4096 && !text.contains(char::is_control), "{text:?}");
        }
        replies.push(Reply { kind, data });
    }
    assert!(replies.last().is_none_or(|reply| is_final(reply.kind)), "no last reply");
    replies
}

fn is_final(kind: u32) -> bool {
    kind == 1 || kind >> 31 == 1
}

/// Exactly `names`, each once; ids that were set are unique (64).
fn judge_contexts(names: &[&str], set: bool, told: &[Reply<'_>]) {
    let mut ids = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for reply in told {
        let mut data = Bytes(reply.data);
        let id = data.word().expect("an id");
        assert_eq!(reply.kind, 4);
        assert!(seen.insert(std::str::from_utf8(data.0).expect("UTF-8")), "a context comes twice");
        assert!(ids.insert(id) || !set, "an id comes twice");
    }
    assert_eq!(seen, names.iter().copied().collect());
}

/// Request sizes (32).
fn judge_sizes(mut data: Bytes<'_>) {
    let [minimum, preferred, maximum] = [(); 3].map(|()| data.word().expect("four bytes"));
    assert!(data.0.is_empty() && minimum.is_power_of_two() && minimum <= 65536);
    assert!(preferred.is_power_of_two() && preferred >= minimum.max(512) && maximum >= preferred);
    assert_eq!(SIZE % u64::from(minimum), 0);
}
