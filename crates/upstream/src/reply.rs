//! The headers of replies, read and checked as far as they can be without knowing the request.

use std::io;

use sealblk_nbd::wire::{self, Fields, chunk};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The number in a reply that says: the server is going away.
pub(crate) const ESHUTDOWN: u32 = 108;
/// The most extents in one answer, as the protocol allows.
const MAX_EXTENTS: u32 = 1 << 20;
/// The longest chunk that tells an error: number, length, text, offset, and room for what may come.
const MAX_ERROR_BYTES: u32 = 6 + 4096 + 8 + 256;
/// How much is read at a time of what is not wanted or not yet trusted.
const PIECE_BYTES: usize = 16 * 1024;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The stream ended or failed.
    #[error("the connection to the NBD server broke")]
    Broken(#[from] io::Error),
    /// The server breaks the rules.
    #[error("the NBD server broke the protocol: {0}")]
    Malformed(&'static str),
    /// It said so.
    #[error("the NBD server is shutting down")]
    ShuttingDown,
    /// Another connection to the same export was lost, and this one may lead to a server that is no more.
    #[error("another connection to the NBD export was lost")]
    Stale,
}

/// The head of a reply, or of one of its chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) cookie: u64,
    pub(crate) body: Body,
}

/// What a head announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    /// A simple reply. Nothing follows an error; the data follows a READ's success.
    Simple { error: u32 },
    /// A chunk of `length` bytes; `last` of its reply or not.
    Chunk { kind: ChunkKind, last: bool, length: u32 },
}

/// Kinds of chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChunkKind {
    None,
    Data,
    Hole,
    Status,
    Error,
}

/// Reads the head of the next reply or chunk. `structured`: chunks were agreed on.
pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    structured: bool,
) -> Result<Head, LinkError> {
    match u32::from_be_bytes(read(stream).await?) {
        wire::SIMPLE_REPLY_MAGIC => {
            let rest: [u8; wire::SIMPLE_REPLY_BYTES - 4] = read(stream).await?;
            let mut fields = Fields::new(&rest);
            let (Some(error), Some(cookie)) = (fields.u32(), fields.u64()) else {
                return Err(LinkError::Malformed("a simple reply is cut off"));
            };
            Ok(Head { cookie, body: Body::Simple { error } })
        }
        wire::STRUCTURED_REPLY_MAGIC if structured => {
            let rest: [u8; wire::STRUCTURED_REPLY_BYTES - 4] = read(stream).await?;
            chunk_head(Fields::new(&rest))
        }
        wire::STRUCTURED_REPLY_MAGIC => {
            Err(LinkError::Malformed("it sends a chunk, which was not agreed on"))
        }
        _ => Err(LinkError::Malformed("a reply has the wrong magic")),
    }
}

fn chunk_head(mut fields: Fields<'_>) -> Result<Head, LinkError> {
    let (Some(flags), Some(kind), Some(cookie), Some(length)) =
        (fields.u16(), fields.u16(), fields.u64(), fields.u32())
    else {
        return Err(LinkError::Malformed("a chunk is cut off"));
    };
    if flags & !chunk::DONE != 0 {
        return Err(LinkError::Malformed("a chunk has unknown flags"));
    }
    let last = flags & chunk::DONE != 0;
    let is_error = kind & (1 << 15) != 0;
    let (kind, fits) = match kind {
        chunk::NONE => (ChunkKind::None, length == 0 && last),
        chunk::OFFSET_DATA => (ChunkKind::Data, length > 8),
        chunk::OFFSET_HOLE => (ChunkKind::Hole, length == 12),
        chunk::BLOCK_STATUS => {
            (ChunkKind::Status, length >= 12 && length % 8 == 4 && length / 8 <= MAX_EXTENTS)
        }
        _ if is_error => (ChunkKind::Error, (6..=MAX_ERROR_BYTES).contains(&length)),
        _ => return Err(LinkError::Malformed("a chunk is of an unknown type")),
    };
    if !fits {
        return Err(LinkError::Malformed("a chunk has a length that its type cannot have"));
    }
    Ok(Head { cookie, body: Body::Chunk { kind, last, length } })
}

/// Reads the body of an error chunk of `length` bytes: its number.
pub(crate) async fn read_error(stream: &mut (impl AsyncRead + Unpin), length: u32) -> Result<u32, LinkError> {
    let body = read_vec(stream, length).await?;
    let mut fields = Fields::new(&body);
    let error = fields.u32().filter(|error| *error != 0);
    let text = fields.u16().and_then(|text| fields.bytes(text.into()));
    match (error, text) {
        (Some(error), Some(_)) => Ok(error),
        _ => Err(LinkError::Malformed("an error chunk has no error, or a text longer than itself")),
    }
}

/// Reads `length` bytes, with memory only for what has come.
pub(crate) async fn read_vec(
    stream: &mut (impl AsyncRead + Unpin),
    length: u32,
) -> Result<Vec<u8>, LinkError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let have = bytes.len();
        bytes.resize(length.min(have + PIECE_BYTES), 0);
        stream.read_exact(bytes.get_mut(have..).unwrap_or(&mut [])).await?;
    }
    Ok(bytes)
}

pub(crate) async fn read<const N: usize>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<[u8; N], LinkError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
