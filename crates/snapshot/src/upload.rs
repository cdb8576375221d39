//! One attempt to upload a snapshot: blocks, leaf by leaf, then the index above, then the completed record.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use sealblk_record::SnapshotId;
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant};

use crate::block_set::{BlockSet, LeafSet};
use crate::create::UploadOptions;
use crate::earlier::Earlier;
use crate::error::SnapshotError;
use crate::exclusion::Stored;
use crate::geometry::{FANOUT, block_bytes, block_count, child, split};
use crate::hash::ContentHash;
use crate::objects::ROOT;
use crate::page::{Entry, Page, Place, Reference};
use crate::record::{Root, SnapshotRecord, State};
use crate::repository::Repository;
use crate::source::{BlockSource, Changed};
use crate::task::Progress;
use crate::tree::Tree;

/// How often the record says how far it is.
const RECORD_EVERY: Duration = Duration::from_secs(5);

/// What is under a slot after the upload; none: zeros.
type Child = Option<(Reference, u32)>;

pub(crate) struct Upload<'a, S> {
    repository: &'a Repository,
    source: &'a S,
    options: UploadOptions<'a>,
    /// The record as it was claimed.
    record: SnapshotRecord,
    parent: Tree,
    /// One permit for each block in memory.
    room: Semaphore,
    progress: Cell<Progress>,
    changed_blocks: Cell<u64>,
    recorded: Cell<Instant>,
}

/// Which blocks to look at: `data` is part of `touched`; what is touched and has no data is zeros.
struct Work {
    touched: Option<BlockSet>,
    data: BlockSet,
}

impl Work {
    fn touched(&self, leaf: u64) -> LeafSet {
        self.touched.as_ref().map_or(LeafSet::FULL, |blocks| blocks.leaf(leaf))
    }
}

impl<'a, S: BlockSource> Upload<'a, S> {
    pub(crate) fn new(
        repository: &'a Repository,
        claimed: Stored<SnapshotRecord>,
        source: &'a S,
        options: UploadOptions<'a>,
    ) -> Self {
        let record = claimed.value;
        let root = record.parent.and_then(|parent| parent.root).map(|root| root.reference());
        // Errors about the parent's pages name this snapshot: it is the one that cannot be made.
        let objects = std::sync::Arc::clone(&repository.objects);
        Self {
            repository,
            source,
            options,
            parent: Tree { objects, snapshot: record.snapshot_id, root },
            record,
            room: Semaphore::new(options.parallel.max(1)),
            progress: Cell::default(),
            changed_blocks: Cell::default(),
            recorded: Cell::new(Instant::now()),
        }
    }

    pub(crate) async fn run(self, changed: &Changed) -> Result<SnapshotRecord, SnapshotError> {
        let earlier = match self.record.attempt {
            0 | 1 => Earlier::default(),
            _ => Earlier::find(&self.repository.objects, self.id()).await?,
        };
        let work = self.work(changed).await?;
        self.progress.set(Progress { total: work.data.len(), ..Progress::default() });
        let root = self.index(&work, &earlier).await?;
        let completed = self.complete(root).await?;
        // The snapshot is complete, whatever becomes of the rest: finish_deletions and remove_unreferenced do it later.
        let _ = self.repository.let_parent_go(&completed).await;
        if self.record.attempt > 1 {
            // What an earlier attempt wrote and this one did not need. No other attempt can complete now.
            let _ = self.repository.remove_strays(&completed).await;
        }
        Ok(completed)
    }

    fn id(&self) -> SnapshotId {
        self.record.snapshot_id
    }

    /// Finds out which blocks to look at.
    async fn work(&self, changed: &Changed) -> Result<Work, SnapshotError> {
        let size = self.record.volume_size_bytes;
        let count = block_count(size);
        match changed {
            Changed::Unknown => {
                let mut data = BlockSet::new();
                self.add_data(&mut data, 0..count).await?;
                Ok(Work { touched: None, data })
            }
            Changed::Only(blocks) => {
                let mut touched = blocks.intersection(&std::iter::once(0..count).collect());
                if let Some(parent) = self.record.parent.filter(|parent| parent.volume_size_bytes != size) {
                    // The parent's last block may have been shorter than it is now.
                    touched.extend(block_count(parent.volume_size_bytes).checked_sub(1));
                }
                let mut data = BlockSet::new();
                for leaf in touched.leaves() {
                    let end = child(leaf + 1, 0).min(count);
                    self.add_data(&mut data, child(leaf, 0)..end).await?;
                }
                Ok(Work { data: data.intersection(&touched), touched: Some(touched) })
            }
        }
    }

    /// Adds the blocks of `range` that may have data.
    async fn add_data(&self, data: &mut BlockSet, range: std::ops::Range<u64>) -> Result<(), SnapshotError> {
        let mut from = range.start;
        while from < range.end {
            let found = self.source.next_data(from).await;
            let failed = |source| SnapshotError::of_caller("reading", from, source);
            let Some(found) = found.map_err(failed)? else { break };
            data.insert_range(found.start.max(from)..found.end.min(range.end));
            if found.end <= from {
                let reason = format!("the source says that data at or after block {from} ends before it");
                return Err(SnapshotError::InvalidRequest { reason });
            }
            from = found.end;
        }
        Ok(())
    }

    /// Uploads all leaves and the pages above them.
    async fn index(&self, work: &Work, earlier: &Earlier) -> Result<Child, SnapshotError> {
        let mut positions: BTreeSet<u64> = match &work.touched {
            Some(touched) => touched.leaves().collect(),
            None => self.parent.leaf_positions().await?.into_iter().collect(),
        };
        positions.extend(work.data.leaves());
        let leaves = positions.into_iter().map(|position| async move {
            let leaf = self.leaf(position, work, earlier).await?;
            self.record_progress().await?;
            Ok::<_, SnapshotError>((position, leaf))
        });
        let mut leaves = futures_util::stream::iter(leaves).buffer_unordered(self.options.parallel.max(1));
        let mut middles: BTreeMap<u64, BTreeMap<u16, Child>> = BTreeMap::new();
        while let Some((position, leaf)) = leaves.try_next().await? {
            let (middle, slot) = split(position);
            middles.entry(middle).or_default().insert(slot, leaf);
        }
        let mut root = BTreeMap::new();
        for (position, children) in middles {
            let middle = self.rewrite(Place { level: 1, position }, &children).await?;
            root.insert(split(position).1, middle);
        }
        self.rewrite(ROOT, &root).await
    }

    /// Uploads the blocks of a leaf and its page.
    async fn leaf(&self, position: u64, work: &Work, earlier: &Earlier) -> Result<Child, SnapshotError> {
        let touched = work.touched(position);
        let data = work.data.leaf(position);
        if self.options.same_source
            && let Some(finished) = self.finished(position, earlier).await?
        {
            self.advance(data.len(), 0);
            return Ok(Some(finished));
        }
        let old = self.parent.leaf(position).await?.map(|(_, page)| page);
        let there = earlier.blocks(&self.repository.objects, self.id(), position).await?;
        let there = &there;
        let blocks = data.slots().map(|slot| {
            let old = old.as_deref().and_then(|page| page.entry(slot)).map(|entry| entry.reference);
            async move {
                let block = self.block(child(position, slot), old, there).await?;
                Ok::<_, SnapshotError>((slot, block.map(|reference| (reference, 1))))
            }
        });
        let blocks = futures_util::stream::iter(blocks).buffer_unordered(self.options.parallel.max(1));
        let mut children: BTreeMap<u16, Child> = touched.slots().map(|slot| (slot, None)).collect();
        children.extend(blocks.try_collect::<Vec<_>>().await?);
        self.rewrite(Place { level: 0, position }, &children).await
    }

    /// The page that an earlier attempt wrote of a leaf, if it did so once.
    async fn finished(
        &self,
        position: u64,
        earlier: &Earlier,
    ) -> Result<Option<(Reference, u32)>, SnapshotError> {
        let Some(reference) = earlier.finished(position) else { return Ok(None) };
        let place = Place { level: 0, position };
        match self.repository.objects.page(self.id(), place, &reference).await {
            Ok(page) => {
                let own = |entry: &&Entry| entry.reference.generation == self.id();
                let changed = page.entries().iter().filter(own).count() as u64;
                self.changed_blocks.set(self.changed_blocks.get() + changed);
                Ok(Some((reference, blocks_under(&page))))
            }
            // Then it is made again.
            Err(SnapshotError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Uploads one block, unless it is zeros, what the parent has, or there already.
    async fn block(
        &self,
        index: u64,
        old: Option<Reference>,
        there: &BTreeSet<(u64, Reference)>,
    ) -> Result<Option<Reference>, SnapshotError> {
        let _room = self.room.acquire().await.expect("the semaphore is never closed");
        self.options.stop.check()?;
        let content = self.read(index).await?;
        let (content, hash) = hash_apart(content).await;
        let length = content.len() as u64;
        let Some(hash) = hash else {
            self.advance(1, 0);
            return Ok(None);
        };
        if let Some(old) = old.filter(|old| old.hash == hash) {
            self.advance(1, 0);
            return Ok(Some(old));
        }
        let reference = Reference { generation: self.id(), hash };
        let written = if there.contains(&(index, reference)) {
            0
        } else {
            self.repository.objects.put_block(index, &reference, content).await?;
            length
        };
        self.changed_blocks.set(self.changed_blocks.get() + 1);
        self.advance(1, written);
        Ok(Some(reference))
    }

    async fn read(&self, index: u64) -> Result<Bytes, SnapshotError> {
        let failed = |source| SnapshotError::of_caller("reading", index, source);
        let length = usize::try_from(block_bytes(self.record.volume_size_bytes, index)).expect("512 KiB");
        let content = self.source.read_block(index, length).await.map_err(failed)?;
        if content.len() == length {
            return Ok(content);
        }
        Err(failed(format!("it has {} bytes instead of {length}", content.len()).into()))
    }

    /// Writes the page at `place` with these children in the place of the parent's; the parent's page if it stays the same.
    async fn rewrite(&self, place: Place, children: &BTreeMap<u16, Child>) -> Result<Child, SnapshotError> {
        let old = self.parent.page(place).await?;
        let kept = old.iter().flat_map(|(_, page)| page.entries());
        let mut entries: Vec<Entry> =
            kept.filter(|entry| !children.contains_key(&entry.slot)).copied().collect();
        entries.extend(
            children.iter().filter_map(|(&slot, child)| {
                child.map(|(reference, blocks)| Entry { slot, blocks, reference })
            }),
        );
        entries.sort_unstable_by_key(|entry| entry.slot);
        if let Some((reference, page)) = &old
            && page.entries() == entries
        {
            return Ok(Some((*reference, blocks_under(page))));
        }
        let Some(page) = Page::new(place, entries) else { return Ok(None) };
        let blocks = blocks_under(&page);
        let reference = self.repository.objects.put_page(self.id(), place, page).await?;
        Ok(Some((reference, blocks)))
    }

    fn advance(&self, blocks: u64, bytes: u64) {
        let mut progress = self.progress.get();
        progress.done += blocks;
        progress.bytes += bytes;
        self.progress.set(progress);
        (self.options.progress)(progress);
    }

    /// Tells whoever looks at the record how far it is, now and then; finds out whether this attempt still counts.
    async fn record_progress(&self) -> Result<(), SnapshotError> {
        if self.recorded.get().elapsed() < RECORD_EVERY {
            return Ok(());
        }
        self.recorded.set(Instant::now());
        let progress = self.progress.get();
        let write = self.repository.update(self.id(), |record| {
            self.check_claim(record)?;
            record.blocks_total = progress.total;
            record.blocks_done = progress.done;
            Ok(())
        });
        write.await.map(drop)
    }

    async fn complete(&self, root: Child) -> Result<SnapshotRecord, SnapshotError> {
        let root = root.map(|(Reference { generation, hash }, blocks)| Root {
            generation,
            hash,
            blocks: u64::from(blocks),
        });
        let now = Timestamp::now();
        let stored = self.repository.update(self.id(), |record| {
            if record.state == State::Completed && record.attempt_nonce == self.record.attempt_nonce {
                return Ok(());
            }
            self.check_claim(record)?;
            record.state = State::Completed;
            record.completion_time = Some(now);
            record.root = root;
            record.blocks_total = self.progress.get().total;
            record.blocks_done = record.blocks_total;
            record.changed_blocks = self.changed_blocks.get();
            Ok(())
        });
        Ok(stored.await?.value)
    }

    fn check_claim(&self, record: &SnapshotRecord) -> Result<(), SnapshotError> {
        let id = self.id();
        match record.state {
            State::Pending | State::Completed if record.attempt_nonce != self.record.attempt_nonce => {
                Err(SnapshotError::Superseded { id })
            }
            State::Pending => Ok(()),
            state => Err(SnapshotError::WrongState { id, state }),
        }
    }
}

/// Blocks with data under a page: at most 1024^3, of the root page.
fn blocks_under(page: &Page) -> u32 {
    u32::try_from(page.blocks()).expect("1024^3 blocks at most")
}

/// The hash of a block, on a thread where it holds up nothing; none if all its bytes are zero.
async fn hash_apart(content: Bytes) -> (Bytes, Option<ContentHash>) {
    let hashed = tokio::task::spawn_blocking(move || {
        let zero = content.iter().all(|&byte| byte == 0);
        let hash = (!zero).then(|| ContentHash::of(&content));
        (content, hash)
    });
    hashed.await.expect("hashing does not panic")
}

const _: () = assert!(FANOUT * FANOUT * FANOUT < u32::MAX as u64, "counts of blocks fit in 32 bits");
