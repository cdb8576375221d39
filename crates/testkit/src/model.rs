//! What a disk may answer: a shadow of every sector with the rules of flush, discard and crash. A test does
//! each operation on the model and on the device, and asks the model whether what the device shows is allowed.
//! No storage of its own, no I/O, no clock.

use std::fmt;
use std::ops::Range;

/// Bytes that a crash leaves old or new as a whole.
const SECTOR_BYTES: usize = 512;

/// The content of one sector.
type Content = [u8; SECTOR_BYTES];

/// The shadow of a disk that began as zeros.
pub struct Model {
    sectors: Vec<Sector>,
}

/// What one sector may be.
struct Sector {
    /// What a read may show: one content, or two after a discard.
    now: Vec<Content>,
    /// What a crash may bring back besides.
    before: Vec<Content>,
}

/// The device showed what it must not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Byte offset of the sector on the disk.
    pub sector_offset: usize,
    /// The first byte in it that differs from what it should be.
    pub first_difference: usize,
    /// How many contents would have been allowed.
    pub allowed: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sector_offset, first_difference, allowed } = self;
        let sector = sector_offset / SECTOR_BYTES;
        write!(
            f,
            "sector {sector} is none of {allowed} allowed contents (first difference at its byte {first_difference})"
        )
    }
}

impl std::error::Error for Mismatch {}

impl Model {
    /// A disk of `bytes` zeros, a multiple of 512.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(SECTOR_BYTES), "a disk is whole sectors");
        let fresh = || Sector { now: vec![[0; SECTOR_BYTES]], before: Vec::new() };
        Self { sectors: (0..bytes / SECTOR_BYTES).map(|_| fresh()).collect() }
    }

    /// The disk's size in bytes.
    pub fn bytes(&self) -> usize {
        self.sectors.len() * SECTOR_BYTES
    }

    /// An acknowledged write of any byte range. `durable`: it was forced to stable storage.
    pub fn write(&mut self, offset: usize, data: &[u8], durable: bool) {
        for (index, inside, part) in parts(offset, data.len()) {
            self.sectors[index]
                .replace(durable, |content| content[inside.clone()].copy_from_slice(&data[part.clone()]));
        }
    }

    /// An acknowledged zeroing of any byte range.
    pub fn zero(&mut self, offset: usize, bytes: usize, durable: bool) {
        for (index, inside, _) in parts(offset, bytes) {
            self.sectors[index].replace(durable, |content| content[inside.clone()].fill(0));
        }
    }

    /// An acknowledged discard of whole sectors: each reads as before, or as zeros.
    pub fn discard(&mut self, offset: usize, bytes: usize) {
        for (index, inside, _) in parts(offset, bytes) {
            assert_eq!(inside.len(), SECTOR_BYTES, "a discard is whole sectors");
            let Sector { now, before } = &mut self.sectors[index];
            // Seen as zeros and not flushed, it may still come back.
            now.iter().for_each(|content| add(before, *content));
            add(now, [0; SECTOR_BYTES]);
        }
    }

    /// An acknowledged flush: no crash brings back what was overwritten before it.
    pub fn flush(&mut self) {
        for sector in &mut self.sectors {
            sector.before.clear();
        }
    }

    /// Whether a read of any byte range may have shown `seen`. A sector that could be two things is from
    /// then on what it was seen to be.
    pub fn check(&mut self, offset: usize, seen: &[u8]) -> Result<(), Mismatch> {
        for (index, inside, part) in parts(offset, seen.len()) {
            self.sectors[index].see(inside, &seen[part]).map_err(|mismatch| mismatch.at_sector(index))?;
        }
        Ok(())
    }

    /// Whether the whole disk may read as `seen` after a crash; from then on it is that.
    pub fn recover(&mut self, seen: &[u8]) -> Result<(), Mismatch> {
        assert_eq!(seen.len(), self.bytes(), "recovery looks at the whole disk");
        for sector in &mut self.sectors {
            for content in std::mem::take(&mut sector.before) {
                add(&mut sector.now, content);
            }
        }
        self.check(0, seen)
    }
}

impl Sector {
    fn replace(&mut self, durable: bool, change: impl Fn(&mut Content)) {
        for content in std::mem::take(&mut self.now) {
            let mut changed = content;
            change(&mut changed);
            add(&mut self.now, changed);
            add(&mut self.before, content);
        }
        if durable {
            self.before.clear();
        }
    }

    fn see(&mut self, inside: Range<usize>, seen: &[u8]) -> Result<(), Mismatch> {
        let first = self.now[0];
        let allowed = self.now.len();
        self.now.retain(|content| content[inside.clone()] == *seen);
        if !self.now.is_empty() {
            return Ok(());
        }
        self.now.push(first);
        let differs = first[inside.clone()].iter().zip(seen).position(|(a, b)| a != b).unwrap_or_default();
        Err(Mismatch { sector_offset: 0, first_difference: inside.start + differs, allowed })
    }
}

impl Mismatch {
    fn at_sector(self, index: usize) -> Self {
        Self { sector_offset: index * SECTOR_BYTES, ..self }
    }
}

/// Adds `content` unless it is there: overwriting a sector with the same bytes for hours costs no memory.
fn add(contents: &mut Vec<Content>, content: Content) {
    if !contents.contains(&content) {
        contents.push(content);
    }
}

/// The sectors that a byte range touches: each with the bytes touched in it, and where those are in the range.
fn parts(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let end = offset + bytes;
    (offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)).map(move |index| {
        let sector = index * SECTOR_BYTES;
        let (from, to) = (offset.max(sector), end.min(sector + SECTOR_BYTES));
        (index, from - sector..to - sector, from - offset..to - offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(model: &Model, changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut image = vec![0; model.bytes()];
        for (offset, bytes) in changes {
            image[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        image
    }

    #[test]
    fn a_read_shows_the_last_write_and_nothing_else() {
        let mut model = Model::new(4096);
        model.write(510, b"abcd", false);
        assert_eq!(model.check(509, b"\0abcd\0"), Ok(()));
        let wrong = model.check(509, b"\0abXd\0").expect_err("differs");
        assert_eq!(wrong, Mismatch { sector_offset: 512, first_difference: 0, allowed: 1 });
        model.zero(511, 2, false);
        assert_eq!(model.check(510, b"a\0\0d"), Ok(()));
    }

    #[test]
    fn a_discarded_sector_is_old_or_zero_and_stays_what_it_was_seen_to_be() {
        let mut model = Model::new(1024);
        model.write(0, &[7; 1024], false);
        model.discard(0, 1024);
        assert_eq!(model.check(0, &[7; 512]), Ok(()));
        assert!(model.check(0, &[0; 512]).is_err());
        assert_eq!(model.check(512, &[0; 512]), Ok(()));
        assert!(model.check(512, &[7; 512]).is_err());
    }

    #[test]
    fn a_discard_that_was_not_flushed_may_be_undone_by_a_crash() {
        for flushed in [false, true] {
            let mut model = Model::new(512);
            model.write(0, &[7; 512], true);
            model.discard(0, 512);
            assert_eq!(model.check(0, &[0; 512]), Ok(()));
            if flushed {
                model.flush();
            }
            assert_eq!(model.recover(&[7; 512]).is_err(), flushed);
        }
    }

    #[test]
    fn a_crash_may_lose_what_was_not_flushed_and_nothing_more() {
        let mut model = Model::new(2048);
        model.write(0, b"flushed", false);
        model.write(512, b"flushed", false);
        model.flush();
        model.write(512, b"newer!!", false);
        let lost_the_newer = image(&model, &[(0, b"flushed"), (512, b"flushed")]);
        assert_eq!(model.recover(&lost_the_newer), Ok(()));
        let lost_a_flushed_one = image(&model, &[(512, b"flushed")]);
        assert!(model.recover(&lost_a_flushed_one).is_err());
    }

    #[test]
    fn a_durable_write_survives_without_a_flush() {
        let mut model = Model::new(1024);
        model.write(0, b"first", false);
        model.write(0, b"forced", true);
        model.write(512, b"not forced", false);
        let seen = image(&model, &[(0, b"first")]);
        assert!(model.recover(&seen).is_err());
    }
}
