//! Replies of the transmission phase, sans I/O: the errors the wire knows, and how replies are framed.
//!
//! A reply is a [`Head`] of a few dozen bytes and what follows it: data, an error's text, or nothing. Every READ
//! is read whole before its reply is made, so a reply is either an error or complete: one chunk, which
//! is the last. Block status is the exception: its chunks are made together, in one buffer ([`StatusChunks`]).

use std::ops::Deref;

use sealblk_block::BlockError;

use crate::context::{self, StatusExtent};
use crate::request::Request;
use crate::session::Dialect;
use crate::wire::{self, chunk};

/// The longest head: an extended header, an offset and a 32-bit length.
const MAX_HEAD_BYTES: usize = wire::EXTENDED_REPLY_BYTES + 12;
/// How many extents are told of a context in one reply. A client asks again from where they end. Each costs the
/// file system a question or two, during which the lane does nothing else.
pub const MAX_EXTENTS: usize = 512;
/// The longest extent in 32 bits that is a multiple of every request size there is.
const MAX_COMPACT_EXTENT: u64 = 0xffff_0000;

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

    /// The text for people. Nothing of the request or of this machine is in it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => "the export is read-only",
            Self::Io => "the volume's store failed",
            Self::Invalid => "a command, flag, length or range that this export does not serve",
            Self::NoSpace => "the range ends past the export, or the volume's store is full",
            Self::NotSupported => "zeroing this range would not be faster than writing",
            Self::ShuttingDown => "the server is shutting down",
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

/// Which request is answered, in the client's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    /// The client's name for the request; it goes back unchanged.
    pub cookie: u64,
    /// The request's offset, whether it makes sense or not; extended headers send it back.
    pub offset: u64,
}

/// The bytes of a reply before its data or text.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; MAX_HEAD_BYTES],
    length: usize,
}

impl Head {
    /// No bytes: the reply is all data.
    pub(crate) fn empty() -> Self {
        Self { bytes: [0; MAX_HEAD_BYTES], length: 0 }
    }

    fn put<const N: usize>(&mut self, field: [u8; N]) {
        let end = self.length + N;
        self.bytes[self.length..end].copy_from_slice(&field);
        self.length = end;
    }

    fn with<const N: usize>(mut self, field: [u8; N]) -> Self {
        self.put(field);
        self
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Dialect {
    /// Success without data.
    pub fn success(self, to: ReplyTo) -> Head {
        match self {
            Self::Simple => simple(to, 0),
            _ => self.chunk(to, chunk::DONE, chunk::NONE, 0),
        }
    }

    /// An error, and the text to be sent after it.
    pub fn error(self, to: ReplyTo, error: WireError) -> (Head, &'static str) {
        if self == Self::Simple {
            return (simple(to, error.code()), "");
        }
        let text = error.text();
        let length = u16::try_from(text.len()).expect("texts are short");
        let head = self.chunk(to, chunk::DONE, chunk::ERROR, u64::from(length) + 6);
        (head.with(error.code().to_be_bytes()).with(length.to_be_bytes()), text)
    }

    /// A successful READ of `length` bytes, which are to be sent after it.
    pub fn data(self, to: ReplyTo, length: u32) -> Head {
        match self {
            Self::Simple => simple(to, 0),
            _ => self
                .chunk(to, chunk::DONE, chunk::OFFSET_DATA, u64::from(length) + 8)
                .with(to.offset.to_be_bytes()),
        }
    }

    /// A successful READ of `length` zeros, which are not sent; `None` where they must be.
    pub fn hole(self, to: ReplyTo, length: u32) -> Option<Head> {
        let head = || self.chunk(to, chunk::DONE, chunk::OFFSET_HOLE, 12).with(to.offset.to_be_bytes());
        self.has_chunks().then(|| head().with(length.to_be_bytes()))
    }

    /// A chunk's header.
    fn chunk(self, to: ReplyTo, flags: u16, kind: u16, length: u64) -> Head {
        let magic = match self {
            Self::Extended => wire::EXTENDED_REPLY_MAGIC,
            _ => wire::STRUCTURED_REPLY_MAGIC,
        };
        let head = Head::empty()
            .with(magic.to_be_bytes())
            .with(flags.to_be_bytes())
            .with(kind.to_be_bytes())
            .with(to.cookie.to_be_bytes());
        match self {
            Self::Extended => head.with(to.offset.to_be_bytes()).with(length.to_be_bytes()),
            _ => head.with(u32::try_from(length).expect("payloads have at most 32 MiB").to_be_bytes()),
        }
    }

    /// How many bytes the block status of so many contexts takes at most.
    pub fn status_bytes(self, contexts: usize) -> usize {
        let (fixed, extent) = self.status_layout();
        contexts * (fixed + MAX_EXTENTS * extent)
    }

    /// Bytes of a status chunk before its extents, and of an extent.
    fn status_layout(self) -> (usize, usize) {
        match self {
            Self::Extended => (wire::EXTENDED_REPLY_BYTES + 8, 16),
            _ => (wire::STRUCTURED_REPLY_BYTES + 4, 8),
        }
    }
}

/// A simple reply's header.
fn simple(to: ReplyTo, error: u32) -> Head {
    Head::empty()
        .with(wire::SIMPLE_REPLY_MAGIC.to_be_bytes())
        .with(error.to_be_bytes())
        .with(to.cookie.to_be_bytes())
}

/// Writes the reply to a BLOCK_STATUS: one chunk for each context.
pub struct StatusChunks<'b> {
    dialect: Dialect,
    to: ReplyTo,
    bytes: &'b mut [u8],
    written: usize,
}

impl<'b> StatusChunks<'b> {
    /// Begins a reply in `bytes`, of which there are [`Dialect::status_bytes`].
    pub fn new(dialect: Dialect, to: ReplyTo, bytes: &'b mut [u8]) -> Self {
        Self { dialect, to, bytes, written: 0 }
    }

    /// Appends the chunk of one context; equal neighbours among its extents become one. `last`: it is the
    /// reply's last. At least one extent, none empty; those past [`MAX_EXTENTS`] are left out.
    pub fn push(&mut self, number: usize, last: bool, extents: impl Iterator<Item = StatusExtent>) {
        let (fixed, extent_bytes) = self.dialect.status_layout();
        let start = self.written;
        self.written += fixed;
        let mut count = 0_u32;
        for extent in coalesced(extents).take(MAX_EXTENTS) {
            let whole = self.push_extent(extent);
            count += 1;
            if !whole {
                break;
            }
        }
        let flags = if last { chunk::DONE } else { 0 };
        let id = context::id(number).to_be_bytes();
        let of_extents = u64::from(count) * extent_bytes as u64;
        let head = match self.dialect {
            Dialect::Extended => self
                .dialect
                .chunk(self.to, flags, chunk::BLOCK_STATUS_EXT, of_extents + 8)
                .with(id)
                .with(count.to_be_bytes()),
            _ => self.dialect.chunk(self.to, flags, chunk::BLOCK_STATUS, of_extents + 4).with(id),
        };
        self.bytes[start..start + fixed].copy_from_slice(&head);
    }

    /// How many bytes the reply has so far.
    pub fn len(&self) -> usize {
        self.written
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.written == 0
    }

    /// Appends an extent. One too long for 32 bits is cut (CVE-2025-47711 was an assertion that there is none)
    /// and must be the last: `false`.
    fn push_extent(&mut self, extent: StatusExtent) -> bool {
        let cut = extent.bytes.min(MAX_COMPACT_EXTENT);
        if self.dialect == Dialect::Extended {
            self.put(extent.bytes.to_be_bytes());
            self.put(u64::from(extent.flags).to_be_bytes());
            return true;
        }
        self.put(u32::try_from(cut).expect("it was cut").to_be_bytes());
        self.put(extent.flags.to_be_bytes());
        cut == extent.bytes
    }

    fn put<const N: usize>(&mut self, field: [u8; N]) {
        let end = self.written + N;
        self.bytes[self.written..end].copy_from_slice(&field);
        self.written = end;
    }
}

/// The extents with equal neighbours made one.
fn coalesced(extents: impl Iterator<Item = StatusExtent>) -> impl Iterator<Item = StatusExtent> {
    let mut extents = extents.peekable();
    std::iter::from_fn(move || {
        let mut run = extents.next()?;
        while let Some(same) = extents.next_if(|next| next.flags == run.flags) {
            run.bytes = run.bytes.saturating_add(same.bytes);
        }
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: ReplyTo = ReplyTo { cookie: 0x0102_0304_0506_0708, offset: 0x1000 };
    const ALL: [WireError; 6] = [
        WireError::NotPermitted,
        WireError::Io,
        WireError::Invalid,
        WireError::NoSpace,
        WireError::NotSupported,
        WireError::ShuttingDown,
    ];

    #[test]
    fn every_head_fits_and_says_its_length() {
        for error in ALL {
            assert_eq!(Dialect::Simple.error(TO, error).0.len(), 16);
            let (head, text) = Dialect::Structured.error(TO, error);
            assert_eq!((head.len(), usize::from(head[19])), (26, 6 + text.len()));
            assert_eq!(Dialect::Extended.error(TO, error).0.len(), 38);
        }
        assert_eq!(Dialect::Extended.hole(TO, 1).expect("chunks").len(), MAX_HEAD_BYTES);
        assert_eq!(Dialect::Extended.data(TO, u32::MAX)[24..32], (u64::from(u32::MAX) + 8).to_be_bytes());
        assert!(Dialect::Simple.hole(TO, 1).is_none());
    }

    /// The extents of a status chunk in the compact form.
    fn compact(extents: &[(u64, u32)]) -> Vec<(u32, u32)> {
        let mut bytes = vec![0; Dialect::Structured.status_bytes(1)];
        let mut chunks = StatusChunks::new(Dialect::Structured, TO, &mut bytes);
        chunks.push(0, true, extents.iter().map(|&(bytes, flags)| StatusExtent { bytes, flags }));
        let len = chunks.len();
        assert_eq!(bytes[16..20], u32::try_from(len - 20).expect("small").to_be_bytes());
        let number = |field: &[u8]| u32::from_be_bytes(field.try_into().expect("four bytes"));
        bytes[24..len].chunks(8).map(|extent| (number(&extent[..4]), number(&extent[4..]))).collect()
    }

    #[test]
    fn equal_neighbours_are_one_extent() {
        assert_eq!(compact(&[(512, 0), (512, 0), (1024, 3), (1, 0)]), [(1024, 0), (1024, 3), (1, 0)]);
    }

    #[test]
    fn cve_2025_47711_an_extent_of_more_than_32_bits_is_cut_and_ends_the_chunk() {
        assert_eq!(compact(&[(1 << 32, 0), (512, 3)]), [(0xffff_0000, 0)]);
        assert_eq!(compact(&[(512, 3), (u64::MAX, 0), (u64::MAX, 0)]), [(512, 3), (0xffff_0000, 0)]);
    }

    #[test]
    fn a_reply_has_a_bounded_number_of_extents() {
        let many: Vec<(u64, u32)> = (0..2000).map(|index| (512, index % 2)).collect();
        assert_eq!(compact(&many).len(), MAX_EXTENTS);
    }
}
