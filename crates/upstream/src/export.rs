//! What a server told of its export, checked once: from here on sizes and limits are facts.

use sealblk_block::{Geometry, SECTOR_BYTES};
use sealblk_nbd::wire::{Fields, MAX_PAYLOAD_BYTES, transmission_flag};

use crate::error::UpstreamError;

/// The largest unit that the seam knows, and the largest minimum that the protocol allows.
const MAX_UNIT_BYTES: u32 = 65536;
/// What the seam asks for at least.
const MIN_PREFERRED_BYTES: u32 = 4096;
/// "No fixed limit" in an answer about sizes.
const NO_LIMIT: u32 = u32::MAX;

/// An export, as one connection negotiated it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Export {
    pub(crate) size_bytes: u64,
    /// Offsets and lengths are multiples of it.
    pub(crate) unit_bytes: u32,
    preferred_bytes: u32,
    /// The longest READ or WRITE; whole units.
    pub(crate) max_payload_bytes: u32,
    flags: u16,
    /// READ is answered in chunks.
    pub(crate) structured: bool,
    /// The id of `base:allocation`, if BLOCK_STATUS answers for it.
    pub(crate) allocation_context: Option<u32>,
}

/// Request sizes as the server tells them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl Default for BlockSizes {
    /// What holds where a server says nothing.
    fn default() -> Self {
        Self { minimum: 1, preferred: MIN_PREFERRED_BYTES, maximum: MAX_PAYLOAD_BYTES }
    }
}

impl BlockSizes {
    /// The value of an `INFO_BLOCK_SIZE`.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, UpstreamError> {
        let mut fields = Fields::new(value);
        let (Some(minimum), Some(preferred), Some(maximum), true) =
            (fields.u32(), fields.u32(), fields.u32(), fields.is_empty())
        else {
            return Err(UpstreamError::Malformed("its block sizes are not three numbers"));
        };
        if !minimum.is_power_of_two() || minimum > MAX_UNIT_BYTES {
            return Err(UpstreamError::Malformed("its minimum block size is not a power of two up to 65536"));
        }
        if !preferred.is_power_of_two() || preferred < minimum {
            return Err(UpstreamError::Malformed(
                "its preferred block size is not a power of two from the minimum on",
            ));
        }
        if maximum < minimum {
            return Err(UpstreamError::Malformed("its maximum block size is less than its minimum"));
        }
        Ok(Self { minimum, preferred, maximum })
    }
}

impl Export {
    pub(crate) fn new(size_bytes: u64, flags: u16, sizes: BlockSizes) -> Result<Self, UpstreamError> {
        let sector_bytes = SECTOR_BYTES as u32;
        let unit_bytes = sizes.minimum.max(sector_bytes);
        let limit = if sizes.maximum == NO_LIMIT { MAX_PAYLOAD_BYTES } else { sizes.maximum };
        let max_payload_bytes = limit.min(MAX_PAYLOAD_BYTES) / unit_bytes * unit_bytes;
        if flags & transmission_flag::HAS_FLAGS == 0 {
            return Err(UpstreamError::Malformed("its transmission flags do not say that they are any"));
        }
        if max_payload_bytes == 0 {
            return Err(UpstreamError::Unfit("it takes no request of a whole sector"));
        }
        if size_bytes == 0 {
            return Err(UpstreamError::Unfit("it is empty"));
        }
        if i64::try_from(size_bytes).is_err() {
            return Err(UpstreamError::Unfit("its size is beyond 2^63 bytes"));
        }
        if !size_bytes.is_multiple_of(unit_bytes.into()) {
            return Err(UpstreamError::Unfit(
                "its size is not a multiple of 512 and of its minimum block size",
            ));
        }
        Ok(Self {
            size_bytes,
            unit_bytes,
            preferred_bytes: sizes.preferred.clamp(MIN_PREFERRED_BYTES.max(unit_bytes), MAX_PAYLOAD_BYTES),
            max_payload_bytes,
            flags,
            structured: false,
            allocation_context: None,
        })
    }

    /// The same, with what else was agreed on.
    pub(crate) fn answering(self, structured: bool, allocation_context: Option<u32>) -> Self {
        Self { structured, allocation_context, ..self }
    }

    /// Whether all of `flag` (of [`transmission_flag`]) is offered.
    pub(crate) fn offers(&self, flag: u16) -> bool {
        self.flags & flag == flag
    }

    /// FLUSH exists. Where it does not, every write is forced through.
    pub(crate) fn flushes(&self) -> bool {
        self.offers(transmission_flag::SEND_FLUSH)
    }

    /// Refuses an export that cannot be written to as a volume is.
    pub(crate) fn require_writable(&self) -> Result<(), UpstreamError> {
        if self.offers(transmission_flag::READ_ONLY) {
            return Err(UpstreamError::Unfit("it is read-only"));
        }
        if !self.flushes() && !self.offers(transmission_flag::SEND_FUA) {
            return Err(UpstreamError::Unfit(
                "its server offers neither FLUSH nor FUA, so that nothing on it is ever known to be durable",
            ));
        }
        Ok(())
    }

    pub(crate) fn geometry(&self, read_only: bool) -> Geometry {
        Geometry {
            sectors: self.size_bytes / SECTOR_BYTES as u64,
            unit_bytes: self.unit_bytes,
            preferred_bytes: self.preferred_bytes,
            read_only: read_only || self.offers(transmission_flag::READ_ONLY),
        }
    }

    /// Whether `later`, met on another connection, is the same export. What each connection negotiates for
    /// itself may differ.
    pub(crate) fn require_same(&self, later: &Self) -> Result<(), UpstreamError> {
        if self.size_bytes != later.size_bytes {
            return Err(UpstreamError::Changed("it has another size"));
        }
        if self.flags != later.flags {
            return Err(UpstreamError::Changed("its server offers other commands"));
        }
        if self.unit_bytes != later.unit_bytes || self.max_payload_bytes != later.max_payload_bytes {
            return Err(UpstreamError::Changed("it has other limits for requests"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(minimum: u32, preferred: u32, maximum: u32) -> Result<BlockSizes, UpstreamError> {
        BlockSizes::parse([minimum, preferred, maximum].map(u32::to_be_bytes).as_flattened())
    }

    #[test]
    fn sizes_become_units_and_limits() {
        let export = |bytes, sizes| Export::new(bytes, 1, sizes);
        let small = export(1 << 20, sizes(1, 512, u32::MAX).expect("sizes")).expect("an export");
        assert_eq!((small.unit_bytes, small.max_payload_bytes), (512, 32 << 20));
        assert_eq!(small.geometry(true).preferred_bytes, 4096);
        let large = export(1 << 20, sizes(4096, 65536, 70_000).expect("sizes")).expect("an export");
        assert_eq!((large.unit_bytes, large.max_payload_bytes), (4096, 69_632));
        assert_eq!(large.geometry(false).preferred_bytes, 65536);
        for (bytes, minimum) in [(0, 1), (1000, 1), (512, 4096), (1 << 63, 1)] {
            let sizes = sizes(minimum, 4096, 1 << 20).expect("sizes");
            assert!(matches!(export(bytes, sizes), Err(UpstreamError::Unfit(_))), "{bytes} {minimum}");
        }
        assert!(export(1 << 20, sizes(1, 512, 511).expect("legal")).is_err());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (minimum, preferred, maximum) in [
            (0, 4096, 4096),
            (3, 4096, 4096),
            (1 << 17, 1 << 17, 1 << 20),
            (512, 256, 4096),
            (512, 1000, 4096),
            (4096, 4096, 512),
        ] {
            assert!(sizes(minimum, preferred, maximum).is_err(), "{minimum} {preferred} {maximum}");
        }
        assert!(BlockSizes::parse(&[0; 11]).is_err());
        assert!(BlockSizes::parse(&[0; 13]).is_err());
    }

    #[test]
    fn an_export_without_any_way_to_durability_takes_no_writes() {
        let with = |flags| Export::new(4096, 1 | flags, BlockSizes::default()).expect("an export");
        assert!(with(0).require_writable().is_err());
        assert!(with(transmission_flag::SEND_FUA).require_writable().is_ok());
        assert!(with(transmission_flag::SEND_FLUSH).require_writable().is_ok());
        assert!(
            with(transmission_flag::SEND_FLUSH | transmission_flag::READ_ONLY).require_writable().is_err()
        );
    }
}
