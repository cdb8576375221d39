//! Checking what is stored: every page and block that snapshots need, and what nobody needs.
//!
//! All indexes are walked in step, place by place, so that what snapshots share is looked at once, and memory is bounded by
//! the pages of one place.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use sealblk_record::SnapshotId;

use crate::error::{Fault, Part, SnapshotError};
use crate::geometry::{block_bytes, child, leaf_of};
use crate::names::{self, BLOCKS, PAGES};
use crate::objects::ROOT;
use crate::page::{Place, Reference};
use crate::record::{SnapshotRecord, State};
use crate::repository::Repository;
use crate::tree::Tree;

/// Blocks read at the same time.
const PARALLEL: usize = 8;

/// How closely blocks are looked at. Index pages are always read and checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// They are there, and of the right size.
    Existence,
    /// They are read, and their hash is checked.
    Contents,
}

/// An object that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// The snapshots that it is a part of.
    pub snapshots: Vec<SnapshotId>,
    /// Which part.
    pub part: Part,
    /// The object's path in the repository.
    pub object: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What a verification found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Report {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Index pages looked at; a shared one counts once.
    pub pages: u64,
    /// Blocks looked at; a shared one counts once.
    pub blocks: u64,
    /// What is missing or damaged.
    pub flaws: Vec<Flaw>,
    /// Paths of objects that no snapshot needs: left by a process that was killed at a bad moment; harmless.
    pub unreferenced: Vec<String>,
}

impl Report {
    /// Whether every snapshot looked at is whole and nothing is stored in vain.
    pub fn is_clean(&self) -> bool {
        self.flaws.is_empty() && self.unreferenced.is_empty()
    }
}

/// A page or block and the snapshots (by their number among those looked at) that it is a part of.
type Wanted = BTreeMap<Reference, Vec<usize>>;

impl Repository {
    /// Checks one completed snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::WrongState`], [`SnapshotError::Store`]. What is wrong with objects is in the
    /// report, not an error.
    pub async fn verify(&self, id: SnapshotId, depth: Depth) -> Result<Report, SnapshotError> {
        let snapshot = self.snapshot(id).await?;
        Inspection::new(self, vec![snapshot.record().clone()], depth).run().await
    }

    /// Checks all that living snapshots need, and finds what none needs.
    ///
    /// # Errors
    /// [`SnapshotError::Store`]; [`SnapshotError::Record`]: a record cannot be read.
    pub async fn verify_all(&self, depth: Depth) -> Result<Report, SnapshotError> {
        let census = self.census().await?;
        let mut report = Inspection::new(self, census.living.clone(), depth).run().await?;
        let blind = report.flaws.iter().any(|flaw| matches!(flaw.part, Part::Page { .. }));
        // With a page missing nobody can say what is below it.
        if !blind {
            let paths = self.unreferenced(&census).await?;
            report.unreferenced = paths.iter().map(ToString::to_string).collect();
        }
        Ok(report)
    }

    /// Removes what no snapshot needs and no deletion will remove; returns how many objects that were.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`]: an index page cannot be read, so that nobody can say what is needed; nothing was removed.
    /// [`SnapshotError::Store`], [`SnapshotError::Record`].
    pub async fn remove_unreferenced(&self) -> Result<u64, SnapshotError> {
        let paths = self.unreferenced(&self.census().await?).await?;
        let count = paths.len() as u64;
        self.objects.remove(paths).await?;
        Ok(count)
    }

    /// Who has objects and who needs some, in an order that makes nobody's new objects look like leftovers: first the
    /// generations, each of which has a record as long as it is somebody's; then whose objects are still being written or
    /// already being removed; then what is needed.
    async fn census(&self) -> Result<Census, SnapshotError> {
        let mut generations = BTreeSet::new();
        for kind in [BLOCKS, PAGES] {
            let prefixes = self.objects.prefixes(&Path::from(kind)).await?;
            generations.extend(prefixes.iter().filter_map(names::parse_generation));
        }
        for record in self.snapshots().await? {
            if record.state != State::Completed {
                generations.remove(&record.snapshot_id);
            }
        }
        Ok(Census { generations, living: self.living().await? })
    }

    async fn unreferenced(&self, census: &Census) -> Result<Vec<Path>, SnapshotError> {
        let needed = census.living.iter().filter_map(SnapshotRecord::needed_root);
        let roots: BTreeSet<Reference> = needed.map(|root| root.reference()).collect();
        let trees: Vec<Tree> = roots.into_iter().map(|root| self.tree_of(root)).collect();
        let mut paths = Vec::new();
        for generation in census.generations.iter().copied() {
            for object in self.objects.list(&names::generation(PAGES, generation)).await? {
                let Some((place, reference)) = names::parse_page(&object.location) else { continue };
                if !used_page(&trees, place, reference).await? {
                    paths.push(object.location);
                }
            }
            let leaves = self.objects.prefixes(&names::generation(BLOCKS, generation)).await?;
            for leaf in leaves.iter().filter_map(names::parse_leaf) {
                let used = used_blocks(&trees, leaf).await?;
                for object in self.objects.list(&names::leaf_blocks(generation, leaf)).await? {
                    let Some((index, reference)) = names::parse_block(&object.location) else { continue };
                    if !used.contains(&(leaf_of(index).1, reference)) {
                        paths.push(object.location);
                    }
                }
            }
        }
        Ok(paths)
    }

    fn tree_of(&self, root: Reference) -> Tree {
        Tree { objects: std::sync::Arc::clone(&self.objects), snapshot: root.generation, root: Some(root) }
    }
}

/// What there is at one moment.
struct Census {
    /// Generations that have objects and are neither being written nor being removed.
    generations: BTreeSet<SnapshotId>,
    /// The snapshots whose objects must stay.
    living: Vec<SnapshotRecord>,
}

async fn used_page(trees: &[Tree], place: Place, reference: Reference) -> Result<bool, SnapshotError> {
    for tree in trees {
        if tree.page(place).await?.is_some_and(|(used, _)| used == reference) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn used_blocks(trees: &[Tree], leaf: u64) -> Result<BTreeSet<(u16, Reference)>, SnapshotError> {
    let mut used = BTreeSet::new();
    for tree in trees {
        if let Some((_, page)) = tree.leaf(leaf).await? {
            used.extend(page.entries().iter().map(|entry| (entry.slot, entry.reference)));
        }
    }
    Ok(used)
}

/// A verification at work.
struct Inspection<'a> {
    repository: &'a Repository,
    records: Vec<SnapshotRecord>,
    depth: Depth,
    report: Report,
}

impl<'a> Inspection<'a> {
    fn new(repository: &'a Repository, records: Vec<SnapshotRecord>, depth: Depth) -> Self {
        let report = Report { snapshots: records.len() as u64, ..Report::default() };
        Self { repository, records, depth, report }
    }

    async fn run(mut self) -> Result<Report, SnapshotError> {
        let mut roots = Wanted::new();
        for (number, record) in self.records.iter().enumerate() {
            if let Some(root) = record.needed_root() {
                roots.entry(root.reference()).or_default().push(number);
            }
        }
        self.place(ROOT, roots).await?;
        Ok(self.report)
    }

    /// Looks at the pages of one place and at all below them.
    fn place(
        &mut self,
        place: Place,
        wanted: Wanted,
    ) -> Pin<Box<dyn Future<Output = Result<(), SnapshotError>> + '_>> {
        Box::pin(async move {
            let mut below: BTreeMap<u16, Wanted> = BTreeMap::new();
            for (reference, of) in wanted {
                self.report.pages += 1;
                let first = self.ids(&of).first().copied().unwrap_or(reference.generation);
                match self.repository.objects.page_from_store(first, place, &reference).await {
                    Ok(page) => {
                        for entry in page.entries() {
                            let wanted = below.entry(entry.slot).or_default();
                            wanted.entry(entry.reference).or_default().extend(&of);
                        }
                    }
                    Err(error) => self.note(error, &of)?,
                }
            }
            let Some(level) = place.level.checked_sub(1) else {
                return self.blocks(place.position, below).await;
            };
            for (slot, wanted) in below {
                self.place(Place { level, position: child(place.position, slot) }, wanted).await?;
            }
            Ok(())
        })
    }

    /// Looks at the blocks of one leaf.
    async fn blocks(&mut self, leaf: u64, below: BTreeMap<u16, Wanted>) -> Result<(), SnapshotError> {
        let blocks: Vec<(u64, Reference, Vec<usize>)> = below
            .into_iter()
            .flat_map(|(slot, wanted)| {
                wanted.into_iter().map(move |(reference, of)| (child(leaf, slot), reference, of))
            })
            .collect();
        self.report.blocks += blocks.len() as u64;
        let flawed = match self.depth {
            Depth::Existence => self.missing(leaf, blocks).await?,
            Depth::Contents => self.damaged(blocks).await?,
        };
        for (error, of) in flawed {
            self.note(error, &of)?;
        }
        Ok(())
    }

    /// Reads blocks; returns what is wrong with some.
    async fn damaged(
        &self,
        blocks: Vec<(u64, Reference, Vec<usize>)>,
    ) -> Result<Vec<(SnapshotError, Vec<usize>)>, SnapshotError> {
        let reads = blocks.into_iter().map(|(index, reference, of)| async move {
            let (id, length) = self.first(&of, index);
            let read = self.repository.objects.block(id, index, length, &reference).await;
            Ok::<_, SnapshotError>(read.err().map(|error| (error, of)))
        });
        let reads = futures_util::stream::iter(reads).buffer_unordered(PARALLEL);
        reads.try_filter_map(async |flaw| Ok(flaw)).try_collect().await
    }

    /// Lists blocks; returns those that are not there or have another size.
    async fn missing(
        &self,
        leaf: u64,
        blocks: Vec<(u64, Reference, Vec<usize>)>,
    ) -> Result<Vec<(SnapshotError, Vec<usize>)>, SnapshotError> {
        let generations: BTreeSet<SnapshotId> =
            blocks.iter().map(|(_, reference, _)| reference.generation).collect();
        let mut there: BTreeMap<Path, u64> = BTreeMap::new();
        for generation in generations {
            let listed = self.repository.objects.list(&names::leaf_blocks(generation, leaf)).await?;
            there.extend(listed.into_iter().map(|object| (object.location, object.size)));
        }
        let flaw = |(index, reference, of): (u64, Reference, Vec<usize>)| {
            let (snapshot, length) = self.first(&of, index);
            let path = names::block(index, &reference);
            let fault = match there.get(&path) {
                Some(size) if *size == length => return None,
                Some(size) => Fault::Damaged(format!("it has {size} bytes instead of {length}")),
                None => Fault::Missing,
            };
            let object = path.to_string();
            let part = Part::Block(index);
            Some((SnapshotError::Damaged { snapshot, part, object, fault }, of))
        };
        Ok(blocks.into_iter().filter_map(flaw).collect())
    }

    /// One of the snapshots that a block is a part of, and the block's length there.
    fn first(&self, of: &[usize], index: u64) -> (SnapshotId, u64) {
        let record = of.first().and_then(|number| self.records.get(*number));
        let record = record.expect("a block is looked at because a snapshot needs it");
        // What a pending snapshot needs of its parent has the parent's length.
        let size = match (record.was_completed(), record.parent) {
            (false, Some(parent)) => parent.volume_size_bytes,
            _ => record.volume_size_bytes,
        };
        (record.snapshot_id, block_bytes(size, index))
    }

    fn ids(&self, of: &[usize]) -> Vec<SnapshotId> {
        of.iter().filter_map(|number| self.records.get(*number)).map(|record| record.snapshot_id).collect()
    }

    /// Puts a flaw into the report; any other error ends the verification.
    fn note(&mut self, error: SnapshotError, of: &[usize]) -> Result<(), SnapshotError> {
        match error {
            SnapshotError::Damaged { part, object, fault, .. } => {
                let snapshots = self.ids(of);
                self.report.flaws.push(Flaw { snapshots, part, object, fault });
                Ok(())
            }
            error => Err(error),
        }
    }
}
