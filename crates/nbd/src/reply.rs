//! Replies of the transmission phase, sans I/O: the errors the wire knows, and the simple reply.

use sealblk_block::BlockError;

use crate::request::Request;
use crate::wire;

/// The errors that may stand in a reply. No other number ever leaves this server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// EPERM: the export is read-only.
    NotPermitted,
    /// EIO: the store failed.
    Io,
    /// EINVAL: the request makes no sense here.
    Invalid,
    /// ENOSPC: past the end, or the store is full.
    NoSpace,
    /// ENOTSUP: zeroing would not be fast.
    NotSupported,
    /// ESHUTDOWN: the server is going away.
    ShuttingDown,
}

impl WireError {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::NotSupported => 95,
            Self::ShuttingDown => 108,
        }
    }

    /// What a client learns of `error`, which `request` met. The only place where an error of the store
    /// becomes a number; the details stay on this side.
    pub fn of(error: &BlockError, request: &Request) -> Self {
        match error {
            BlockError::NoSpace { .. } => Self::NoSpace,
            BlockError::ReadOnly { .. } => Self::NotPermitted,
            // ENOTSUP is an answer to FAST_ZERO only; a client that asked for less must be able to rely on it.
            BlockError::Unsupported { .. } if request.may_be_unsupported() => Self::NotSupported,
            BlockError::Unsupported { .. } => Self::Invalid,
            BlockError::Latched { .. } | BlockError::Io { .. } => Self::Io,
        }
    }
}

/// The header of a simple reply: success, or an error. After a successful READ the data follows; otherwise
/// nothing does.
pub fn simple_reply(cookie: u64, error: Option<WireError>) -> [u8; wire::SIMPLE_REPLY_BYTES] {
    let error = error.map_or(0, WireError::code);
    let mut header = [0; wire::SIMPLE_REPLY_BYTES];
    header[..4].copy_from_slice(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&error.to_be_bytes());
    header[8..].copy_from_slice(&cookie.to_be_bytes());
    header
}
