//! The file `map`, read and written: one owner at a time. Its own copy of what is durable in it decides what is
//! written next, so that a page never tells more than was asked to be told.

use std::ops::Range;

use sealblk_block::{BlockDevice, BlockError, BlockLane, Buffer, Durability, Lba, SECTOR_BYTES, SectorRange};

use super::bits::Bits;
use super::block::blocks_in;
use super::format::{
    Array, Header, MapError, MapIdentity, Origin, PAGE_BITS, PAGE_WORDS, Restoration, Sector, Tracking,
    decode_page, encode_page, file_bytes, page_sectors, pages,
};
use crate::piece::{piece_bytes, pieces};

/// How much of an array is read or written at once.
const PIECE_BYTES: usize = 256 * 1024;

/// What a map's file says.
#[derive(Debug)]
pub(crate) struct Stored {
    /// What the file is of: the volume, perhaps before it grew.
    pub(crate) of: MapIdentity,
    pub(crate) header: Header,
    /// If the restoration is pending: the blocks that are not here.
    pub(crate) missing: Option<Bits>,
    /// If the tracking is exact: the blocks that changed.
    pub(crate) changed: Option<Bits>,
}

/// A map's file, for the one who writes it.
#[derive(Debug)]
pub(crate) struct MapFile<L> {
    lane: L,
    of: MapIdentity,
    blocks: u64,
    header: Header,
    /// What the array of missing blocks says in the file, in words; empty unless a restoration is pending.
    missing: Vec<u64>,
    missing_left: u64,
}

/// The size of the file `map` of a volume of `blocks` blocks, as a device must have it.
pub(crate) fn check_size<S: BlockDevice>(store: &S, blocks: u64) -> Result<(), MapError> {
    let geometry = store.geometry();
    let needed = file_bytes(blocks);
    let found = geometry.sectors.saturating_mul(SECTOR_BYTES as u64);
    if found < needed {
        return Err(MapError::Damaged { at: found, what: "its end is missing" });
    }
    assert_eq!(geometry.unit_bytes as usize, SECTOR_BYTES, "a map is written by the sector");
    Ok(())
}

/// Reads a map. A damaged array of changed blocks is as none: it only saves work.
pub(crate) async fn read<L: BlockLane>(lane: &L, of: MapIdentity) -> Result<Stored, MapError> {
    let (result, sector) = lane.read(Lba(0), Buffer::new(SECTOR_BYTES)).await;
    result?;
    let sector: Sector = (*sector).try_into().expect("a sector was read");
    let (mut header, of) = Header::decode(&sector, of)?;
    let blocks = blocks_in(of.size.sectors());
    let missing = match header.restoration {
        Restoration::Pending(_) => Some(read_array(lane, of, Array::Missing, blocks).await?),
        Restoration::None | Restoration::Complete(_) => None,
    };
    let changed = match header.tracking {
        Tracking::Unknown => None,
        Tracking::Exact(_) => match read_array(lane, of, Array::Changed, blocks).await {
            Ok(changed) => Some(changed),
            Err(MapError::Damaged { .. }) => {
                header.tracking = Tracking::Unknown;
                None
            }
            Err(error) => return Err(error),
        },
    };
    Ok(Stored { of, header, missing, changed })
}

async fn read_array<L: BlockLane>(
    lane: &L,
    of: MapIdentity,
    array: Array,
    blocks: u64,
) -> Result<Bits, MapError> {
    let bits = Bits::new(blocks);
    let mut buffer = Buffer::new(PIECE_BYTES);
    let whole = page_sectors(array, 0..pages(blocks), blocks);
    for piece in pieces(whole, PIECE_BYTES) {
        let result;
        buffer.set_len(piece_bytes(piece));
        (result, buffer) = lane.read(piece.start, buffer).await;
        result?;
        let numbers = piece.start.0 - whole.start.0..;
        for (number, page) in numbers.zip(buffer.chunks_exact(SECTOR_BYTES)) {
            let at = Lba(whole.start.0 + number).byte_offset();
            let damaged = |what| MapError::Damaged { at, what };
            let words = decode_page(of, array, number, page)
                .ok_or(damaged("the checksum of a page of blocks does not fit"))?;
            set_words(&bits, number, &words).ok_or(damaged("it names blocks behind the volume's end"))?;
        }
        tokio::task::yield_now().await;
    }
    Ok(bits)
}

/// Sets the bits of page `number`; `None` if there are some behind the end.
fn set_words(bits: &Bits, number: u64, words: &[u64; PAGE_WORDS]) -> Option<()> {
    for (place, &word) in (0_u64..).zip(words) {
        let first = number * PAGE_BITS + place * u64::from(u64::BITS);
        let mut rest = word;
        while rest != 0 {
            let index = first + u64::from(rest.trailing_zeros());
            if index >= bits.len() {
                return None;
            }
            bits.set(index);
            rest &= rest - 1;
        }
    }
    Some(())
}

/// The words of page `number` among all `words`.
fn page_words(words: &[u64], number: u64) -> impl Iterator<Item = u64> {
    let first = usize::try_from(number).expect("a page of an array in memory") * PAGE_WORDS;
    words.iter().skip(first).take(PAGE_WORDS).copied()
}

/// Writes a whole array.
async fn write_array<L: BlockLane>(
    lane: &L,
    of: MapIdentity,
    array: Array,
    bits: &Bits,
) -> Result<(), BlockError> {
    let words = bits.to_words();
    let numbers = 0..pages(bits.len());
    let encode = |number| encode_page(of, array, number, page_words(&words, number));
    write_pages(lane, page_sectors(array, numbers.clone(), bits.len()), numbers, encode).await
}

/// Writes pages `numbers` at `whole`.
async fn write_pages<L: BlockLane>(
    lane: &L,
    whole: SectorRange,
    numbers: Range<u64>,
    encode: impl Fn(u64) -> Sector,
) -> Result<(), BlockError> {
    let mut buffer = Buffer::new(PIECE_BYTES);
    for piece in pieces(whole, PIECE_BYTES) {
        let result;
        buffer.set_len(piece_bytes(piece));
        let numbers = numbers.start + (piece.start.0 - whole.start.0)..;
        for (number, page) in numbers.zip(buffer.chunks_exact_mut(SECTOR_BYTES)) {
            page.copy_from_slice(&encode(number));
        }
        (result, buffer) = lane.write(piece.start, buffer, Durability::Volatile).await;
        result?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Writes the map of a new volume that is to be restored from a snapshot, durably.
pub(crate) async fn write_new<L: BlockLane>(
    lane: &L,
    of: MapIdentity,
    origin: Origin,
    missing: &Bits,
    base: bool,
) -> Result<(), BlockError> {
    write_array(lane, of, Array::Missing, missing).await?;
    let mut tracking = Tracking::Unknown;
    if base {
        write_array(lane, of, Array::Changed, &Bits::new(missing.len())).await?;
        tracking = Tracking::Exact(origin.snapshot);
    }
    lane.flush().await?;
    let header = Header { restoration: Restoration::Pending(origin), tracking };
    write_header(lane, of, &header).await
}

async fn write_header<L: BlockLane>(lane: &L, of: MapIdentity, header: &Header) -> Result<(), BlockError> {
    write_sector(lane, Lba(0), &header.encode(of)).await?;
    lane.flush().await
}

async fn write_sector<L: BlockLane>(lane: &L, at: Lba, sector: &Sector) -> Result<(), BlockError> {
    let mut buffer = Buffer::new(SECTOR_BYTES);
    buffer.copy_from_slice(sector);
    lane.write(at, buffer, Durability::Volatile).await.0
}

impl<L: BlockLane> MapFile<L> {
    /// The file behind `lane`, which says `header`, and that the blocks in the words of `missing` are.
    pub(crate) fn new(lane: L, of: MapIdentity, header: Header, missing: Vec<u64>) -> Self {
        let blocks = blocks_in(of.size.sectors());
        let missing_left = missing.iter().map(|word| u64::from(word.count_ones())).sum();
        Self { lane, of, blocks, header, missing, missing_left }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Whether no block is missing, and the header does not say that yet.
    pub(crate) fn is_complete_unsaid(&self) -> bool {
        self.missing_left == 0 && matches!(self.header.restoration, Restoration::Pending(_))
    }

    /// Makes durable that `blocks` are here, and that the restoration is complete if none is missing now. What
    /// they hold must be durable already.
    pub(crate) async fn restored(&mut self, blocks: &[u64]) -> Result<(), BlockError> {
        let mut touched = Vec::new();
        for &block in blocks {
            let word = usize::try_from(block / 64).expect("a block of this volume");
            let mask = 1 << (block % 64);
            let word = self.missing.get_mut(word).expect("a block that was missing");
            if *word & mask != 0 {
                *word &= !mask;
                self.missing_left -= 1;
                touched.push(block / PAGE_BITS);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for number in touched {
            let page = encode_page(self.of, Array::Missing, number, page_words(&self.missing, number));
            let at = page_sectors(Array::Missing, number..number + 1, self.blocks).start;
            write_sector(&self.lane, at, &page).await?;
        }
        self.lane.flush().await?;
        if let Restoration::Pending(origin) = self.header.restoration
            && self.missing_left == 0
        {
            let header = Header { restoration: Restoration::Complete(origin), ..self.header };
            self.write_header(header).await?;
            self.missing = Vec::new();
        }
        Ok(())
    }

    /// How many blocks the file has room for.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Makes durable that the volume has grown to what `of` says: the new blocks are here, and the file does not say
    /// what changed. The file is long enough. Until the header is written, which is one sector and the last to be,
    /// the map is that of the smaller volume.
    pub(crate) async fn grow(&mut self, of: MapIdentity) -> Result<(), BlockError> {
        let blocks = blocks_in(of.size.sectors());
        assert!(blocks >= self.blocks, "volumes only grow");
        // The longer array of missing blocks takes the place of the other one.
        self.forget_changes().await?;
        if let Restoration::Pending(_) = self.header.restoration {
            let new = pages(self.blocks)..pages(blocks);
            let encode = |number| encode_page(of, Array::Missing, number, std::iter::empty());
            let sectors = page_sectors(Array::Missing, new.clone(), blocks);
            write_pages(&self.lane, sectors, new, encode).await?;
            self.lane.flush().await?;
        }
        write_header(&self.lane, of, &self.header).await?;
        (self.of, self.blocks) = (of, blocks);
        Ok(())
    }

    /// Makes durable that the array of changed blocks tells nothing.
    pub(crate) async fn forget_changes(&mut self) -> Result<(), BlockError> {
        if self.header.tracking == Tracking::Unknown {
            return Ok(());
        }
        self.write_header(Header { tracking: Tracking::Unknown, ..self.header }).await
    }

    /// Makes durable that exactly `changed` changed since `base`. All of the volume's writes must be durable.
    pub(crate) async fn record_changes(&mut self, base: SnapshotBase<'_>) -> Result<(), BlockError> {
        // Not over an array that the header vouches for.
        self.forget_changes().await?;
        write_array(&self.lane, self.of, Array::Changed, base.changed).await?;
        self.lane.flush().await?;
        self.write_header(Header { tracking: Tracking::Exact(base.snapshot), ..self.header }).await
    }

    async fn write_header(&mut self, header: Header) -> Result<(), BlockError> {
        write_header(&self.lane, self.of, &header).await?;
        self.header = header;
        Ok(())
    }
}

/// What changed since a snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotBase<'a> {
    pub(crate) snapshot: crate::id::SnapshotId,
    pub(crate) changed: &'a Bits,
}
