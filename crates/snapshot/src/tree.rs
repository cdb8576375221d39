//! The index of one snapshot: from its root page to the references of its blocks. Reads only the pages it needs.

use std::sync::Arc;

use sealblk_record::SnapshotId;

use crate::block_set::BlockSet;
use crate::error::SnapshotError;
use crate::geometry::{FANOUT, child, leaf_of, split};
use crate::objects::{Objects, ROOT};
use crate::page::{Entry, Page, Place, Reference};

/// The index of a snapshot; without a root every block is zeros.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) objects: Arc<Objects>,
    /// Whose tree it is, for errors.
    pub(crate) snapshot: SnapshotId,
    pub(crate) root: Option<Reference>,
}

impl Tree {
    /// The page at `place`, and its reference.
    pub(crate) async fn page(&self, place: Place) -> Result<Option<(Reference, Arc<Page>)>, SnapshotError> {
        // The slots on the way down from the root.
        let mut slots = Vec::with_capacity(usize::from(ROOT.level));
        let mut position = place.position;
        for _ in place.level..ROOT.level {
            let (above, slot) = split(position);
            slots.push(slot);
            position = above;
        }
        let Some(mut reference) = self.root else { return Ok(None) };
        let mut at = ROOT;
        let mut page = self.objects.page(self.snapshot, at, &reference).await?;
        while let Some(slot) = slots.pop() {
            let Some(entry) = page.entry(slot) else { return Ok(None) };
            reference = entry.reference;
            at = Place { level: at.level - 1, position: child(at.position, slot) };
            page = self.objects.page(self.snapshot, at, &reference).await?;
        }
        Ok(Some((reference, page)))
    }

    /// The leaf page at `position`.
    pub(crate) async fn leaf(&self, position: u64) -> Result<Option<(Reference, Arc<Page>)>, SnapshotError> {
        self.page(Place { level: 0, position }).await
    }

    /// Where block `index` is; `None`: it is zeros.
    pub(crate) async fn block(&self, index: u64) -> Result<Option<Reference>, SnapshotError> {
        let (leaf, slot) = leaf_of(index);
        let found = self.leaf(leaf).await?;
        Ok(found.and_then(|(_, page)| page.entry(slot).map(|entry| entry.reference)))
    }

    /// The positions of all leaves that are there, ascending.
    pub(crate) async fn leaf_positions(&self) -> Result<Vec<u64>, SnapshotError> {
        let Some((_, root)) = self.page(ROOT).await? else { return Ok(Vec::new()) };
        let mut leaves = Vec::new();
        for middle in root.entries() {
            let place = Place { level: 1, position: u64::from(middle.slot) };
            let page = self.objects.page(self.snapshot, place, &middle.reference).await?;
            leaves.extend(page.entries().iter().map(|leaf| child(place.position, leaf.slot)));
        }
        Ok(leaves)
    }

    /// The blocks that have data.
    pub(crate) async fn data(&self) -> Result<BlockSet, SnapshotError> {
        let mut blocks = BlockSet::new();
        for position in self.leaf_positions().await? {
            if let Some((_, page)) = self.leaf(position).await? {
                blocks.extend(page.entries().iter().map(|entry| child(position, entry.slot)));
            }
        }
        Ok(blocks)
    }

    /// The blocks in which this and `other` differ. Reads only pages that are not the same in both.
    pub(crate) async fn difference(&self, other: &Self) -> Result<BlockSet, SnapshotError> {
        let mut blocks = BlockSet::new();
        // At most a middle page's children on top of a root page's.
        let mut open = vec![(ROOT, self.root, other.root)];
        while let Some((place, ours, theirs)) = open.pop() {
            if ours == theirs {
                continue;
            }
            let ours = self.entries(place, ours).await?;
            let theirs = other.entries(place, theirs).await?;
            for (slot, ours, theirs) in pairs(&ours, &theirs).filter(|(_, ours, theirs)| ours != theirs) {
                let position = child(place.position, slot);
                match place.level.checked_sub(1) {
                    // Another generation with the same hash is the same content.
                    None if ours.map(|one| one.hash) == theirs.map(|one| one.hash) => {}
                    None => blocks.insert(position),
                    Some(level) => open.push((Place { level, position }, ours, theirs)),
                }
            }
        }
        Ok(blocks)
    }

    async fn entries(&self, place: Place, reference: Option<Reference>) -> Result<Vec<Entry>, SnapshotError> {
        match reference {
            None => Ok(Vec::new()),
            Some(reference) => {
                let page = self.objects.page(self.snapshot, place, &reference).await?;
                Ok(page.entries().to_vec())
            }
        }
    }
}

/// The slots that either list has, with both references.
fn pairs(
    ours: &[Entry],
    theirs: &[Entry],
) -> impl Iterator<Item = (u16, Option<Reference>, Option<Reference>)> {
    let mut both = vec![(None, None); usize::try_from(FANOUT).expect("1024")];
    for entry in ours {
        if let Some(pair) = both.get_mut(usize::from(entry.slot)) {
            pair.0 = Some(entry.reference);
        }
    }
    for entry in theirs {
        if let Some(pair) = both.get_mut(usize::from(entry.slot)) {
            pair.1 = Some(entry.reference);
        }
    }
    (0_u16..)
        .zip(both)
        .filter(|(_, pair)| *pair != (None, None))
        .map(|(slot, (ours, theirs))| (slot, ours, theirs))
}
