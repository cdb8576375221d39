//! From the bytes of a request's header to a checked [`Request`]: the only validation on the data path.
//!
//! After [`Arrival::check`] nothing asks again whether a range fits or a write is allowed. Sans I/O. It
//! also says how many payload bytes follow the header, because they must be taken from the stream
//! whatever the verdict is: a payload left there would be read as the next request.

use sealblk_block::{Durability, ZeroMode};

use crate::context::{self, ContextSet, MAX_CONTEXTS};
use crate::export::Export;
use crate::reply::{ReplyTo, WireError};
use crate::session::{Agreement, Dialect, Session};
use crate::wire::{self, Fields, command, command_flag};

/// The longest payload of a BLOCK_STATUS: a length, and every context's id once.
pub const MAX_STATUS_PAYLOAD_BYTES: usize = 8 + 4 * MAX_CONTEXTS;

/// A request that may be carried out as it stands: allowed, and inside the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Read `length` bytes, 1 to [`wire::MAX_PAYLOAD_BYTES`].
    Read {
        /// First byte.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Write the payload, 1 to [`wire::MAX_PAYLOAD_BYTES`] bytes.
    Write {
        /// First byte.
        offset: u64,
        /// How many bytes.
        length: u32,
        /// When to acknowledge.
        durability: Durability,
    },
    /// Make a range read as zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// How many bytes, at least 1.
        length: u64,
        /// How.
        mode: ZeroMode,
        /// When to acknowledge.
        durability: Durability,
    },
    /// Forget a range.
    Discard {
        /// First byte.
        offset: u64,
        /// How many bytes, at least 1.
        length: u64,
        /// When to acknowledge.
        durability: Durability,
    },
    /// Make everything acknowledged durable.
    Flush,
    /// Tell what is known of a range.
    BlockStatus(StatusQuery),
    /// CACHE: advice that the page cache needs no help with.
    Cache {
        /// How many bytes, at least 1.
        length: u64,
    },
    /// Nothing to do: a command on zero bytes.
    Nothing,
}

/// What a BLOCK_STATUS asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusQuery {
    /// First byte.
    pub offset: u64,
    /// How many bytes, at least 1.
    pub length: u64,
    /// Whether the first extent is enough (REQ_ONE).
    pub one: bool,
    /// In which contexts, at least one.
    pub contexts: ContextSet,
}

impl Request {
    /// Whether failing with ENOTSUP is part of the request's contract (FAST_ZERO).
    pub fn may_be_unsupported(&self) -> bool {
        matches!(self, Self::Zero { mode: ZeroMode::FastOnly | ZeroMode::FastKeepAllocated, .. })
    }
}

/// What a client did that ends its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// The stream is out of step, or was never NBD.
    #[error("a request begins with {0:#010x}")]
    Magic(u32),
    /// A payload longer than any client may send: an attack on memory or patience.
    #[error("a request announces a payload of {0} bytes")]
    PayloadLength(u64),
    /// A WRITE in an extended header without PAYLOAD_LEN: by the words of the protocol no payload follows, by
    /// what the client means one does. Guessing wrong would take data for requests, or requests for data.
    #[error("a WRITE with an extended header does not say that a payload follows")]
    UnannouncedPayload,
}

/// One request header, read and judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// To be answered.
    Request {
        /// How to address the answer.
        to: ReplyTo,
        /// Bytes that follow the header, at most [`wire::MAX_PAYLOAD_BYTES`].
        payload_bytes: u32,
        /// What to do, or the error to answer once the payload is out of the way.
        verdict: Result<Request, WireError>,
    },
    /// A BLOCK_STATUS to be answered, whose payload says what it is about.
    SelectiveStatus {
        /// How to address the answer.
        to: ReplyTo,
        /// Bytes that follow the header, at most [`MAX_STATUS_PAYLOAD_BYTES`].
        payload_bytes: usize,
        /// What is known without them.
        status: SelectiveStatus,
    },
    /// The client is done. Answered by finishing what was accepted, and closing.
    Disconnect,
}

impl Arrival {
    /// Reads and judges a header.
    ///
    /// # Panics
    /// If `header` has not the bytes that the session's dialect gives a header
    /// ([`Dialect::request_header_bytes`]).
    pub fn check(header: &[u8], session: &Session) -> Result<Self, Violation> {
        let header = Header::parse(header, session.agreement.dialect)?;
        if header.command == command::DISCONNECT {
            return Ok(Self::Disconnect);
        }
        let to = ReplyTo { cookie: header.cookie, offset: header.offset };
        let announced = header.payload_bytes(session.agreement.dialect)?;
        let payload_bytes = match u32::try_from(announced) {
            Ok(bytes) if bytes <= wire::MAX_PAYLOAD_BYTES => bytes,
            _ => return Err(Violation::PayloadLength(announced)),
        };
        if header.has_status_payload(&session.agreement) {
            let status = SelectiveStatus { offset: header.offset, one: header.has(command_flag::REQ_ONE) };
            if let Ok(payload_bytes @ ..=MAX_STATUS_PAYLOAD_BYTES) = usize::try_from(payload_bytes) {
                return Ok(Self::SelectiveStatus { to, payload_bytes, status });
            }
            // More ids than there are contexts: some are repeated or unknown.
            return Ok(Self::Request { to, payload_bytes, verdict: Err(WireError::Invalid) });
        }
        Ok(Self::Request { to, payload_bytes, verdict: header.judge(session) })
    }
}

/// A BLOCK_STATUS without what is in its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SelectiveStatus {
    offset: u64,
    one: bool,
}

impl SelectiveStatus {
    /// Reads and judges the payload: a 64-bit length, and the 32-bit ids of some of the contexts that were agreed
    /// on, each once.
    pub fn complete(&self, payload: &[u8], session: &Session) -> Result<Request, WireError> {
        let mut fields = Fields::new(payload);
        let length = fields.u64().ok_or(WireError::Invalid)?;
        let mut contexts = ContextSet::default();
        while !fields.is_empty() {
            let number = fields.u32().and_then(context::number).ok_or(WireError::Invalid)?;
            if !session.agreement.contexts.contains(number) || !contexts.insert(number) {
                return Err(WireError::Invalid);
            }
        }
        let inside = end(self.offset, length).is_some_and(|end| end <= session.export.size_bytes());
        if contexts.is_empty() || length == 0 || !inside {
            return Err(WireError::Invalid);
        }
        Ok(Request::BlockStatus(StatusQuery { offset: self.offset, length, one: self.one, contexts }))
    }
}

/// The byte behind a range, if there is such a number.
fn end(offset: u64, length: u64) -> Option<u64> {
    offset.checked_add(length)
}

/// The fields of a header, not yet judged.
struct Header {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
}

impl Header {
    fn parse(bytes: &[u8], dialect: Dialect) -> Result<Self, Violation> {
        const ENOUGH: &str = "the caller brings a whole header";
        let mut fields = Fields::new(bytes);
        let magic = fields.u32().expect(ENOUGH);
        let expected = match dialect {
            Dialect::Extended => wire::EXTENDED_REQUEST_MAGIC,
            Dialect::Simple | Dialect::Structured => wire::REQUEST_MAGIC,
        };
        if magic != expected {
            return Err(Violation::Magic(magic));
        }
        Ok(Self {
            flags: fields.u16().expect(ENOUGH),
            command: fields.u16().expect(ENOUGH),
            cookie: fields.u64().expect(ENOUGH),
            offset: fields.u64().expect(ENOUGH),
            length: match dialect {
                Dialect::Extended => fields.u64().expect(ENOUGH),
                Dialect::Simple | Dialect::Structured => fields.u32().expect(ENOUGH).into(),
            },
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// How many bytes follow the header. A compact header's command says so, an extended one's flag.
    fn payload_bytes(&self, dialect: Dialect) -> Result<u64, Violation> {
        let is_write = self.command == command::WRITE;
        let follows = match dialect {
            Dialect::Simple | Dialect::Structured => is_write,
            Dialect::Extended => self.has(command_flag::PAYLOAD_LEN),
        };
        if is_write && !follows && self.length > 0 {
            return Err(Violation::UnannouncedPayload);
        }
        Ok(if follows { self.length } else { 0 })
    }

    /// Whether this is a BLOCK_STATUS in good order that has a payload.
    fn has_status_payload(&self, agreement: &Agreement) -> bool {
        let known = command_flag::FUA | command_flag::REQ_ONE | command_flag::PAYLOAD_LEN;
        self.command == command::BLOCK_STATUS
            && agreement.has_status_payload()
            && self.has(command_flag::PAYLOAD_LEN)
            && self.flags & !known == 0
    }

    /// The checks, in this order: command and flags, permission, range. A client that asks for something
    /// meaningless learns that first; a read-only export says so whatever the range.
    fn judge(&self, session: &Session) -> Result<Request, WireError> {
        let Session { export, agreement } = session;
        // What applies to the command: flags besides FUA (legal everywhere), whether it modifies, and the
        // error for a range outside the export.
        let (flags, modifies, outside) = match self.command {
            command::READ if agreement.dialect.has_chunks() => (command_flag::DF, false, WireError::Invalid),
            command::READ | command::CACHE => (0, false, WireError::Invalid),
            command::WRITE if agreement.dialect == Dialect::Extended => {
                (command_flag::PAYLOAD_LEN, true, WireError::NoSpace)
            }
            command::WRITE => (0, true, WireError::NoSpace),
            command::TRIM => (0, true, WireError::Invalid),
            command::WRITE_ZEROES => {
                (command_flag::NO_HOLE | command_flag::FAST_ZERO, true, WireError::NoSpace)
            }
            command::FLUSH => return self.judge_flush(),
            command::BLOCK_STATUS if !agreement.contexts.is_empty() => {
                (command_flag::REQ_ONE, false, WireError::Invalid)
            }
            _ => return Err(WireError::Invalid),
        };
        if self.flags & !(flags | command_flag::FUA) != 0 {
            return Err(WireError::Invalid);
        }
        self.check_range(export, modifies, outside)?;
        self.in_range(agreement)
    }

    /// Permission and range.
    fn check_range(&self, export: &Export, modifies: bool, outside: WireError) -> Result<(), WireError> {
        if modifies && export.read_only() {
            return Err(WireError::NotPermitted);
        }
        match end(self.offset, self.length) {
            Some(end) if end <= export.size_bytes() => Ok(()),
            _ => Err(outside),
        }
    }

    /// FLUSH has no range: the fields are reserved.
    fn judge_flush(&self) -> Result<Request, WireError> {
        let reserved_is_zero = self.offset == 0 && self.length == 0;
        if reserved_is_zero && self.flags & !command_flag::FUA == 0 {
            Ok(Request::Flush)
        } else {
            Err(WireError::Invalid)
        }
    }

    /// The request, of a command whose flags and range were checked.
    fn in_range(&self, agreement: &Agreement) -> Result<Request, WireError> {
        let (offset, length) = (self.offset, self.length);
        let durability = if self.has(command_flag::FUA) { Durability::Durable } else { Durability::Volatile };
        Ok(match self.command {
            // There is no extent of no bytes, and no reply without an extent.
            command::BLOCK_STATUS if length == 0 => return Err(WireError::Invalid),
            _ if length == 0 => Request::Nothing,
            command::READ => Request::Read { offset, length: self.payload_length()? },
            command::WRITE => Request::Write { offset, length: self.payload_length()?, durability },
            command::TRIM => Request::Discard { offset, length, durability },
            command::WRITE_ZEROES => Request::Zero { offset, length, mode: self.zero_mode(), durability },
            command::BLOCK_STATUS => Request::BlockStatus(StatusQuery {
                offset,
                length,
                one: self.has(command_flag::REQ_ONE),
                contexts: agreement.contexts,
            }),
            _ => Request::Cache { length },
        })
    }

    /// The length of the data that goes with the request or with its reply.
    fn payload_length(&self) -> Result<u32, WireError> {
        match u32::try_from(self.length) {
            Ok(length) if length <= wire::MAX_PAYLOAD_BYTES => Ok(length),
            _ => Err(WireError::Invalid),
        }
    }

    fn zero_mode(&self) -> ZeroMode {
        match (self.has(command_flag::NO_HOLE), self.has(command_flag::FAST_ZERO)) {
            (false, false) => ZeroMode::MayUnmap,
            (true, false) => ZeroMode::KeepAllocated,
            (false, true) => ZeroMode::FastOnly,
            (true, true) => ZeroMode::FastKeepAllocated,
        }
    }
}
