//! A volume's size: whole sectors, from 1 MiB to 64 TiB. Units ("10GiB") are the command line's matter.

use serde::{Deserialize, Serialize};

use sealblk_block::SECTOR_BYTES;

/// A volume's size in bytes: a multiple of 512, at least [`VolumeSize::MIN`], at most [`VolumeSize::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct VolumeSize(u64);

impl VolumeSize {
    /// 1 MiB.
    pub const MIN: Self = Self(1 << 20);
    /// 64 TiB, EBS's largest.
    pub const MAX: Self = Self(64 << 40);

    /// Checks a number of bytes.
    pub const fn from_bytes(bytes: u64) -> Result<Self, SizeError> {
        if bytes < Self::MIN.0 || bytes > Self::MAX.0 {
            return Err(SizeError::OutOfRange { bytes });
        }
        if !bytes.is_multiple_of(SECTOR_BYTES as u64) {
            return Err(SizeError::PartialSector { bytes });
        }
        Ok(Self(bytes))
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in 512-byte sectors.
    pub const fn sectors(self) -> u64 {
        self.0 / SECTOR_BYTES as u64
    }
}

impl From<VolumeSize> for u64 {
    fn from(size: VolumeSize) -> Self {
        size.bytes()
    }
}

impl TryFrom<u64> for VolumeSize {
    type Error = SizeError;
    fn try_from(bytes: u64) -> Result<Self, SizeError> {
        Self::from_bytes(bytes)
    }
}

/// Why a number of bytes is no volume's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// Below 1 MiB or above 64 TiB.
    #[error("a volume cannot have {bytes} bytes: it has at least 1 MiB and at most 64 TiB")]
    OutOfRange {
        /// What was asked for.
        bytes: u64,
    },
    /// Not whole sectors.
    #[error("a volume cannot have {bytes} bytes: its size is a multiple of 512")]
    PartialSector {
        /// What was asked for.
        bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_sizes_and_their_neighbours_are_not() {
        for bytes in [1 << 20, (1 << 20) + 512, 64 << 40] {
            assert_eq!(VolumeSize::from_bytes(bytes).map(VolumeSize::bytes), Ok(bytes));
        }
        for bytes in [0, (1 << 20) - 512, (64 << 40) + 512, u64::MAX] {
            assert_eq!(VolumeSize::from_bytes(bytes), Err(SizeError::OutOfRange { bytes }));
        }
        let bytes = (1 << 20) + 1;
        assert_eq!(VolumeSize::from_bytes(bytes), Err(SizeError::PartialSector { bytes }));
    }
}
