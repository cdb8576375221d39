//! Blocks: the 512 KiB pieces of a volume that are saved, fetched and tracked as a whole (design §4.9).

use std::ops::Range;

use sealblk_block::{Lba, SECTOR_BYTES, SectorRange};

/// Bytes in a block. A volume's last block may be shorter.
pub const BLOCK_BYTES: usize = 512 * 1024;

/// Sectors in a block.
pub(crate) const BLOCK_SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// How many blocks `sectors` sectors are.
pub(crate) fn blocks_in(sectors: u64) -> u64 {
    sectors.div_ceil(BLOCK_SECTORS)
}

/// The blocks that `range` touches.
pub(crate) fn touched(range: SectorRange) -> Range<u64> {
    range.start.0 / BLOCK_SECTORS..range.end().0.div_ceil(BLOCK_SECTORS)
}

/// The blocks that lie wholly in `range`, on a volume of `sectors` sectors. May be empty.
pub(crate) fn covered(range: SectorRange, sectors: u64) -> Range<u64> {
    let first = range.start.0.div_ceil(BLOCK_SECTORS);
    let end = if range.end().0 == sectors { blocks_in(sectors) } else { range.end().0 / BLOCK_SECTORS };
    first..end.max(first)
}

/// The sectors of blocks `blocks` on a volume of `sectors` sectors.
pub(crate) fn sectors_of(blocks: Range<u64>, sectors: u64) -> SectorRange {
    let start = blocks.start * BLOCK_SECTORS;
    let end = blocks.end.saturating_mul(BLOCK_SECTORS).min(sectors);
    SectorRange { start: Lba(start), count: end.saturating_sub(start) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, count: u64) -> SectorRange {
        SectorRange { start: Lba(start), count }
    }

    #[test]
    fn a_block_is_covered_if_nothing_of_it_is_outside_the_range() {
        let sectors = 2 * BLOCK_SECTORS + 8;
        assert_eq!(touched(range(0, sectors)), 0..3);
        assert_eq!(covered(range(0, sectors), sectors), 0..3);
        assert_eq!(covered(range(1, sectors - 1), sectors), 1..3);
        assert_eq!(covered(range(1, sectors - 2), sectors), 1..2);
        assert!(covered(range(1, 8), sectors).is_empty());
        assert_eq!(touched(range(BLOCK_SECTORS - 1, 2)), 0..2);
        assert!(covered(range(BLOCK_SECTORS - 1, 2), sectors).is_empty());
    }

    #[test]
    fn the_last_block_ends_with_the_volume() {
        let sectors = BLOCK_SECTORS + 8;
        assert_eq!(blocks_in(sectors), 2);
        assert_eq!(sectors_of(1..2, sectors), range(BLOCK_SECTORS, 8));
        assert_eq!(sectors_of(0..1, sectors), range(0, BLOCK_SECTORS));
    }
}
