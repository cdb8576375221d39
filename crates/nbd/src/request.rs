//! From the 28 bytes of a request's header to a checked [`Request`]: the only validation on the data path.
//!
//! After [`Arrival::check`] nothing asks again whether a range fits or a write is allowed. Sans I/O. It
//! also says how many payload bytes follow the header, because they must be taken from the stream
//! whatever the verdict is: a payload left there would be read as the next request.

use sealblk_block::{Durability, ZeroMode};

use crate::export::Export;
use crate::reply::WireError;
use crate::wire::{self, Fields, command, command_flag};

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
        length: u32,
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
        length: u32,
        /// When to acknowledge.
        durability: Durability,
    },
    /// Make everything acknowledged durable.
    Flush,
    /// Nothing to do: CACHE, which is advice that the page cache needs no help with, and any command
    /// on zero bytes.
    Nothing,
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
    PayloadLength(u32),
}

/// One request header, read and judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// To be answered under `cookie`.
    Request {
        /// The client's name for the request; it goes back unchanged.
        cookie: u64,
        /// Bytes that follow the header.
        payload_bytes: u32,
        /// What to do, or the error to answer once the payload is out of the way.
        verdict: Result<Request, WireError>,
    },
    /// The client is done. Answered by finishing what was accepted, and closing.
    Disconnect,
}

impl Arrival {
    /// Reads and judges a header.
    pub fn check(header: &[u8; wire::REQUEST_HEADER_BYTES], export: &Export) -> Result<Self, Violation> {
        let header = Header::parse(header)?;
        if header.command == command::DISCONNECT {
            return Ok(Self::Disconnect);
        }
        let payload_bytes = if header.command == command::WRITE { header.length } else { 0 };
        if payload_bytes > wire::MAX_PAYLOAD_BYTES {
            return Err(Violation::PayloadLength(payload_bytes));
        }
        Ok(Self::Request { cookie: header.cookie, payload_bytes, verdict: header.judge(export) })
    }
}

/// The fields of a header, not yet judged.
struct Header {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl Header {
    fn parse(bytes: &[u8; wire::REQUEST_HEADER_BYTES]) -> Result<Self, Violation> {
        const ENOUGH: &str = "a header has 28 bytes";
        let mut fields = Fields::new(bytes);
        let magic = fields.u32().expect(ENOUGH);
        if magic != wire::REQUEST_MAGIC {
            return Err(Violation::Magic(magic));
        }
        Ok(Self {
            flags: fields.u16().expect(ENOUGH),
            command: fields.u16().expect(ENOUGH),
            cookie: fields.u64().expect(ENOUGH),
            offset: fields.u64().expect(ENOUGH),
            length: fields.u32().expect(ENOUGH),
        })
    }

    /// The checks, in this order: command and flags, permission, range. A client that asks for something
    /// meaningless learns that first; a read-only export says so whatever the range.
    fn judge(&self, export: &Export) -> Result<Request, WireError> {
        // What applies to the command: flags besides FUA (legal everywhere), whether it modifies, and the
        // error for a range outside the export.
        let (flags, modifies, outside) = match self.command {
            command::READ | command::CACHE => (0, false, WireError::Invalid),
            command::WRITE => (0, true, WireError::NoSpace),
            command::TRIM => (0, true, WireError::Invalid),
            command::WRITE_ZEROES => {
                (command_flag::NO_HOLE | command_flag::FAST_ZERO, true, WireError::NoSpace)
            }
            command::FLUSH => return self.judge_flush(),
            _ => return Err(WireError::Invalid),
        };
        if self.flags & !(flags | command_flag::FUA) != 0 {
            return Err(WireError::Invalid);
        }
        if modifies && export.read_only() {
            return Err(WireError::NotPermitted);
        }
        match self.offset.checked_add(u64::from(self.length)) {
            Some(end) if end <= export.size_bytes() => {}
            _ => return Err(outside),
        }
        if self.length == 0 {
            return Ok(Request::Nothing);
        }
        self.in_range()
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
    fn in_range(&self) -> Result<Request, WireError> {
        let (offset, length) = (self.offset, self.length);
        let fua = self.flags & command_flag::FUA != 0;
        let durability = if fua { Durability::Durable } else { Durability::Volatile };
        Ok(match self.command {
            command::READ if length > wire::MAX_PAYLOAD_BYTES => return Err(WireError::Invalid),
            command::READ => Request::Read { offset, length },
            command::WRITE => Request::Write { offset, length, durability },
            command::TRIM => Request::Discard { offset, length, durability },
            command::WRITE_ZEROES => Request::Zero { offset, length, mode: self.zero_mode(), durability },
            _ => Request::Nothing,
        })
    }

    fn zero_mode(&self) -> ZeroMode {
        let flag = |flag| self.flags & flag != 0;
        match (flag(command_flag::NO_HOLE), flag(command_flag::FAST_ZERO)) {
            (false, false) => ZeroMode::MayUnmap,
            (true, false) => ZeroMode::KeepAllocated,
            (false, true) => ZeroMode::FastOnly,
            (true, true) => ZeroMode::FastKeepAllocated,
        }
    }
}
