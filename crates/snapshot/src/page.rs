//! An index page and its bytes (docs/FORMAT.md, "Index pages"): which blocks, or which pages below, have data and where.
//! No I/O here. A slot that is not in a page has only zeros under it.

use std::collections::BTreeSet;

use sealblk_record::SnapshotId;

use crate::geometry::{FANOUT, LEVELS};
use crate::hash::ContentHash;

const MAGIC: &[u8; 8] = b"SEALPAGE";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 20;
const GENERATION_DIGITS: usize = 17;
const GENERATION_PREFIX: &str = "snap-";
const ENTRY_BYTES: usize = 40;

/// The most bytes a page can have: what is longer is not read.
pub(crate) const MAX_PAGE_BYTES: u64 =
    HEADER_BYTES as u64 + FANOUT * (GENERATION_DIGITS + ENTRY_BYTES) as u64;

/// Which object holds a block or page: the snapshot whose making wrote it, and the hash of its content. Position (and
/// level) come from where the reference stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Reference {
    pub(crate) generation: SnapshotId,
    pub(crate) hash: ContentHash,
}

/// A slot that has data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) slot: u16,
    /// Blocks with data under it; 1 in a leaf.
    pub(crate) blocks: u32,
    pub(crate) reference: Reference,
}

/// Where a page is in the index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    pub(crate) level: u8,
    pub(crate) position: u64,
}

/// An index page: at least one entry, slots ascending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    place: Place,
    entries: Vec<Entry>,
}

impl Page {
    /// The page of these entries, whose slots ascend; `None` if there are none: such a page is not stored.
    pub(crate) fn new(place: Place, entries: Vec<Entry>) -> Option<Self> {
        debug_assert!(entries.is_sorted_by(|a, b| a.slot < b.slot));
        (!entries.is_empty()).then_some(Self { place, entries })
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn entry(&self, slot: u16) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&slot, |entry| entry.slot).ok()?;
        self.entries.get(at)
    }

    /// Blocks with data under the page.
    pub(crate) fn blocks(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.blocks)).sum()
    }

    /// The page's one representation.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let generations: BTreeSet<SnapshotId> =
            self.entries.iter().map(|entry| entry.reference.generation).collect();
        let generations: Vec<SnapshotId> = generations.into_iter().collect();
        let position = u32::try_from(self.place.position).expect("a volume has at most 2^20 leaves");
        let mut bytes = Vec::with_capacity(
            HEADER_BYTES + generations.len() * GENERATION_DIGITS + self.entries.len() * ENTRY_BYTES,
        );
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.place.level, 0]);
        bytes.extend_from_slice(&position.to_le_bytes());
        bytes.extend_from_slice(&short(generations.len()).to_le_bytes());
        bytes.extend_from_slice(&short(self.entries.len()).to_le_bytes());
        for generation in &generations {
            let text = generation.to_string();
            bytes.extend(text.bytes().skip(GENERATION_PREFIX.len()));
        }
        for entry in &self.entries {
            let at = generations.binary_search(&entry.reference.generation);
            let generation = short(at.expect("the list is made of these"));
            bytes.extend_from_slice(&entry.slot.to_le_bytes());
            bytes.extend_from_slice(&generation.to_le_bytes());
            bytes.extend_from_slice(&entry.blocks.to_le_bytes());
            bytes.extend_from_slice(entry.reference.hash.as_bytes());
        }
        bytes
    }

    /// The page in `bytes`, which is to be the one at `place`; in words, why there is none.
    pub(crate) fn decode(place: Place, bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        let header = reader.header()?;
        if (header.level, u64::from(header.position)) != (place.level, place.position) {
            return Err(format!("it is page {} of level {}", header.position, header.level));
        }
        let generations = reader.generations(header.generations)?;
        let entries = reader.entries(header.entries, place.level, &generations)?;
        if !reader.0.is_empty() {
            return Err("bytes follow its last entry".to_owned());
        }
        Self::new(place, entries).ok_or_else(|| "it has no entry".to_owned())
    }
}

/// A count or an index of a page's lists.
fn short(count: usize) -> u16 {
    u16::try_from(count).expect("a page has 1024 slots")
}

struct Header {
    level: u8,
    position: u32,
    generations: u16,
    entries: u16,
}

/// What is left of a page's bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or("it ends early")?;
        self.0 = rest;
        Ok(*head)
    }

    fn header(&mut self) -> Result<Header, String> {
        if self.take::<8>()? != *MAGIC {
            return Err("it is not an index page".to_owned());
        }
        let version = u16::from_le_bytes(self.take()?);
        if version != VERSION {
            return Err(format!("it has version {version}; this release knows version {VERSION}"));
        }
        let [level, reserved] = self.take()?;
        let position = u32::from_le_bytes(self.take()?);
        let generations = u16::from_le_bytes(self.take()?);
        let entries = u16::from_le_bytes(self.take()?);
        let fits = |count: u16| u64::from(count) <= FANOUT;
        if level >= LEVELS || reserved != 0 || !fits(generations) || !fits(entries) {
            return Err("its header makes no sense".to_owned());
        }
        Ok(Header { level, position, generations, entries })
    }

    fn generations(&mut self, count: u16) -> Result<Vec<SnapshotId>, String> {
        let mut generations = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let digits = self.take::<GENERATION_DIGITS>()?;
            let digits = std::str::from_utf8(&digits).map_err(|_| "a generation is not text")?;
            let id: SnapshotId =
                format!("{GENERATION_PREFIX}{digits}").parse().map_err(|_| "a generation is malformed")?;
            generations.push(id);
        }
        if !generations.is_sorted_by(|a, b| a < b) {
            return Err("its generations are not in order".to_owned());
        }
        Ok(generations)
    }

    fn entries(&mut self, count: u16, level: u8, generations: &[SnapshotId]) -> Result<Vec<Entry>, String> {
        let mut entries = Vec::with_capacity(usize::from(count));
        // How many blocks there can be under a slot: 1, 1024, 1048576.
        let most = FANOUT.pow(u32::from(level));
        for _ in 0..count {
            let slot = u16::from_le_bytes(self.take()?);
            let generation = u16::from_le_bytes(self.take()?);
            let blocks = u32::from_le_bytes(self.take()?);
            let hash = ContentHash::from_bytes(self.take()?);
            let generation = *generations.get(usize::from(generation)).ok_or("an entry has no generation")?;
            if u64::from(slot) >= FANOUT || blocks == 0 || u64::from(blocks) > most {
                return Err(format!("its entry for slot {slot} makes no sense"));
            }
            entries.push(Entry { slot, blocks, reference: Reference { generation, hash } });
        }
        if !entries.is_sorted_by(|a, b| a.slot < b.slot) {
            return Err("its slots are not in order".to_owned());
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests;
