//! A device in memory, sparse by pages of 64 KiB: for tests, and the second implementation that keeps the
//! seam honest. Nothing in it is durable.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::buffer::Buffer;
use crate::device::{Allocation, BlockDevice, BlockLane, Completion, Durability, Extent, Geometry, ZeroMode};
use crate::error::{BlockError, Operation};
use crate::sector::{Lba, SECTOR_BYTES, SectorRange};

/// Bytes in a page; a hole is a page that is not there.
const PAGE_BYTES: usize = 64 * 1024;

/// A sparse array of bytes; clones share it.
#[derive(Clone, Debug)]
pub struct MemoryDevice {
    geometry: Geometry,
    pages: Arc<RwLock<Pages>>,
}

/// One thread's way to a [`MemoryDevice`].
#[derive(Debug)]
pub struct MemoryLane {
    device: MemoryDevice,
}

#[derive(Debug, Default)]
struct Pages {
    present: BTreeMap<u64, Box<[u8]>>,
}

impl MemoryDevice {
    /// A device of `sectors` zero sectors, with a unit of one sector.
    pub fn new(sectors: u64) -> Self {
        let geometry =
            Geometry { sectors, unit_bytes: SECTOR_BYTES as u32, preferred_bytes: 4096, read_only: false };
        Self { geometry, pages: Arc::default() }
    }

    /// The same bytes with another unit: a power of two from 512 to 65536 that divides the size.
    pub fn with_unit(mut self, unit_bytes: u32) -> Self {
        assert!(unit_bytes.is_power_of_two() && (512..=65536).contains(&unit_bytes), "not a unit");
        assert!(
            (self.geometry.sectors * SECTOR_BYTES as u64).is_multiple_of(u64::from(unit_bytes)),
            "a device is whole units"
        );
        self.geometry.unit_bytes = unit_bytes;
        self.geometry.preferred_bytes = unit_bytes.max(4096);
        self
    }

    /// The same bytes, writes refused.
    pub fn with_read_only(mut self) -> Self {
        self.geometry.read_only = true;
        self
    }

    fn write_access(
        &self,
        operation: Operation,
    ) -> Result<std::sync::RwLockWriteGuard<'_, Pages>, BlockError> {
        if self.geometry.read_only {
            return Err(BlockError::ReadOnly { operation });
        }
        // Bytes are valid whatever a panicking writer left.
        Ok(self.pages.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn assert_inside(&self, range: SectorRange) {
        let units = u64::from(self.geometry.unit_bytes);
        assert!(range.start.0.checked_add(range.count).is_some_and(|end| end <= self.geometry.sectors));
        assert!(range.start.byte_offset().is_multiple_of(units) && range.bytes().is_multiple_of(units));
    }
}

impl BlockDevice for MemoryDevice {
    type Lane = MemoryLane;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_lane(&self) -> Result<MemoryLane, BlockError> {
        Ok(MemoryLane { device: self.clone() })
    }
}

impl BlockLane for MemoryLane {
    async fn read(&self, at: Lba, mut buffer: Buffer) -> Completion {
        self.device.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        self.device.pages.read().unwrap_or_else(PoisonError::into_inner).read(at.byte_offset(), &mut buffer);
        (Ok(()), buffer)
    }

    async fn write(&self, at: Lba, buffer: Buffer, _durability: Durability) -> Completion {
        self.device.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        let outcome = self.device.write_access(Operation::Write);
        (outcome.map(|mut pages| pages.write(at.byte_offset(), &buffer)), buffer)
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        _durability: Durability,
    ) -> Result<(), BlockError> {
        self.device.assert_inside(range);
        let keep = matches!(mode, ZeroMode::KeepAllocated | ZeroMode::FastKeepAllocated);
        self.device.write_access(Operation::Zero)?.zero(range, keep);
        Ok(())
    }

    async fn discard(&self, range: SectorRange, _durability: Durability) -> Result<(), BlockError> {
        self.device.assert_inside(range);
        self.device.write_access(Operation::Discard)?.zero(range, false);
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.device.assert_inside(range);
        self.device.pages.read().unwrap_or_else(PoisonError::into_inner).extents(range, extents);
        Ok(())
    }
}

/// The parts of `len` bytes from `offset`, page by page: page number, first byte in the page, length.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let page_bytes = PAGE_BYTES as u64;
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let page = at / page_bytes;
        let part =
            (at < end).then(|| (page, (at % page_bytes) as usize, end.min((page + 1) * page_bytes) - at));
        at += part.map_or(0, |(_, _, len)| len);
        part.map(|(page, first, len)| (page, first, len as usize))
    })
}

impl Pages {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let mut rest = bytes;
        for (page, first, len) in parts(offset, rest.len() as u64) {
            let (head, tail) = rest.split_at_mut(len);
            match self.present.get(&page) {
                Some(page) => head.copy_from_slice(&page[first..first + len]),
                None => head.fill(0),
            }
            rest = tail;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (page, first, len) in parts(offset, rest.len() as u64) {
            let (head, tail) = rest.split_at(len);
            self.page(page)[first..first + len].copy_from_slice(head);
            rest = tail;
        }
    }

    fn zero(&mut self, range: SectorRange, keep: bool) {
        if keep {
            for (page, first, len) in parts(range.start.byte_offset(), range.bytes()) {
                self.page(page)[first..first + len].fill(0);
            }
            return;
        }
        // Only pages that are there: the range may be the whole of a large device.
        let (start, end) = (range.start.byte_offset(), range.end().byte_offset());
        let page_bytes = PAGE_BYTES as u64;
        for (&number, page) in self.present.range_mut(start / page_bytes..end.div_ceil(page_bytes)) {
            let page_start = number * page_bytes;
            let first = start.saturating_sub(page_start) as usize;
            let last = (end - page_start).min(page_bytes) as usize;
            page[first..last].fill(0);
        }
        let whole = start.div_ceil(page_bytes)..end / page_bytes;
        if !whole.is_empty() {
            let mut after = self.present.split_off(&whole.start);
            self.present.append(&mut after.split_off(&whole.end));
        }
    }

    fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) {
        let sector_bytes = SECTOR_BYTES as u64;
        let page_bytes = PAGE_BYTES as u64;
        let end = range.end().byte_offset();
        let mut at = range.start.byte_offset();
        while at < end && extents.len() < extents.capacity() {
            let first = at / page_bytes;
            let hole = !self.present.contains_key(&first);
            let last = if hole {
                self.present.range(first..).next().map_or(u64::MAX, |(&page, _)| page)
            } else {
                (first..).find(|page| !self.present.contains_key(page)).unwrap_or(u64::MAX)
            };
            let to = last.saturating_mul(page_bytes).min(end);
            extents.push(Extent {
                count: (to - at) / sector_bytes,
                allocation: Allocation { hole, zero: hole },
            });
            at = to;
        }
    }

    fn page(&mut self, page: u64) -> &mut [u8] {
        self.present.entry(page).or_insert_with(|| vec![0; PAGE_BYTES].into_boxed_slice())
    }
}
