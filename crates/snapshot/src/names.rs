//! What objects are called (docs/FORMAT.md, "A snapshot repository"): names made and names understood, no I/O.

use object_store::path::Path;
use sealblk_record::SnapshotId;

use crate::geometry::{child, leaf_of};
use crate::hash::ContentHash;
use crate::page::{Place, Reference};

/// The record that makes a place a repository.
pub(crate) const REPOSITORY: &str = "repository.json";
/// The record that counts deletions.
pub(crate) const DELETIONS: &str = "deletions.json";
pub(crate) const SNAPSHOTS: &str = "snapshots";
pub(crate) const HOLDS: &str = "holds";
pub(crate) const BLOCKS: &str = "blocks";
pub(crate) const PAGES: &str = "pages";

const RECORD_SUFFIX: &str = ".json";

pub(crate) fn record(id: SnapshotId) -> Path {
    Path::from_iter([SNAPSHOTS, &format!("{id}{RECORD_SUFFIX}")])
}

/// The snapshot whose record is at `path`; `None`: no record's name.
pub(crate) fn parse_record(path: &Path) -> Option<SnapshotId> {
    path.filename()?.strip_suffix(RECORD_SUFFIX)?.parse().ok()
}

pub(crate) fn hold(id: SnapshotId, holder: &str) -> Path {
    Path::from_iter([HOLDS, &format!("{id}.{holder}{RECORD_SUFFIX}")])
}

/// The snapshot and the holder of the hold at `path`.
pub(crate) fn parse_hold(path: &Path) -> Option<(SnapshotId, String)> {
    let (id, holder) = path.filename()?.strip_suffix(RECORD_SUFFIX)?.split_once('.')?;
    Some((id.parse().ok()?, holder.to_owned()))
}

/// All that the making of `generation` wrote of a kind ([`BLOCKS`] or [`PAGES`]).
pub(crate) fn generation(kind: &str, generation: SnapshotId) -> Path {
    Path::from_iter([kind, &generation.to_string()])
}

/// The generation that a prefix below [`BLOCKS`] or [`PAGES`] is of.
pub(crate) fn parse_generation(prefix: &Path) -> Option<SnapshotId> {
    prefix.filename()?.parse().ok()
}

/// All blocks of one leaf that the making of `generation` wrote.
pub(crate) fn leaf_blocks(generation: SnapshotId, leaf: u64) -> Path {
    Path::from_iter([BLOCKS, &generation.to_string(), &format!("{leaf:06x}")])
}

/// The leaf that a prefix below a generation's blocks is of.
pub(crate) fn parse_leaf(prefix: &Path) -> Option<u64> {
    hexadecimal(prefix.filename()?, 6)
}

pub(crate) fn block(index: u64, reference: &Reference) -> Path {
    let (leaf, slot) = leaf_of(index);
    let name = format!("{slot:03x}-{}", reference.hash);
    Path::from_iter([BLOCKS, &reference.generation.to_string(), &format!("{leaf:06x}"), &name])
}

/// The block and the reference of the object at `path`, below [`BLOCKS`].
pub(crate) fn parse_block(path: &Path) -> Option<(u64, Reference)> {
    let mut parts = path.parts().rev();
    let (name, leaf, generation) = (parts.next()?, parts.next()?, parts.next()?);
    let (slot, hash) = name.as_ref().split_once('-')?;
    let slot = u16::try_from(hexadecimal(slot, 3)?).ok().filter(|slot| *slot < 1024)?;
    let reference = reference(generation.as_ref(), hash)?;
    Some((child(hexadecimal(leaf.as_ref(), 6)?, slot), reference))
}

pub(crate) fn page(place: Place, reference: &Reference) -> Path {
    let name = format!("{}-{:06x}-{}", place.level, place.position, reference.hash);
    Path::from_iter([PAGES, &reference.generation.to_string(), &name])
}

/// The place and the reference of the object at `path`, below [`PAGES`].
pub(crate) fn parse_page(path: &Path) -> Option<(Place, Reference)> {
    let mut parts = path.parts().rev();
    let (name, generation) = (parts.next()?, parts.next()?);
    let (level, rest) = name.as_ref().split_once('-')?;
    let (position, hash) = rest.split_once('-')?;
    let level = u8::try_from(hexadecimal(level, 1)?).ok()?;
    Some((Place { level, position: hexadecimal(position, 6)? }, reference(generation.as_ref(), hash)?))
}

fn reference(generation: &str, hash: &str) -> Option<Reference> {
    Some(Reference { generation: generation.parse().ok()?, hash: hash.parse::<ContentHash>().ok()? })
}

/// The value of exactly `digits` lower-case hexadecimal digits.
fn hexadecimal(text: &str, digits: usize) -> Option<u64> {
    let is_digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    let right = text.len() == digits && text.bytes().all(is_digit);
    right.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_as_they_are_made() {
        let id: SnapshotId = "snap-0123456789abcdef0".parse().expect("an id");
        let reference = Reference { generation: id, hash: ContentHash::of(b"") };
        let place = Place { level: 1, position: 31 };
        assert_eq!(parse_record(&record(id)), Some(id));
        assert_eq!(parse_hold(&hold(id, "vol-1")), Some((id, "vol-1".to_owned())));
        assert_eq!(parse_block(&block((1 << 30) - 1, &reference)), Some(((1 << 30) - 1, reference)));
        assert_eq!(parse_page(&page(place, &reference)), Some((place, reference)));
        assert_eq!(parse_leaf(&leaf_blocks(id, 77)), Some(77));
    }

    #[test]
    fn what_is_not_ours_has_no_meaning() {
        for foreign in ["blocks/.keep", "blocks/x/000000/000-0", "blocks/snap-0123456789abcdef0/0/000-aa"] {
            assert_eq!(parse_block(&Path::from(foreign)), None, "{foreign}");
        }
        assert_eq!(parse_record(&Path::from("snapshots/.keep")), None);
    }
}
