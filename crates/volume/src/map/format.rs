//! The bytes of the file `map` (docs/FORMAT.md): a header sector and two arrays of bits, in pages of one sector,
//! each with a checksum. No I/O here.

use std::ops::Range;

use sealblk_block::{Lba, SECTOR_BYTES, SectorRange};
use sha2::{Digest, Sha256};

use super::block::BLOCK_BYTES;
use crate::id::{SnapshotId, VolumeId};
use crate::size::VolumeSize;

pub(crate) type Sector = [u8; SECTOR_BYTES];

const MAGIC: &[u8; 8] = b"SEALMAP\0";
const VERSION: u32 = 1;
/// Where the first array begins.
const ARRAYS_START: u64 = 8;
/// Arrays begin at multiples of 4096 bytes.
const ARRAY_ALIGN: u64 = 8;
/// Bits in a page, before its checksum.
pub(crate) const PAGE_BITS: u64 = 8 * PAGE_BYTES as u64;
const PAGE_BYTES: usize = SECTOR_BYTES - PAGE_SUM_BYTES;
const PAGE_SUM_BYTES: usize = 16;
/// 64-bit words in a page.
pub(crate) const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// What the header's checksum covers.
const HEADER_BYTES: usize = SECTOR_BYTES - 32;
const ID_BYTES: usize = 24;

/// Which volume a map is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapIdentity {
    /// The volume.
    pub volume_id: VolumeId,
    /// Its size.
    pub size: VolumeSize,
}

/// The two arrays of bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Array {
    /// Blocks that are not restored yet.
    Missing = 1,
    /// Blocks that changed since the last snapshot.
    Changed = 2,
}

/// How far a volume that came from a snapshot is restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restoration {
    /// It did not come from one.
    None,
    /// Some blocks are missing: those that the array says.
    Pending(Origin),
    /// All of it is here.
    Complete(Origin),
}

/// What a volume is restored from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    pub(crate) snapshot: SnapshotId,
    /// How many blocks were to be restored.
    pub(crate) blocks: u64,
}

/// What is known of changes since a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tracking {
    /// Nothing: any block may have changed.
    Unknown,
    /// The array says exactly what changed since this snapshot.
    Exact(SnapshotId),
}

/// The header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) restoration: Restoration,
    pub(crate) tracking: Tracking,
}

impl Header {
    /// Of a volume of which nothing is known.
    pub(crate) const BLANK: Self = Self { restoration: Restoration::None, tracking: Tracking::Unknown };
}

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A checksum does not fit, or a field is none.
    #[error("the block map is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It is of a release that this one does not know.
    #[error("the block map has format version {found}; this release reads {VERSION}")]
    UnknownVersion {
        /// The version found.
        found: u32,
    },
    /// It is another volume's, or of a larger one.
    #[error("the block map is that of another volume, or of this one when it was larger")]
    OtherVolume,
    /// The volume was made from a snapshot, and its map does not say so: nobody knows which blocks are here.
    #[error("the volume was made from a snapshot, but its block map is gone")]
    Lost,
    /// The map says what the volume's record does not: the record is not this volume's, or an old one.
    #[error("the block map is of a volume made from {found}, which the volume's record does not say")]
    OtherOrigin {
        /// The snapshot.
        found: SnapshotId,
    },
    /// The map, or the device that it is for, failed or does not fit.
    #[error(transparent)]
    Device(#[from] sealblk_block::BlockError),
}

/// How many pages an array of `blocks` bits has.
pub(crate) fn pages(blocks: u64) -> u64 {
    blocks.div_ceil(PAGE_BITS)
}

/// The first sector of an array.
fn array_start(array: Array, blocks: u64) -> u64 {
    match array {
        Array::Missing => ARRAYS_START,
        Array::Changed => ARRAYS_START + pages(blocks).next_multiple_of(ARRAY_ALIGN),
    }
}

/// The sectors of pages `numbers` of an array.
pub(crate) fn page_sectors(array: Array, numbers: Range<u64>, blocks: u64) -> SectorRange {
    SectorRange { start: Lba(array_start(array, blocks) + numbers.start), count: numbers.end - numbers.start }
}

/// The file's size in bytes for a volume of `blocks` blocks.
pub(crate) fn file_bytes(blocks: u64) -> u64 {
    let end = array_start(Array::Changed, blocks) + pages(blocks).next_multiple_of(ARRAY_ALIGN);
    end * SECTOR_BYTES as u64
}

/// A page with the bits of `words` (at most [`PAGE_WORDS`], the rest is clear).
pub(crate) fn encode_page(
    of: MapIdentity,
    array: Array,
    number: u64,
    words: impl Iterator<Item = u64>,
) -> Sector {
    let mut page = [0; SECTOR_BYTES];
    for (bytes, word) in page[..PAGE_BYTES].chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let sum = page_sum(of, array, number, &page[..PAGE_BYTES]);
    page[PAGE_BYTES..].copy_from_slice(&sum);
    page
}

/// The words of a page, if it is the one that was written there.
pub(crate) fn decode_page(
    of: MapIdentity,
    array: Array,
    number: u64,
    page: &[u8],
) -> Option<[u64; PAGE_WORDS]> {
    let (bits, sum) = page.split_at_checked(PAGE_BYTES)?;
    if page_sum(of, array, number, bits) != sum {
        return None;
    }
    let mut words = [0; PAGE_WORDS];
    for (word, bytes) in words.iter_mut().zip(bits.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Some(words)
}

fn page_sum(of: MapIdentity, array: Array, number: u64, bits: &[u8]) -> [u8; PAGE_SUM_BYTES] {
    let mut hash = Sha256::new();
    hash.update(of.volume_id.to_string());
    hash.update([array as u8]);
    hash.update(number.to_le_bytes());
    hash.update(bits);
    let digest: [u8; 32] = hash.finalize().into();
    *digest.first_chunk().expect("16 of 32 bytes")
}

impl Header {
    pub(crate) fn encode(&self, of: MapIdentity) -> Sector {
        let (restored, origin) = match &self.restoration {
            Restoration::None => (0, None),
            Restoration::Pending(origin) => (1, Some(origin)),
            Restoration::Complete(origin) => (2, Some(origin)),
        };
        let base = match &self.tracking {
            Tracking::Unknown => None,
            Tracking::Exact(base) => Some(base),
        };
        let block_bytes = u32::try_from(BLOCK_BYTES).expect("512 KiB");
        let mut bytes = Vec::with_capacity(SECTOR_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&block_bytes.to_le_bytes());
        bytes.extend_from_slice(&padded(of.volume_id.to_string()));
        bytes.extend_from_slice(&of.size.bytes().to_le_bytes());
        bytes.extend_from_slice(&[restored, u8::from(base.is_some()), 0, 0, 0, 0, 0, 0]);
        bytes
            .extend_from_slice(&padded(origin.map(|origin| origin.snapshot.to_string()).unwrap_or_default()));
        bytes.extend_from_slice(&origin.map_or(0, |origin| origin.blocks).to_le_bytes());
        bytes.extend_from_slice(&padded(base.map(SnapshotId::to_string).unwrap_or_default()));
        bytes.resize(HEADER_BYTES, 0);
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        bytes.extend_from_slice(&sum);
        bytes.try_into().expect("480 bytes and a checksum are a sector")
    }

    /// The header in a map's first sector, and what the map is of by its own account: the same volume, which may
    /// have grown since. A sector of zeros was never written.
    pub(crate) fn decode(sector: &Sector, of: MapIdentity) -> Result<(Self, MapIdentity), MapError> {
        const DAMAGED: fn(&'static str) -> MapError = |what| MapError::Damaged { at: 0, what };
        if sector.iter().all(|&byte| byte == 0) {
            return Ok((Self::BLANK, of));
        }
        let mut fields = Fields(sector);
        if fields.take::<8>() != *MAGIC {
            return Err(DAMAGED("it does not begin as a block map does"));
        }
        let version = u32::from_le_bytes(fields.take());
        let (covered, sum) = sector.split_at(HEADER_BYTES);
        if <[u8; 32]>::from(Sha256::digest(covered)) != *sum {
            return Err(DAMAGED("the header's checksum does not fit"));
        }
        if version != VERSION {
            return Err(MapError::UnknownVersion { found: version });
        }
        if usize::try_from(u32::from_le_bytes(fields.take())) != Ok(BLOCK_BYTES) {
            return Err(DAMAGED("its blocks are not of 512 KiB"));
        }
        let volume = fields.take::<ID_BYTES>() == padded(of.volume_id.to_string());
        let size = VolumeSize::from_bytes(u64::from_le_bytes(fields.take())).ok();
        let written = size.filter(|&size| volume && size <= of.size);
        let written = MapIdentity { size: written.ok_or(MapError::OtherVolume)?, ..of };
        let [restored, tracked, ..] = fields.take::<8>();
        let origin = snapshot_id(&fields.take()).ok_or(DAMAGED("the origin is no snapshot"))?;
        let blocks = u64::from_le_bytes(fields.take());
        let base = snapshot_id(&fields.take()).ok_or(DAMAGED("the base is no snapshot"))?;
        let restoration = match (restored, origin) {
            (0, None) => Restoration::None,
            (1, Some(snapshot)) => Restoration::Pending(Origin { snapshot, blocks }),
            (2, Some(snapshot)) => Restoration::Complete(Origin { snapshot, blocks }),
            _ => return Err(DAMAGED("the state of its restoration is none")),
        };
        let tracking = match (tracked, base) {
            (0, None) => Tracking::Unknown,
            (1, Some(base)) => Tracking::Exact(base),
            _ => return Err(DAMAGED("the state of its tracking is none")),
        };
        Ok((Self { restoration, tracking }, written))
    }
}

/// A text of at most 24 bytes, with zeros behind it.
fn padded(text: String) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    for (place, byte) in bytes.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    bytes
}

/// The snapshot id in a padded text: `Some(None)` if there is none, `None` if it is something else.
fn snapshot_id(bytes: &[u8; ID_BYTES]) -> Option<Option<SnapshotId>> {
    if bytes == &[0; ID_BYTES] {
        return Some(None);
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let id: SnapshotId = text.parse().ok()?;
    (padded(id.to_string()) == *bytes).then_some(Some(id))
}

/// Reads a sector from its start.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes. A header's fields fit its sector.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields of a header fit its sector");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests;
