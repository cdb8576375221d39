//! What an earlier attempt to upload a snapshot left in the store: not written again.

use std::collections::{BTreeMap, BTreeSet};

use object_store::path::Path;
use sealblk_record::SnapshotId;

use crate::error::SnapshotError;
use crate::geometry::BLOCK_BYTES;
use crate::names::{self, BLOCKS, PAGES};
use crate::objects::Objects;
use crate::page::Reference;

/// What an earlier attempt left; empty for a first attempt.
#[derive(Default, Debug)]
pub(crate) struct Earlier {
    /// Leaves of which blocks are there.
    leaves: BTreeSet<u64>,
    /// Leaf pages that are there, by position; more than one if attempts had different sources.
    pages: BTreeMap<u64, Vec<Reference>>,
}

impl Earlier {
    /// Looks what the making of `generation` left so far: one listing of its pages, one of its leaves.
    pub(crate) async fn find(objects: &Objects, generation: SnapshotId) -> Result<Self, SnapshotError> {
        let prefixes = objects.prefixes(&names::generation(BLOCKS, generation)).await?;
        let leaves = prefixes.iter().filter_map(names::parse_leaf).collect();
        let mut pages: BTreeMap<u64, Vec<Reference>> = BTreeMap::new();
        for object in objects.list(&names::generation(PAGES, generation)).await? {
            if let Some((place, reference)) = names::parse_page(&object.location)
                && place.level == 0
            {
                pages.entry(place.position).or_default().push(reference);
            }
        }
        Ok(Self { leaves, pages })
    }

    /// The page of a leaf that was finished, and in one way only.
    pub(crate) fn finished(&self, position: u64) -> Option<Reference> {
        match self.pages.get(&position)?.as_slice() {
            [page] => Some(*page),
            _ => None,
        }
    }

    /// The blocks of a leaf that are there.
    pub(crate) async fn blocks(
        &self,
        objects: &Objects,
        generation: SnapshotId,
        position: u64,
    ) -> Result<BTreeSet<(u64, Reference)>, SnapshotError> {
        if !self.leaves.contains(&position) {
            return Ok(BTreeSet::new());
        }
        let prefix: Path = names::leaf_blocks(generation, position);
        let listed = objects.list(&prefix).await?;
        // Whole ones: a store that tears an object at a crash would show here. The odd last block is written again.
        let whole = listed.iter().filter(|object| object.size == BLOCK_BYTES);
        Ok(whole.filter_map(|object| names::parse_block(&object.location)).collect())
    }
}
