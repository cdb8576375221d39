//! What a kernel works on: a run of whole sectors, in place or from one buffer into another.

/// Bytes in a sector, which is the cipher's data unit.
pub const SECTOR_BYTES: usize = 512;

/// Where a run of sectors is read and where the result is written: both the same length, whole sectors.
pub(crate) enum Sectors<'a> {
    /// Each sector is replaced by its result.
    InPlace(&'a mut [u8]),
    /// `from` stays as it is, `to` is overwritten.
    Apart { from: &'a [u8], to: &'a mut [u8] },
}

impl<'a> Sectors<'a> {
    /// # Panics
    /// `sectors` is not a whole number of sectors.
    pub(crate) fn in_place(sectors: &'a mut [u8]) -> Self {
        assert!(sectors.len().is_multiple_of(SECTOR_BYTES), "{} bytes are not whole sectors", sectors.len());
        Self::InPlace(sectors)
    }

    /// # Panics
    /// The lengths differ, or are not a whole number of sectors.
    pub(crate) fn apart(from: &'a [u8], to: &'a mut [u8]) -> Self {
        assert_eq!(from.len(), to.len(), "source and destination differ in length");
        assert!(from.len().is_multiple_of(SECTOR_BYTES), "{} bytes are not whole sectors", from.len());
        Self::Apart { from, to }
    }

    /// How many sectors there are.
    pub(crate) fn count(&self) -> usize {
        let bytes = match self {
            Self::InPlace(sectors) => sectors.len(),
            Self::Apart { from, .. } => from.len(),
        };
        bytes / SECTOR_BYTES
    }
}
