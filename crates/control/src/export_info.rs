//! What clients are told of a volume when they choose it: its names and, of one that was made from a snapshot, which of
//! its blocks are here (the metadata context `x-sealblk:restored`, docs/NBD.md).

use std::sync::Arc;

use sealblk_block::{Lba, SECTOR_BYTES, SectorRange};
use sealblk_nbd::{ExportInfo, MetaContext, StatusExtent};
use sealblk_volume::map::MappedDevice;
use sealblk_volume::{VolumeName, VolumeRecord};

use crate::keep::StoredVolume;

/// The flag of a range that is read from this volume's own bytes. A range without it costs a fetch first.
const RESTORED: u32 = 1;

/// The export of the volume that `record` describes and `stored` holds.
pub(crate) fn export_info(record: &VolumeRecord, stored: &StoredVolume) -> ExportInfo {
    let aliases: Vec<&str> = record.name.as_ref().map(VolumeName::as_str).into_iter().collect();
    let info = ExportInfo::new(&record.volume_id.to_string(), &aliases, "")
        .expect("a volume's id and name are short texts without NUL");
    match record.snapshot_id {
        None => info,
        Some(_) => info
            .with_context(Arc::new(RestoredContext(stored.clone())))
            .expect("the only context beside base:allocation, and well named"),
    }
}

/// Which ranges of a volume are here, as its block map knows it at the moment.
struct RestoredContext<D, S>(MappedDevice<D, S>);

impl<D, S> MetaContext for RestoredContext<D, S>
where
    MappedDevice<D, S>: Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "x-sealblk:restored"
    }

    fn extents(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) {
        let sector_bytes = SECTOR_BYTES as u64;
        let end = offset + length;
        let mut at = offset;
        while at < end && extents.len() < extents.capacity() {
            let first = at / sector_bytes;
            let asked = SectorRange { start: Lba(first), count: end.div_ceil(sector_bytes) - first };
            let (sectors, here) = self.0.restored_run(asked);
            let until = end.min((first + sectors) * sector_bytes);
            extents.push(StatusExtent { bytes: until - at, flags: if here { RESTORED } else { 0 } });
            at = until;
        }
    }
}

#[cfg(test)]
mod tests {
    use sealblk_block::MemoryDevice;
    use sealblk_volume::map::{BLOCK_BYTES, MapIdentity, MapOptions, map_bytes, write_restoring_map};
    use sealblk_volume::{SnapshotId, VolumeSize};

    use super::*;
    use crate::offline;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    /// A volume of five blocks and a half, of which `missing` are in the snapshot only.
    fn context(missing: &[u64]) -> RestoredContext<MemoryDevice, MemoryDevice> {
        let size = VolumeSize::from_bytes(5 * BLOCK + BLOCK / 2).expect("a size");
        let identity = MapIdentity { volume_id: "vol-0123456789abcdef0".parse().expect("an id"), size };
        let snapshot = SnapshotId::from_random([7; 9]);
        let store = MemoryDevice::new(map_bytes(size) / SECTOR_BYTES as u64);
        let ranges = missing.iter().map(|&block| block..block + 1);
        let options = MapOptions { identity, origin: Some(snapshot), read_only: false };
        let opened = offline::run(async {
            write_restoring_map(&store, identity, snapshot, ranges, true).await.expect("a map");
            MappedDevice::open(MemoryDevice::new(size.sectors()), store, options).await
        });
        RestoredContext(opened.expect("a runtime").expect("a volume"))
    }

    fn told(context: &impl MetaContext, offset: u64, length: u64, most: usize) -> Vec<(u64, u32)> {
        let mut extents = Vec::with_capacity(most);
        context.extents(offset, length, &mut extents);
        extents.iter().map(|extent| (extent.bytes, extent.flags)).collect()
    }

    #[test]
    fn runs_of_blocks_are_told_to_the_byte_and_alternate() {
        let context = context(&[1, 2, 5]);
        let whole = [(BLOCK, 1), (2 * BLOCK, 0), (2 * BLOCK, 1), (BLOCK / 2, 0)];
        assert_eq!(told(&context, 0, 5 * BLOCK + BLOCK / 2, 16), whole);
        assert_eq!(told(&context, BLOCK - 3, 7, 16), [(3, 1), (4, 0)]);
        assert_eq!(told(&context, 3 * BLOCK - 1, 1, 16), [(1, 0)]);
        assert_eq!(told(&context, 5 * BLOCK + BLOCK / 2 - 1, 1, 16), [(1, 0)]);
    }

    #[test]
    fn no_more_is_told_than_there_is_room_for() {
        let context = context(&[1, 3]);
        assert_eq!(told(&context, 100, 5 * BLOCK, 2), [(BLOCK - 100, 1), (BLOCK, 0)]);
    }

    #[test]
    fn a_volume_with_nothing_missing_is_one_extent() {
        assert_eq!(told(&context(&[]), 1, 5 * BLOCK, 16), [(5 * BLOCK, 1)]);
    }
}
