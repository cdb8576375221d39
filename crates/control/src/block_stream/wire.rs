//! The bytes of the block stream. No I/O here.

use std::io;

use sealblk_snapshot::BLOCK_BYTES;

const MAGIC: &[u8; 8] = b"SBLKBLKS";
const VERSION: u32 = 1;
/// The longest message of an error.
pub(super) const MESSAGE_BYTES: usize = 1024;

pub(super) const HELLO_BYTES: usize = 32;
pub(super) const REQUEST_BYTES: usize = 24;
pub(super) const REPLY_BYTES: usize = 32;

/// What each side says first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub(super) size_bytes: u64,
    pub(super) window: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Next = 1,
    Read = 2,
    Release = 3,
    Complete = 4,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) number: u32,
    pub(super) action: Action,
    pub(super) block: u64,
    pub(super) count: u64,
}

/// The head of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reply {
    pub(super) number: u32,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Done,
    Run {
        start: u64,
        end: u64,
        in_origin: bool,
    },
    None,
    /// So many bytes follow.
    Data(u32),
    Zero,
    /// A message of so many bytes follows.
    Error {
        kind: io::ErrorKind,
        length: u32,
    },
    /// There will be no other reply: why, in a message of so many bytes.
    Over(u32),
}

/// The peer does not keep to the protocol.
pub(super) fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the block stream is malformed: {what}"))
}

impl Hello {
    pub(super) fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = Writer::<HELLO_BYTES>::new();
        bytes.put(MAGIC);
        bytes.put(&VERSION.to_le_bytes());
        bytes.put(&u32::try_from(BLOCK_BYTES).expect("512 KiB").to_le_bytes());
        bytes.put(&self.size_bytes.to_le_bytes());
        bytes.put(&self.window.to_le_bytes());
        bytes.bytes
    }

    pub(super) fn decode(bytes: &[u8; HELLO_BYTES]) -> io::Result<Self> {
        let mut fields = Fields(bytes);
        if fields.take::<8>() != *MAGIC {
            return Err(malformed("it does not begin as one"));
        }
        let version = fields.u32();
        if version != VERSION {
            let what =
                format!("the peer speaks version {version} of the block stream, this release {VERSION}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        if u64::from(fields.u32()) != BLOCK_BYTES {
            return Err(malformed("blocks of another size"));
        }
        let (size_bytes, window) = (fields.u64(), fields.u32());
        fields.none_left()?;
        Ok(Self { size_bytes, window })
    }
}

impl Request {
    pub(super) fn encode(self) -> [u8; REQUEST_BYTES] {
        let mut bytes = Writer::<REQUEST_BYTES>::new();
        bytes.put(&self.number.to_le_bytes());
        bytes.put(&(self.action as u32).to_le_bytes());
        bytes.put(&self.block.to_le_bytes());
        bytes.put(&self.count.to_le_bytes());
        bytes.bytes
    }

    pub(super) fn decode(bytes: &[u8; REQUEST_BYTES]) -> io::Result<Self> {
        let mut fields = Fields(bytes);
        let number = fields.u32();
        let action = match fields.u32() {
            1 => Action::Next,
            2 => Action::Read,
            3 => Action::Release,
            4 => Action::Complete,
            _ => return Err(malformed("a request of an unknown kind")),
        };
        Ok(Self { number, action, block: fields.u64(), count: fields.u64() })
    }
}

/// Kinds of errors that make a difference to the client, by their number.
const KINDS: [(u32, io::ErrorKind); 8] = [
    (1, io::ErrorKind::Other),
    (2, io::ErrorKind::NotFound),
    (3, io::ErrorKind::PermissionDenied),
    (4, io::ErrorKind::InvalidData),
    (5, io::ErrorKind::TimedOut),
    (6, io::ErrorKind::HostUnreachable),
    (7, io::ErrorKind::StorageFull),
    (8, io::ErrorKind::InvalidInput),
];

impl Reply {
    pub(super) fn encode(self) -> [u8; REPLY_BYTES] {
        let (outcome, start, end, length, detail) = match self.outcome {
            Outcome::Done => (0_u32, 0, 0, 0, 0),
            Outcome::Run { start, end, in_origin } => (1, start, end, 0, u32::from(in_origin)),
            Outcome::None => (2, 0, 0, 0, 0),
            Outcome::Data(length) => (3, 0, 0, length, 0),
            Outcome::Zero => (4, 0, 0, 0, 0),
            Outcome::Error { kind, length } => {
                let known = KINDS.iter().find(|(_, known)| *known == kind);
                (5, 0, 0, length, known.map_or(1, |(number, _)| *number))
            }
            Outcome::Over(length) => (6, 0, 0, length, 0),
        };
        let mut bytes = Writer::<REPLY_BYTES>::new();
        bytes.put(&self.number.to_le_bytes());
        bytes.put(&outcome.to_le_bytes());
        bytes.put(&u64::to_le_bytes(start));
        bytes.put(&u64::to_le_bytes(end));
        bytes.put(&u32::to_le_bytes(length));
        bytes.put(&u32::to_le_bytes(detail));
        bytes.bytes
    }

    /// A reply whose lengths are those of its outcome. What a run or a length means is the caller's to check.
    pub(super) fn decode(bytes: &[u8; REPLY_BYTES]) -> io::Result<Self> {
        let mut fields = Fields(bytes);
        let (number, outcome) = (fields.u32(), fields.u32());
        let (start, end) = (fields.u64(), fields.u64());
        let (length, detail) = (fields.u32(), fields.u32());
        let outcome = match (outcome, length, detail) {
            (0, 0, 0) => Outcome::Done,
            (1, 0, 0 | 1) => Outcome::Run { start, end, in_origin: detail == 1 },
            (2, 0, 0) => Outcome::None,
            (3, _, 0) => Outcome::Data(length),
            (4, 0, 0) => Outcome::Zero,
            (6, _, 0) if is_message(length) => Outcome::Over(length),
            (5, ..) if is_message(length) => {
                let known = KINDS.iter().find(|(number, _)| *number == detail);
                Outcome::Error { kind: known.map_or(io::ErrorKind::Other, |(_, kind)| *kind), length }
            }
            _ => return Err(malformed("a reply of an unknown kind, or with a length that it cannot have")),
        };
        Ok(Self { number, outcome })
    }
}

fn is_message(length: u32) -> bool {
    usize::try_from(length).is_ok_and(|length| length <= MESSAGE_BYTES)
}

/// An error's message with its causes, cut to what a reply takes.
pub(super) fn message(error: &io::Error) -> String {
    let mut text = error.to_string();
    // An `io::Error` shows what it wraps; what is below that is its own cause.
    let mut cause = error.get_ref().and_then(|wrapped| wrapped.source());
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.truncate(text.floor_char_boundary(MESSAGE_BYTES));
    text
}

/// Fills bytes from their start; the rest stays zero.
struct Writer<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        let end = self.used + field.len();
        self.bytes.get_mut(self.used..end).expect("the fields fit the message").copy_from_slice(field);
        self.used = end;
    }
}

/// Reads bytes from their start.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes. The fields of a message fit it.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields of a message fit it");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn none_left(&self) -> io::Result<()> {
        if self.0.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(malformed("unknown fields")) }
    }
}
