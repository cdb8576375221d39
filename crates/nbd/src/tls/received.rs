//! The bytes that came from the socket: records, of which one may be open.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::{ContentType, Error, InvalidMessage};
use tokio::io::{AsyncRead, ReadBuf};

use super::stream::COPY_BYTES;

/// Kind, version, length (RFC 8446, section 5.1).
const HEADER_BYTES: usize = 5;
/// The most that the body of a record of TLS 1.2 may have (RFC 5246, section 6.2.3); what fewer bytes TLS 1.3 allows
/// the cipher sees to.
const MOST_BODY_BYTES: usize = (16 << 10) + 2048;
/// How much one read of the socket may bring: the better part of a request of 128 KiB. Every record that is cut by
/// the end is moved once more.
const CAPACITY_BYTES: usize = 7 * (HEADER_BYTES + MOST_BODY_BYTES);

/// See the module's header.
pub(super) struct Received {
    bytes: Box<[u8]>,
    /// Data of the record that was opened last, not yet taken; before `sealed`.
    data: Range<usize>,
    /// Records that were not opened, and the beginning of one.
    sealed: Range<usize>,
}

/// A record's place.
pub(super) struct Record {
    pub(super) kind: ContentType,
    pub(super) body: Range<usize>,
}

impl Received {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; CAPACITY_BYTES].into_boxed_slice(), data: 0..0, sealed: 0..0 }
    }

    /// Where there are records that were not opened.
    pub(super) fn sealed(&self) -> Range<usize> {
        self.sealed.clone()
    }

    pub(super) fn bytes(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.bytes[range]
    }

    /// The first `count` sealed bytes are done with.
    pub(super) fn discard(&mut self, count: usize) {
        self.sealed.start += count;
    }

    /// The first `count` sealed bytes are done with, but for `data` among them.
    pub(super) fn opened(&mut self, count: usize, data: Range<usize>) {
        debug_assert!(self.data.is_empty(), "a record is opened once the one before is taken");
        self.data = data;
        self.discard(count);
    }

    /// Moves as much data as is open and fits into `room`.
    pub(super) fn take_into(&mut self, room: &mut ReadBuf<'_>) {
        let count = room.remaining().min(self.data.len());
        for piece in self.bytes[self.data.start..self.data.start + count].chunks(COPY_BYTES) {
            room.put_slice(piece);
        }
        self.data.start += count;
    }

    /// The record at `from`, once all of it is here.
    pub(super) fn record_at(&self, from: usize) -> Result<Option<Record>, Error> {
        let Some((header, _)) = self.bytes[from..self.sealed.end].split_first_chunk() else {
            return Ok(None);
        };
        let &[kind, major, _, high, low] = header;
        let kind = match ContentType::from(kind) {
            ContentType::Unknown(_) => return Err(InvalidMessage::InvalidContentType.into()),
            known => known,
        };
        if major != 3 {
            return Err(InvalidMessage::UnknownProtocolVersion.into());
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MOST_BODY_BYTES {
            return Err(Error::PeerSentOversizedRecord);
        }
        let start = from + HEADER_BYTES;
        let body = start..start + length;
        Ok((body.end <= self.sealed.end).then_some(Record { kind, body }))
    }

    /// Reads once from `stream`; 0 bytes is its end, or that there is no room: no record needs as much.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.data.is_empty(), "nobody wants more while there is some");
        if self.sealed.start > 0 {
            self.bytes.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
        let mut room = ReadBuf::new(&mut self.bytes[self.sealed.end..]);
        ready!(Pin::new(stream).poll_read(context, &mut room))?;
        let count = room.filled().len();
        self.sealed.end += count;
        Poll::Ready(Ok(count))
    }
}
