//! The numbers of the NBD protocol, and a checked reader of big-endian fields.
//!
//! No I/O, no decisions: [`crate::negotiation`], [`crate::request`] and [`crate::reply`] give them a
//! meaning. Names are those of the protocol document (NetworkBlockDevice/nbd, doc/proto.md) without
//! their `NBD_` prefix.

/// First eight bytes of a server: `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle server, and the start of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request with a compact header.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of every request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of every chunk of a reply with extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes in an option's header: magic, option, length.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes in a request's header: magic, flags, type, cookie, offset, length.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes in a request's extended header: the same with a 64-bit length.
pub const EXTENDED_REQUEST_HEADER_BYTES: usize = 32;
/// Bytes in a simple reply's header: magic, error, cookie.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes in a structured chunk's header: magic, flags, type, cookie, length.
pub const STRUCTURED_REPLY_BYTES: usize = 20;
/// Bytes in an extended chunk's header: magic, flags, type, cookie, offset, 64-bit length.
pub const EXTENDED_REPLY_BYTES: usize = 32;
/// The zeros after the answer to `OPT_EXPORT_NAME`, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// The longest string in either direction, in bytes: names, descriptions, error texts.
pub const MAX_STRING_BYTES: usize = 4096;
/// The longest payload of a READ or WRITE, in bytes: advertised, and what clients assume when they are told nothing.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// Flags of the greeting, server to client.
pub mod handshake_flag {
    /// Options are answered, also when they are unknown.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The padding after `OPT_EXPORT_NAME` may be left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Flags of the client's answer to the greeting.
pub mod client_flag {
    /// The client knows that options are answered.
    pub const FIXED_NEWSTYLE: u32 = 1 << 0;
    /// The padding after `OPT_EXPORT_NAME` is left out.
    pub const NO_ZEROES: u32 = 1 << 1;
}

/// Options that this server knows by name.
pub mod option {
    /// Choose an export and begin transmission; cannot fail politely.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go over to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and begin transmission.
    pub const GO: u32 = 7;
    /// Answer in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose the metadata contexts that BLOCK_STATUS answers for.
    pub const SET_META_CONTEXT: u32 = 10;
    /// 64-bit lengths in both directions.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies; bit 31 marks an error.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name and description, answering `LIST`.
    pub const SERVER: u32 = 2;
    /// A fact about an export, answering `INFO` and `GO`.
    pub const INFO: u32 = 3;
    /// A metadata context, answering `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
    pub const META_CONTEXT: u32 = 4;
    /// The option is unknown.
    pub const ERR_UNSUP: u32 = (1 << 31) | 1;
    /// The option is known, and switched off.
    pub const ERR_POLICY: u32 = (1 << 31) | 2;
    /// The option's data is malformed, or the option is not allowed now.
    pub const ERR_INVALID: u32 = (1 << 31) | 3;
    /// TLS comes first.
    pub const ERR_TLS_REQD: u32 = (1 << 31) | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) | 6;
    /// The server is going away.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) | 7;
    /// The option is larger than the server is willing to process.
    pub const ERR_TOO_BIG: u32 = (1 << 31) | 9;
    /// The option says less than extended headers, which were agreed on.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) | 10;
}

/// Types of facts inside an `option_reply::INFO`.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's canonical name.
    pub const NAME: u16 = 1;
    /// The export's description.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum request size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flag {
    /// The other bits mean something.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is understood, on every command.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES and NO_HOLE are understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is understood; only with chunks.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one device, and a flush on one covers them all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS may name its contexts in a payload; only with extended headers.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read a range.
    pub const READ: u16 = 0;
    /// Write a range; the payload follows the header.
    pub const WRITE: u16 = 1;
    /// End the session; not answered.
    pub const DISCONNECT: u16 = 2;
    /// Make everything acknowledged durable.
    pub const FLUSH: u16 = 3;
    /// The content of a range is no longer needed.
    pub const TRIM: u16 = 4;
    /// A range will be read soon.
    pub const CACHE: u16 = 5;
    /// Make a range read as zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Tell what is known of a range, in the contexts that were chosen.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod command_flag {
    /// Reply only when the effect is durable.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES keeps the space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ is answered with one chunk of content.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS is answered with one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES fails rather than being as slow as a write.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The header's length is that of a payload which follows; only in extended headers.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Flags and types of the chunks of a reply.
pub mod chunk {
    /// Flag: no further chunk of this reply follows.
    pub const DONE: u16 = 1 << 0;
    /// No content.
    pub const NONE: u16 = 0;
    /// Content: an offset and the bytes there.
    pub const OFFSET_DATA: u16 = 1;
    /// Content: an offset and how many zeros are there.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a context, with 32-bit lengths.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents of a context, with 64-bit lengths; only in extended headers.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error and a text. Bit 15 marks an error.
    pub const ERROR: u16 = (1 << 15) | 1;
}

/// What the context `base:allocation` says of an extent.
pub mod allocation {
    /// There is no space for it in the store.
    pub const HOLE: u32 = 1 << 0;
    /// It reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// Takes big-endian fields off the front of a byte string. Each method answers `None` when fewer bytes
/// are left than it needs, and then takes none.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A 32-bit length and that many bytes.
    pub fn counted_bytes(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let count = ahead.u32()?;
        let bytes = ahead.bytes(usize::try_from(count).ok()?)?;
        *self = ahead;
        Some(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_does_not_fit_takes_nothing() {
        let mut fields = Fields::new(&[0, 0, 0, 9, 1, 2]);
        assert_eq!(fields.counted_bytes(), None);
        assert_eq!(fields.u64(), None);
        assert_eq!(fields.u32(), Some(9));
        assert_eq!(fields.u16(), Some(0x0102));
        assert!(fields.is_empty());
    }

    #[test]
    fn a_length_of_all_ones_does_not_overflow() {
        assert_eq!(Fields::new(&[0xff, 0xff, 0xff, 0xff, 0]).counted_bytes(), None);
    }
}
