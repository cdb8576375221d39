//! The same questions to any [`BlockDevice`]: what a store is that no path leads to, and how it is made blank.

use std::io;

use super::signature::{self, ReadAt};
use super::{Content, PIECE_BYTES, ZERO_BYTES};
use crate::buffer::Buffer;
use crate::device::{BlockDevice, BlockLane, Durability, Extent, ZeroMode};
use crate::error::BlockError;
use crate::sector::{Lba, SECTOR_BYTES, SectorRange};

/// How far from either end of a store signatures are looked for.
const END_BYTES: u64 = 256 * 1024;

/// As [`super::inspect`]. Call inside the runtime that [`BlockDevice::open_lane`] asks for.
pub async fn inspect_device<D: BlockDevice>(
    device: &D,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Content, BlockError> {
    let lane = device.open_lane()?;
    let size = Lba(device.geometry().sectors).byte_offset();
    let ends = Ends::read(&lane, size).await?;
    if let Ok(Some((what, at))) = signature::identify(&ends, size) {
        return Ok(Content::Found { what: what.to_owned(), at });
    }
    let first = first_nonzero(&lane, device.geometry().unit_bytes, size, progress).await?;
    Ok(first.map_or(Content::Blank, |at| Content::Found { what: "data".to_owned(), at }))
}

/// As [`super::erase`], and under the rule of [`inspect_device`].
pub async fn erase_device<D: BlockDevice>(
    device: &D,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), BlockError> {
    let lane = device.open_lane()?;
    let sectors = device.geometry().sectors;
    let bytes = |sectors: u64| Lba(sectors).byte_offset();
    let mut at = 0;
    while at < sectors {
        progress(bytes(at), bytes(sectors));
        let count = (ZERO_BYTES / SECTOR_BYTES as u64).min(sectors - at);
        let range = SectorRange { start: Lba(at), count };
        lane.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await?;
        at += count;
    }
    progress(bytes(sectors), bytes(sectors));
    lane.flush().await
}

/// The offset of the first byte that is not zero. What the device says is zero is believed.
async fn first_nonzero(
    lane: &impl BlockLane,
    unit_bytes: u32,
    size: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<u64>, BlockError> {
    let unit = u64::from(unit_bytes);
    let mut buffer = Buffer::new(PIECE_BYTES);
    let mut extents: Vec<Extent> = Vec::with_capacity(1);
    let mut at = 0;
    while at < size {
        progress(at, size);
        extents.clear();
        lane.extents(range(at, size - at), &mut extents).await?;
        let told = extents
            .first()
            .map_or((unit, false), |extent| (extent.count * SECTOR_BYTES as u64, extent.allocation.zero));
        let zeros = told.0 / unit * unit;
        if told.1 && zeros > 0 {
            at += zeros;
            continue;
        }
        let len = told.0.next_multiple_of(unit).min(size - at).min(PIECE_BYTES as u64);
        buffer.set_len(usize::try_from(len).unwrap_or(PIECE_BYTES));
        let outcome;
        (outcome, buffer) = lane.read(sector(at), buffer).await;
        outcome?;
        if let Some(first) = buffer.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + first as u64));
        }
        at += len;
    }
    progress(size, size);
    Ok(None)
}

fn sector(at: u64) -> Lba {
    Lba(at / SECTOR_BYTES as u64)
}

fn range(at: u64, bytes: u64) -> SectorRange {
    SectorRange { start: sector(at), count: bytes / SECTOR_BYTES as u64 }
}

/// The first and last bytes of a store, where signatures are.
struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
    tail_at: u64,
}

impl Ends {
    async fn read(lane: &impl BlockLane, size: u64) -> Result<Self, BlockError> {
        // A multiple of every unit from either end, for a size is whole units.
        let bytes = END_BYTES.min(size);
        let part = |at: u64| async move {
            let (outcome, buffer) =
                lane.read(sector(at), Buffer::new(usize::try_from(bytes).unwrap_or(0))).await;
            outcome.map(|()| buffer.to_vec())
        };
        Ok(Self { head: part(0).await?, tail: part(size - bytes).await?, tail_at: size - bytes })
    }
}

impl ReadAt for Ends {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let within = |part: &[u8], start: u64| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            part.get(from..from.checked_add(bytes.len())?).map(<[u8]>::to_vec)
        };
        let found = within(&self.head, 0).or_else(|| within(&self.tail, self.tail_at));
        bytes.copy_from_slice(&found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDevice;

    fn inspected(device: &MemoryDevice) -> Content {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(inspect_device(device, &mut |_, _| {})).expect("memory does not fail")
    }

    fn holding(sectors: u64, at: u64, bytes: &[u8]) -> MemoryDevice {
        let device = MemoryDevice::new(sectors);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut buffer = Buffer::new(512);
        let inside = (at % 512) as usize;
        buffer[inside..inside + bytes.len()].copy_from_slice(bytes);
        runtime.block_on(async {
            let lane = device.open_lane().expect("a lane");
            lane.write(sector(at), buffer, Durability::Volatile).await.0.expect("a write");
        });
        device
    }

    #[test]
    fn signatures_at_both_ends_and_plain_data_between_are_found() {
        let found = |what: &str, at| Content::Found { what: what.to_owned(), at };
        assert_eq!(inspected(&MemoryDevice::new(1 << 20)), Content::Blank);
        assert_eq!(inspected(&holding(1 << 20, 0, b"XFSB")), found("XFS file system", 0));
        let size = 512 << 20;
        let backup = holding(1 << 20, size - 512, b"EFI PART");
        assert_eq!(inspected(&backup), found("GPT partition table (backup copy)", size - 512));
        assert_eq!(inspected(&holding(1 << 20, (100 << 20) + 7, &[1])), found("data", (100 << 20) + 7));
    }

    #[test]
    fn an_erased_device_is_blank() {
        let device = holding(1 << 12, 4096, &[1]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(erase_device(&device, &mut |_, _| {})).expect("memory does not fail");
        assert_eq!(inspected(&device), Content::Blank);
    }
}
