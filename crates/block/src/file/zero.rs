//! Zeroing and discarding on a [`super::FileDevice`]: `fallocate` where the store can, zeros written where
//! it cannot and the caller did not insist on speed.

use std::io;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::lane::{FileLane, failed};
use super::{Kind, known, learn};
use crate::buffer::Buffer;
use crate::device::{Durability, ZeroMode};
use crate::error::{BlockError, Operation};
use crate::sector::{Lba, SectorRange};

/// Zeros are written in pieces of at most this many bytes: what such a request may hold in memory.
const PIECE_BYTES: u64 = 1 << 20;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Whether the store did what `fallocate` asked.
#[derive(PartialEq, Eq)]
enum Allocated {
    Done,
    Unsupported,
}

impl FileLane {
    pub(super) async fn zero_range(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        const OPERATION: Operation = Operation::Zero;
        self.assert_inside(range);
        self.check_writable(OPERATION)?;
        if range.count == 0 {
            return Ok(());
        }
        let unmap = matches!(mode, ZeroMode::MayUnmap | ZeroMode::FastOnly);
        let fast = matches!(mode, ZeroMode::FastOnly | ZeroMode::FastKeepAllocated);
        let ways: &[FallocateFlags] = if unmap { &[PUNCH, ZERO] } else { &[ZERO] };
        for &way in ways {
            if fast && way == ZERO && !self.zeroes_fast() {
                continue;
            }
            if self.allocate(OPERATION, way, range).await? == Allocated::Done {
                return self.settle(durability).await;
            }
        }
        if fast {
            return Err(BlockError::Unsupported { operation: OPERATION });
        }
        self.write_zeros(range).await?;
        self.settle(durability).await
    }

    pub(super) async fn discard_range(
        &self,
        range: SectorRange,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.assert_inside(range);
        self.check_writable(Operation::Discard)?;
        let range = self.whole_blocks(range);
        // A punched range of a block device reads as zeros too, as the rule of unwritten sectors wants.
        if range.count > 0 && self.allocate(Operation::Discard, PUNCH, range).await? == Allocated::Done {
            return self.settle(durability).await;
        }
        Ok(())
    }

    /// Whether ZERO_RANGE is more than a loop of writes inside the kernel.
    fn zeroes_fast(&self) -> bool {
        self.inner.kind != (Kind::BlockDevice { fast_zero: false })
    }

    /// The whole logical blocks inside `range`: what a block device can be asked to discard.
    fn whole_blocks(&self, range: SectorRange) -> SectorRange {
        let block = u64::from(self.inner.logical_block_bytes) / crate::sector::SECTOR_BYTES as u64;
        let start = range.start.0.next_multiple_of(block);
        let end = range.end().0 / block * block;
        SectorRange { start: Lba(start), count: end.saturating_sub(start) }
    }

    async fn allocate(
        &self,
        operation: Operation,
        way: FallocateFlags,
        range: SectorRange,
    ) -> Result<Allocated, BlockError> {
        let learned = &self.inner.learned;
        let flag = if way == PUNCH { &learned.no_punch } else { &learned.no_zero_range };
        if known(flag) || self.whole_blocks(range) != range {
            return Ok(Allocated::Unsupported);
        }
        let mode = way.bits().cast_signed();
        match self.ring.allocate(range.start.byte_offset(), range.bytes(), mode).await {
            Ok(()) => Ok(Allocated::Done),
            Err(error) if is_unsupported(&error) => {
                learn(flag);
                Ok(Allocated::Unsupported)
            }
            Err(source) => Err(failed(operation, range.start, source)),
        }
    }

    async fn write_zeros(&self, range: SectorRange) -> Result<(), BlockError> {
        let mut buffer = Buffer::new(range.bytes().min(PIECE_BYTES) as usize);
        let end = range.end().byte_offset();
        let mut at = range.start.byte_offset();
        while at < end {
            buffer.set_len((end - at).min(PIECE_BYTES) as usize);
            let len = buffer.len() as u64;
            let outcome;
            (outcome, buffer) = self.ring.write(at, buffer, 0, false).await;
            outcome.map_err(|source| failed(Operation::Zero, range.start, source))?;
            at += len;
        }
        Ok(())
    }

    /// Makes what was just done durable, if that was asked for.
    async fn settle(&self, durability: Durability) -> Result<(), BlockError> {
        match durability {
            Durability::Volatile => Ok(()),
            Durability::Durable => self.sync().await,
        }
    }
}

/// Whether the store cannot do it at all: told by file systems (EOPNOTSUPP), kernels without the call
/// (ENOSYS) and devices that know no such command (also ENOTTY, EINVAL is a mistake of ours).
fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY))
}
