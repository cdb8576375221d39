//! Deleting a snapshot: its record is marked, then the objects that only it needs go, from the blocks up to the root page,
//! then the record. What it shares is found by comparing its index with the others' place by place.
//!
//! Killed anywhere, [`Repository::delete`] or [`Repository::finish_deletions`] goes on: a page is removed after all that is
//! to go below it, so a page that is missing has nothing left below it.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use sealblk_record::SnapshotId;

use crate::error::{Fault, SnapshotError};
use crate::geometry::child;
use crate::names::{self, BLOCKS, PAGES};
use crate::objects::ROOT;
use crate::page::{Page, Place, Reference};
use crate::record::{SnapshotRecord, State};
use crate::repository::Repository;

/// Leaves looked at at the same time.
const PARALLEL: usize = 8;

/// What a deletion did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deletion {
    /// The snapshot is gone, and so is what no other snapshot needs.
    Removed(Freed),
    /// The snapshot is closed, to be removed when the last of these lets go of it.
    Held {
        /// Who holds it: names of holds, and identifiers of snapshots that are being made and build on it.
        holders: Vec<String>,
    },
}

/// What a deletion removed from the store itself; what an interrupted one removed before is not counted again.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Freed {
    /// Blocks.
    pub blocks: u64,
    /// Index pages.
    pub pages: u64,
}

impl Freed {
    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.pages += other.pages;
    }
}

/// The same page of several snapshots that must stay: each with the one whose it is.
type Kept = Vec<(SnapshotId, Reference)>;

impl Repository {
    /// Deletes a snapshot in whatever state, and frees exactly the objects that no other snapshot needs. Deleting one whose
    /// deletion was interrupted goes on with it.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`]. [`SnapshotError::Damaged`]: the index of another snapshot cannot be read, so that nobody
    /// can say what it needs: nothing below that place was removed. [`SnapshotError::Store`]. The snapshot is then being
    /// deleted, and calling again goes on.
    pub async fn delete(&self, id: SnapshotId) -> Result<Deletion, SnapshotError> {
        let mark = self.update(id, |record| {
            record.state = State::Deleting;
            Ok(())
        });
        let record = mark.await?.value;
        self.count_deletion().await?;
        let mut holders = self.holders(id).await?;
        holders.extend(self.makings_upon(id).await?);
        if !holders.is_empty() {
            return Ok(Deletion::Held { holders });
        }
        let freed = if record.was_completed() {
            self.free_unshared(&record).await?
        } else {
            // Only completed snapshots are built upon: all that this one wrote is its own.
            self.free_generation(id).await?
        };
        self.records.remove(&names::record(id)).await?;
        if !record.was_completed() {
            self.let_parent_go(&record).await?;
        }
        Ok(Deletion::Removed(freed))
    }

    /// The snapshots that are being made, or were given up and not yet deleted, and build on `id`.
    async fn makings_upon(&self, id: SnapshotId) -> Result<Vec<String>, SnapshotError> {
        let records = self.snapshots().await?.into_iter();
        let builds = records.filter(|record| {
            let parent = record.parent.map(|parent| parent.snapshot_id);
            parent == Some(id) && !record.was_completed() && record.state != State::Deleting
        });
        Ok(builds.map(|record| record.snapshot_id.to_string()).collect())
    }

    /// Goes on with the deletion of a snapshot's parent that waited for the snapshot to be completed or deleted.
    pub(crate) async fn let_parent_go(&self, record: &SnapshotRecord) -> Result<(), SnapshotError> {
        let Some(parent) = record.parent.map(|parent| parent.snapshot_id) else { return Ok(()) };
        match self.record(parent).await {
            Ok(parent) if parent.state == State::Deleting => {
                // It was completed, so that it waits for no parent: this goes one deep.
                match Box::pin(self.delete(parent.snapshot_id)).await {
                    Ok(_) | Err(SnapshotError::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Ok(_) | Err(SnapshotError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Goes on with every deletion that was interrupted and that nobody delays any more; returns the snapshots that are gone now.
    ///
    /// # Errors
    /// As of [`delete`](Self::delete).
    pub async fn finish_deletions(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut gone = Vec::new();
        for record in self.snapshots().await? {
            if record.state != State::Deleting {
                continue;
            }
            match self.delete(record.snapshot_id).await {
                Ok(Deletion::Held { .. }) => {}
                Ok(Deletion::Removed(_)) | Err(SnapshotError::NotFound { .. }) => {
                    gone.push(record.snapshot_id)
                }
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    async fn free_unshared(&self, record: &SnapshotRecord) -> Result<Freed, SnapshotError> {
        let Some(root) = record.root else { return Ok(Freed::default()) };
        let mut kept: Kept = Vec::new();
        for other in self.living().await? {
            let related = other.family == record.family && other.snapshot_id != record.snapshot_id;
            if let Some(needed) = other.needed_root().filter(|_| related) {
                push_new(&mut kept, other.snapshot_id, needed.reference());
            }
        }
        self.free_page(record.snapshot_id, ROOT, root.reference(), kept).await
    }

    /// Removes what is below a page of `of` and in none of the `kept` pages of the same place, then the page.
    fn free_page(
        &self,
        of: SnapshotId,
        place: Place,
        doomed: Reference,
        kept: Kept,
    ) -> Pin<Box<dyn Future<Output = Result<Freed, SnapshotError>> + Send + '_>> {
        Box::pin(async move {
            if kept.iter().any(|(_, reference)| *reference == doomed) {
                return Ok(Freed::default());
            }
            let page = match self.objects.page_from_store(of, place, &doomed).await {
                // Removed before, after all that was to go below it.
                Err(SnapshotError::Damaged { fault: Fault::Missing, .. }) => return Ok(Freed::default()),
                page => page?,
            };
            let mut others = Vec::with_capacity(kept.len());
            for (other, reference) in kept {
                others.push((other, self.objects.page(other, place, &reference).await?));
            }
            let below = |slot| {
                let mut kept = Kept::new();
                for (other, page) in &others {
                    if let Some(entry) = page.entry(slot) {
                        push_new(&mut kept, *other, entry.reference);
                    }
                }
                kept
            };
            let mut freed = match place.level.checked_sub(1) {
                None => self.free_blocks(place, &page, below).await?,
                Some(level) => {
                    let pages = page.entries().iter().map(|entry| {
                        let place = Place { level, position: child(place.position, entry.slot) };
                        self.free_page(of, place, entry.reference, below(entry.slot))
                    });
                    let pages: Vec<_> = pages.collect();
                    let mut freed = Freed::default();
                    let mut done = futures_util::stream::iter(pages).buffer_unordered(PARALLEL);
                    while let Some(below) = done.try_next().await? {
                        freed.add(below);
                    }
                    freed
                }
            };
            self.objects.remove(vec![names::page(place, &doomed)]).await?;
            freed.pages += 1;
            Ok(freed)
        })
    }

    /// Removes the blocks of a leaf that nobody keeps.
    async fn free_blocks(
        &self,
        place: Place,
        page: &Page,
        kept: impl Fn(u16) -> Kept,
    ) -> Result<Freed, SnapshotError> {
        let unshared = page
            .entries()
            .iter()
            .filter(|entry| kept(entry.slot).iter().all(|(_, reference)| *reference != entry.reference));
        let paths: Vec<Path> =
            unshared.map(|entry| names::block(child(place.position, entry.slot), &entry.reference)).collect();
        let blocks = paths.len() as u64;
        self.objects.remove(paths).await?;
        Ok(Freed { blocks, pages: 0 })
    }

    /// Removes everything that the making of a snapshot wrote.
    async fn free_generation(&self, id: SnapshotId) -> Result<Freed, SnapshotError> {
        let mut freed = Freed::default();
        let pages = self.objects.list(&names::generation(PAGES, id)).await?;
        freed.pages = pages.len() as u64;
        self.objects.remove(pages.into_iter().map(|object| object.location).collect()).await?;
        let leaves = self.objects.prefixes(&names::generation(BLOCKS, id)).await?;
        for leaf in leaves.iter().filter_map(names::parse_leaf).collect::<BTreeSet<u64>>() {
            let blocks = self.objects.list(&names::leaf_blocks(id, leaf)).await?;
            freed.blocks += blocks.len() as u64;
            self.objects.remove(blocks.into_iter().map(|object| object.location).collect()).await?;
        }
        Ok(freed)
    }
}

/// Adds a page unless it is there.
fn push_new(kept: &mut Kept, of: SnapshotId, reference: Reference) {
    if kept.iter().all(|(_, one)| *one != reference) {
        kept.push((of, reference));
    }
}
