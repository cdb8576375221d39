//! An NBD export as a new volume's backing: reached, large enough, and blank or erased by permission.

use sealblk_block::BlockDevice;
use sealblk_block::blank::{Content, erase_device, inspect_device};
use sealblk_upstream::{ExportUri, UpstreamDevice, UpstreamOptions};
use sealblk_volume::VolumeSize;

use crate::backing::BackingError;
use crate::error::ControlError;
use crate::offline;
use crate::place::BackingPlace;

/// Connects to `uri`.
pub(crate) fn open(uri: &ExportUri, read_only: bool) -> Result<UpstreamDevice, BackingError> {
    let options = UpstreamOptions { read_only, ..UpstreamOptions::default() };
    UpstreamDevice::open(uri, &options)
        .map_err(|source| BackingError::Export { uri: Box::new(uri.clone()), source })
}

/// Sees to it that the export holds at least `size` zero bytes, and no others.
pub(crate) fn prepare(
    uri: &ExportUri,
    size: VolumeSize,
    erase: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ControlError> {
    let device = open(uri, false)?;
    let place = BackingPlace::Export(Box::new(uri.clone()));
    let found_bytes = device.geometry().sectors.saturating_mul(512);
    if found_bytes < size.bytes() {
        return Err(BackingError::TooSmall { place, found_bytes, needed_bytes: size.bytes() }.into());
    }
    let failed = |source| BackingError::ExportIo { uri: Box::new(uri.clone()), source };
    match offline::run(inspect_device(&device, progress))?.map_err(failed)? {
        Content::Blank => Ok(()),
        Content::Found { .. } if erase => Ok(offline::run(erase_device(&device, progress))?.map_err(failed)?),
        Content::Found { what, at } => Err(BackingError::NotBlank { place, what, at }.into()),
    }
}
