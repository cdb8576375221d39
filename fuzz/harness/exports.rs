//! The export that is fuzzed, as the server has it and as its clients should see it.

use std::sync::Arc;

use sealblk_block::{ByteDevice, MemoryDevice};
use sealblk_nbd::{ExportInfo, MetaContext, StatusExtent};

/// Its name.
pub(crate) const NAME: &str = "vol-0123456789abcdef0";
/// Another name of it.
pub(crate) const ALIAS: &str = "data disk";
/// Its text for people.
pub(crate) const DESCRIPTION: &str = "a volume for tests";
/// Its size: small, so that requests overlap and meet the end.
pub(crate) const SIZE: u64 = 32 << 10;
/// Its own metadata context.
pub(crate) const OWN_CONTEXT: &str = "x-fuzz:stripes";
/// All of them, in the order of their numbers.
pub(crate) const CONTEXTS: [&str; 2] = ["base:allocation", OWN_CONTEXT];

/// Every other 1000 bytes are striped.
struct Stripes;

impl MetaContext for Stripes {
    fn name(&self) -> &str {
        OWN_CONTEXT
    }

    fn extents(&self, mut offset: u64, mut length: u64, extents: &mut Vec<StatusExtent>) {
        while length > 0 && extents.len() < extents.capacity() {
            let bytes = length.min(1000 - offset % 1000);
            extents.push(StatusExtent { bytes, flags: stripe(offset) });
            (offset, length) = (offset + bytes, length - bytes);
        }
    }
}

/// The flags of the byte at `offset` in [`OWN_CONTEXT`].
pub(crate) fn stripe(offset: u64) -> u32 {
    u32::from(offset / 1000 % 2 == 1)
}

/// What the server is told of the export.
pub(crate) fn info() -> ExportInfo {
    let info = ExportInfo::new(NAME, &[ALIAS], DESCRIPTION).expect("short strings");
    info.with_context(Arc::new(Stripes)).expect("a name of our own")
}

/// An empty device for it, with a unit of 512 or 4096 bytes.
pub(crate) fn device(large_unit: bool, read_only: bool) -> ByteDevice<MemoryDevice> {
    let device = MemoryDevice::new(SIZE / 512).with_unit(if large_unit { 4096 } else { 512 });
    ByteDevice::new(if read_only { device.with_read_only() } else { device })
}
