//! One thread's reads, writes, flushes and extent maps on a [`super::FileDevice`].

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::SeekFrom;
use rustix::io::{Errno, ReadWriteFlags};

use super::aside::Aside;
use super::{Caching, Inner, Kind, known, learn};
use crate::buffer::Buffer;
use crate::device::{Allocation, BlockLane, Completion, Durability, Extent, ZeroMode};
use crate::error::{BlockError, Operation};
use crate::ring::Ring;
use crate::sector::{Lba, SECTOR_BYTES, SectorRange};
use crate::sync_gate::is_no_space;

/// One thread's way to a [`crate::FileDevice`].
pub struct FileLane {
    pub(super) inner: Arc<Inner>,
    pub(super) ring: Ring,
    /// Of a device through the page cache.
    aside: Option<Aside>,
}

/// What an inline attempt left to do.
enum Inline {
    /// All of the buffer was transferred.
    Done,
    /// This many bytes were; the ring does the rest, or says what is wrong.
    Rest(usize),
}

impl FileLane {
    pub(super) fn new(inner: Arc<Inner>, ring: Ring) -> Self {
        let aside = (inner.caching == Caching::Buffered).then(Aside::new).flatten();
        Self { inner, ring, aside }
    }

    pub(super) fn check_writable(&self, operation: Operation) -> Result<(), BlockError> {
        if self.inner.opened.read_only {
            return Err(BlockError::ReadOnly { operation });
        }
        self.inner.gate.check(operation)
    }

    pub(super) fn assert_inside(&self, range: SectorRange) {
        let geometry = self.inner.geometry();
        let unit_bytes = u64::from(geometry.unit_bytes);
        assert!(range.start.0.checked_add(range.count).is_some_and(|end| end <= geometry.sectors));
        assert!(
            range.start.byte_offset().is_multiple_of(unit_bytes) && range.bytes().is_multiple_of(unit_bytes)
        );
    }

    /// How a transfer may be tried inline; `None`: not at all. A file in memory never makes a lane wait,
    /// and does not know NOWAIT: a plain call is right for it, also where it was opened direct.
    fn inline_flags(&self, no_nowait: &AtomicBool, plain_else: bool) -> Option<ReadWriteFlags> {
        if self.inner.kind == (Kind::File { in_memory: true }) {
            return Some(ReadWriteFlags::empty());
        }
        if self.inner.caching == Caching::Direct {
            return None;
        }
        if !known(no_nowait) {
            return Some(ReadWriteFlags::NOWAIT);
        }
        plain_else.then_some(ReadWriteFlags::empty())
    }

    fn read_inline(&self, offset: u64, buffer: &mut [u8]) -> Inline {
        let learned = &self.inner.learned.no_nowait_read;
        let Some(flags) = self.inline_flags(learned, false) else { return Inline::Rest(0) };
        let len = buffer.len();
        let bytes = &mut [IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.inner.file, bytes, offset, flags) {
            Ok(done) if done == len => Inline::Done,
            // Zero bytes: the end of the file. The ring finds the same and makes it an error.
            Ok(done) => Inline::Rest(whole_units(done, self.inner.opened.unit_bytes)),
            Err(Errno::OPNOTSUPP) => {
                learn(learned);
                Inline::Rest(0)
            }
            Err(_) => Inline::Rest(0),
        }
    }

    fn write_inline(&self, offset: u64, buffer: &[u8]) -> Inline {
        let learned = &self.inner.learned.no_nowait_write;
        let Some(flags) = self.inline_flags(learned, self.inner.inline_writes) else {
            return Inline::Rest(0);
        };
        let bytes = &[IoSlice::new(buffer)];
        match rustix::io::pwritev2(&self.inner.file, bytes, offset, flags) {
            Ok(done) if done == buffer.len() => Inline::Done,
            Ok(done) => Inline::Rest(whole_units(done, self.inner.opened.unit_bytes)),
            Err(Errno::OPNOTSUPP) if !flags.is_empty() => {
                learn(learned);
                self.write_inline(offset, buffer)
            }
            Err(_) => Inline::Rest(0),
        }
    }

    /// Looks into a durable write that failed: was it the sync, whose failure must latch, or was there no
    /// room for the data, which only fails this write? The same bytes are written once more without a
    /// sync; if there is room for them now, there was before.
    async fn explain_full(&self, at: Lba, buffer: Buffer) -> Buffer {
        let (again, buffer) = self.ring.write(at.byte_offset(), buffer, 0, false).await;
        if again.is_ok() {
            self.inner.gate.latch();
        }
        buffer
    }

    pub(super) async fn sync(&self) -> Result<(), BlockError> {
        self.inner.gate.flush(|| self.ring.sync()).await
    }

    /// Where data or a hole next begins at or after `offset`; the end of the device if nowhere.
    fn seek(&self, to: SeekFrom, end: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.inner.file, to) {
            Ok(found) => Ok(found.min(end)),
            Err(Errno::NXIO) => Ok(end),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Appends the extents of `range`, in bytes from the file system, in sectors to the caller: a boundary
    /// inside a sector (a file system with small blocks does not exist, but nothing forbids one) makes
    /// that sector data.
    fn map(&self, range: SectorRange, extents: &mut Vec<Extent>) -> io::Result<()> {
        let sector_bytes = SECTOR_BYTES as u64;
        let end = range.end().byte_offset();
        let mut at = range.start.byte_offset();
        while at < end && extents.len() < extents.capacity() {
            let data = self.seek(SeekFrom::Data(at), end)? / sector_bytes * sector_bytes;
            let (to, allocation) = if data > at {
                (data, Allocation { hole: true, zero: true })
            } else {
                let hole = self.seek(SeekFrom::Hole(at), end)?.next_multiple_of(sector_bytes);
                (hole.max(at + sector_bytes), Allocation { hole: false, zero: false })
            };
            extents.push(Extent { count: (to - at) / sector_bytes, allocation });
            at = to;
        }
        Ok(())
    }
}

/// The part of `done` bytes that ends at a unit's end: the ring goes on from there.
fn whole_units(done: usize, unit_bytes: u32) -> usize {
    done / unit_bytes as usize * unit_bytes as usize
}

/// The error of a failed operation on the file.
pub(super) fn failed(operation: Operation, at: Lba, source: io::Error) -> BlockError {
    if is_no_space(&source) {
        BlockError::NoSpace { operation, at }
    } else {
        BlockError::Io { operation, at, source }
    }
}

impl BlockLane for FileLane {
    async fn read(&self, at: Lba, mut buffer: Buffer) -> Completion {
        self.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        if let Some(_guest) = self.aside.as_ref().and_then(|aside| aside.takes(buffer.len())) {
            let (outcome, buffer) = self.ring.read_aside(at.byte_offset(), buffer).await;
            return (outcome.map_err(|source| failed(Operation::Read, at, source)), buffer);
        }
        let Inline::Rest(done) = self.read_inline(at.byte_offset(), &mut buffer) else {
            return (Ok(()), buffer);
        };
        let (outcome, buffer) = self.ring.read(at.byte_offset(), buffer, done).await;
        (outcome.map_err(|source| failed(Operation::Read, at, source)), buffer)
    }

    async fn write(&self, at: Lba, mut buffer: Buffer, durability: Durability) -> Completion {
        const OPERATION: Operation = Operation::Write;
        self.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        if let Err(refused) = self.check_writable(OPERATION) {
            return (Err(refused), buffer);
        }
        let durable = durability == Durability::Durable;
        if !durable && let Some(_guest) = self.aside.as_ref().and_then(|aside| aside.takes(buffer.len())) {
            let (outcome, buffer) = self.ring.write_aside(at.byte_offset(), buffer).await;
            return (outcome.map_err(|source| failed(OPERATION, at, source)), buffer);
        }
        let mut done = 0;
        if !durable {
            match self.write_inline(at.byte_offset(), &buffer) {
                Inline::Done => return (Ok(()), buffer),
                Inline::Rest(rest) => done = rest,
            }
        }
        let outcome;
        (outcome, buffer) = self.ring.write(at.byte_offset(), buffer, done, durable).await;
        if durable && outcome.as_ref().is_err_and(is_no_space) {
            buffer = self.explain_full(at, buffer).await;
        }
        (outcome.map_err(|source| failed(OPERATION, at, source)), buffer)
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.zero_range(range, mode, durability).await
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.discard_range(range, durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if self.inner.opened.read_only {
            return Ok(()); // Nothing was written through this device.
        }
        self.sync().await
    }

    /// The kernel is asked in this thread: it answers from memory, or reads the file's block map once.
    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.assert_inside(range);
        if let Kind::BlockDevice { .. } = self.inner.kind {
            if range.count > 0 {
                extents
                    .push(Extent { count: range.count, allocation: Allocation { hole: false, zero: false } });
            }
            return Ok(());
        }
        self.map(range, extents).map_err(|source| failed(Operation::Extents, range.start, source))
    }
}
