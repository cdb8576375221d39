//! Errors of a block device: each variant is something the caller decides on.

use std::fmt;

use crate::sector::Lba;

/// What a failed operation was doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Operation {
    Open,
    Read,
    Write,
    Zero,
    Discard,
    Flush,
    Extents,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "write zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Extents => "map extents",
        })
    }
}

/// Why a request on a block device failed. Nothing of a failed write may be assumed written or unwritten.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The store is full (ENOSPC, EDQUOT, EFBIG).
    #[error("{operation} at {at}: no space left in the backing store")]
    NoSpace {
        /// What was being done.
        operation: Operation,
        /// Where it began.
        at: Lba,
    },
    /// The device was opened read-only.
    #[error("{operation}: the device is read-only")]
    ReadOnly {
        /// What was being done.
        operation: Operation,
    },
    /// An earlier flush failed, so that nobody knows what is durable: no write or flush succeeds until
    /// the device is opened again (design §4.5).
    #[error("{operation}: an earlier flush failed; the device takes no writes until it is opened again")]
    Latched {
        /// What was being done.
        operation: Operation,
    },
    /// This device cannot do it at all, or not faster than by writing (fast zero).
    #[error("{operation}: not supported by the backing store")]
    Unsupported {
        /// What was being done.
        operation: Operation,
    },
    /// Anything else from below. A short transfer is `UnexpectedEof` or `WriteZero`.
    #[error("{operation} at {at} failed")]
    Io {
        /// What was being done.
        operation: Operation,
        /// Where it began.
        at: Lba,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
