//! Where a block is: blocks of a volume, and the positions of index pages above them. Arithmetic only.
//!
//! The index of every snapshot is a tree of exactly [`LEVELS`] levels with [`FANOUT`] children each, whatever the
//! volume's size: position `p` of level `l` covers blocks `p·1024^(l+1)` to `(p+1)·1024^(l+1) - 1`. So what two snapshots
//! share is at the same position in both, and comparing, deleting and verifying walk positions in step.

/// Bytes of a block: 512 KiB, as the EBS direct APIs use.
pub const BLOCK_BYTES: u64 = 512 * 1024;

/// Children of an index page.
pub(crate) const FANOUT: u64 = 1024;

/// Levels of the index: leaves (0), middle pages (1), the root page (2).
pub(crate) const LEVELS: u8 = 3;

/// The root page's level.
pub(crate) const ROOT_LEVEL: u8 = LEVELS - 1;

/// The largest volume that the index can describe: 1024^3 blocks, 512 TiB.
pub const MAX_VOLUME_BYTES: u64 = FANOUT * FANOUT * FANOUT * BLOCK_BYTES;

/// Blocks of a volume of `size_bytes`; the last may be a part of one.
pub const fn block_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES)
}

/// Bytes of block `index` of a volume of `size_bytes`: [`BLOCK_BYTES`], fewer in the last block of a volume whose size is
/// not a multiple of it, 0 behind the end.
pub const fn block_bytes(size_bytes: u64, index: u64) -> u64 {
    let left = size_bytes.saturating_sub(index.saturating_mul(BLOCK_BYTES));
    if left < BLOCK_BYTES { left } else { BLOCK_BYTES }
}

/// The leaf position of block `index`, and its slot there.
pub(crate) const fn leaf_of(index: u64) -> (u64, u16) {
    split(index)
}

/// The position of the page above `position`, and the slot there.
pub(crate) const fn split(position: u64) -> (u64, u16) {
    // A remainder of 1024 fits.
    (position / FANOUT, (position % FANOUT) as u16)
}

/// The position (or, below level 0, the block) in `slot` of the page at `position`.
pub(crate) const fn child(position: u64, slot: u16) -> u64 {
    position * FANOUT + slot as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_of_an_odd_volume_is_short() {
        assert_eq!(block_count(0), 0);
        assert_eq!(block_count(1), 1);
        assert_eq!(block_bytes(BLOCK_BYTES + 512, 0), BLOCK_BYTES);
        assert_eq!(block_bytes(BLOCK_BYTES + 512, 1), 512);
        assert_eq!(block_bytes(BLOCK_BYTES + 512, 2), 0);
        assert_eq!(block_bytes(BLOCK_BYTES, 1), 0);
        assert_eq!(block_bytes(1, u64::MAX), 0);
    }

    #[test]
    fn positions_nest() {
        for index in [0, 1, 1023, 1024, 1024 * 1024 + 7, MAX_VOLUME_BYTES / BLOCK_BYTES - 1] {
            let (leaf, slot) = leaf_of(index);
            assert_eq!(child(leaf, slot), index);
            let (middle, _) = split(leaf);
            assert_eq!(split(middle).0, 0, "three levels reach every block");
        }
    }
}
