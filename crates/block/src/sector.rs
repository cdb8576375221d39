//! Units of the seam: a sector is 512 bytes, an [`Lba`] numbers one, a [`SectorRange`] is a run of them.

use std::fmt;

/// Bytes in a sector: the data unit of the cipher and the granule of every device.
pub const SECTOR_BYTES: usize = 512;

/// Logical block address: the number of a 512-byte sector, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lba(pub u64);

impl Lba {
    /// The byte offset of the sector's first byte. Sector numbers come from checked ranges, so that
    /// the product fits: devices are at most 2^63 bytes.
    pub const fn byte_offset(self) -> u64 {
        self.0 * SECTOR_BYTES as u64
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}", self.0)
    }
}

/// A run of sectors: `count` of them from `start`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectorRange {
    /// The first sector.
    pub start: Lba,
    /// How many sectors.
    pub count: u64,
}

impl SectorRange {
    /// The run of `bytes` (a multiple of 512) from `start`.
    pub const fn of_bytes(start: Lba, bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(SECTOR_BYTES), "a sector range is whole sectors");
        Self { start, count: (bytes / SECTOR_BYTES) as u64 }
    }

    /// The sector after the last one.
    pub const fn end(self) -> Lba {
        Lba(self.start.0 + self.count)
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.count * SECTOR_BYTES as u64
    }
}
