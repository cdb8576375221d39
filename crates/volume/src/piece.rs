//! Cutting a long range into runs that fit a buffer.

use sealblk_block::{SECTOR_BYTES, SectorRange};

/// `range` in runs of `piece_bytes` (a multiple of 512), in order; the last may be shorter. None when the
/// range is empty. If the range and `piece_bytes` are whole units of a device, so is every run.
pub(crate) fn pieces(range: SectorRange, piece_bytes: usize) -> impl Iterator<Item = SectorRange> {
    let most = (piece_bytes / SECTOR_BYTES) as u64;
    let mut rest = range;
    std::iter::from_fn(move || {
        let piece = SectorRange { start: rest.start, count: rest.count.min(most) };
        rest = SectorRange { start: piece.end(), count: rest.count - piece.count };
        (piece.count > 0).then_some(piece)
    })
}

/// A piece's length in memory.
pub(crate) fn piece_bytes(piece: SectorRange) -> usize {
    usize::try_from(piece.bytes()).expect("a piece was cut to fit a buffer")
}

#[cfg(test)]
mod tests {
    use sealblk_block::Lba;

    use super::*;

    fn cut(start: u64, count: u64, piece_bytes: usize) -> Vec<(u64, u64)> {
        let range = SectorRange { start: Lba(start), count };
        pieces(range, piece_bytes).map(|piece| (piece.start.0, piece.count)).collect()
    }

    #[test]
    fn pieces_follow_each_other_and_cover_the_range() {
        assert_eq!(cut(5, 7, 1024), [(5, 2), (7, 2), (9, 2), (11, 1)]);
        assert_eq!(cut(5, 2, 1024), [(5, 2)]);
        assert_eq!(cut(5, 0, 1024), []);
    }
}
