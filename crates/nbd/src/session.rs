//! What a client and this server have agreed on by the end of the negotiation.
//!
//! [`crate::negotiation`] makes it, [`crate::request`] reads requests by it, and [`crate::reply`] frames
//! replies by it; it never changes afterwards.

use crate::context::ContextSet;
use crate::export::Export;
use crate::wire;

/// How requests and replies are framed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, replies in chunks (STRUCTURED_REPLY).
    Structured,
    /// Requests and chunks with 64-bit lengths (EXTENDED_HEADERS).
    Extended,
}

impl Dialect {
    /// How long a request's header is.
    pub const fn request_header_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => wire::REQUEST_HEADER_BYTES,
            Self::Extended => wire::EXTENDED_REQUEST_HEADER_BYTES,
        }
    }

    /// Whether replies are chunks.
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }
}

/// What was agreed on by options; at first, nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// How messages are framed.
    pub dialect: Dialect,
    /// What BLOCK_STATUS tells.
    pub contexts: ContextSet,
}

impl Agreement {
    /// Whether BLOCK_STATUS may name its contexts in a payload.
    pub fn has_status_payload(&self) -> bool {
        self.dialect == Dialect::Extended && !self.contexts.is_empty()
    }
}

/// An export, and the terms on which a client uses it.
#[derive(Clone, Debug)]
pub struct Session {
    /// The export.
    pub export: Export,
    /// The terms.
    pub agreement: Agreement,
}
