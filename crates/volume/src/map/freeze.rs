//! A volume's content at one instant, kept while a snapshot of it is made: which blocks still have to be saved
//! before they may change, and which have been.
//!
//! A block is **unsaved** while the snapshot still wants its old content from the device. The first write that
//! meets an unsaved block has the keeper copy it into the spool, waits for that, and goes on; so do all others
//! that meet it meanwhile. If the copy fails, the snapshot is broken and the write goes on: a snapshot can be
//! made again. What was put aside is given back first: the store may have had no room for it, and needs that for the write.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::bits::Bits;
use super::desk::{Desk, Work};
use super::job::{Job, Trouble};

/// Blocks that one write has saved at a time.
const WINDOW: u64 = 16;

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Freeze {
    unsaved: Bits,
    spooled: Bits,
    saves: Mutex<HashMap<u64, Arc<Job>>>,
    broken: OnceLock<Trouble>,
    /// Nobody wants the old content any more.
    over: AtomicBool,
    desk: Desk,
}

impl Freeze {
    /// Of the blocks in `wanted`.
    pub(crate) fn new(wanted: Bits, desk: Desk) -> Self {
        let spooled = Bits::new(wanted.len());
        Self {
            unsaved: wanted,
            spooled,
            saves: Mutex::default(),
            broken: OnceLock::new(),
            over: AtomicBool::new(false),
            desk,
        }
    }

    /// Whether any of `blocks` must be saved before it changes.
    pub(crate) fn wants(&self, blocks: Range<u64>) -> bool {
        !self.over.load(Ordering::Acquire) && self.unsaved.any(blocks)
    }

    /// Whether the old content of `block` is in the spool.
    pub(crate) fn is_spooled(&self, block: u64) -> bool {
        self.spooled.get(block)
    }

    /// The first block at or after `from` whose old content is in the spool.
    pub(crate) fn next_spooled(&self, from: u64) -> Option<u64> {
        self.spooled.next_set(from)
    }

    /// Why the frozen content is lost, if it is.
    pub(crate) fn broken(&self) -> Option<Trouble> {
        self.broken.get().cloned()
    }

    /// Returns once none of `blocks` is unsaved, or the snapshot is over or broken.
    pub(crate) async fn save(self: &Arc<Self>, blocks: Range<u64>) {
        let mut at = blocks.start;
        while at < blocks.end {
            let window = at..blocks.end.min(at + WINDOW);
            at = window.end;
            let saves: Vec<Arc<Job>> = window.filter_map(|block| self.begin_save(block)).collect();
            for save in saves {
                // Whatever became of it: the block is saved, or nobody wants it.
                let _ = save.wait().await;
            }
        }
    }

    fn begin_save(self: &Arc<Self>, block: u64) -> Option<Arc<Job>> {
        let mut saves = self.saves();
        if !self.wants(block..block + 1) {
            return None;
        }
        if let Some(save) = saves.get(&block) {
            return Some(Arc::clone(save));
        }
        let save = Arc::<Job>::default();
        saves.insert(block, Arc::clone(&save));
        drop(saves);
        if !self.desk.put(Work::Save(Arc::clone(self), block)) {
            self.end_save(block, Err(Trouble::unkept()));
        }
        Some(save)
    }

    /// `block` is in the spool, or the snapshot is broken.
    pub(crate) fn end_save(&self, block: u64, outcome: Result<(), Trouble>) {
        match outcome {
            Ok(()) => {
                // In this order: who may write sees that readers will not look at the device.
                self.spooled.set(block);
                self.unsaved.clear(block);
            }
            Err(trouble) => self.break_off(trouble),
        }
        if let Some(save) = self.saves().remove(&block) {
            save.end(Ok(()));
        }
    }

    /// The old content is lost; writes go on.
    pub(crate) fn break_off(&self, trouble: Trouble) {
        self.lose(trouble);
        self.finish();
    }

    /// The old content is lost; writes that wait for it to be saved wait still.
    pub(crate) fn lose(&self, trouble: Trouble) {
        // The first reason is the one to tell.
        let _ = self.broken.set(trouble);
    }

    /// Nobody wants the old content of `block` any more.
    pub(crate) fn release(&self, block: u64) {
        self.unsaved.clear(block);
    }

    /// Nobody wants old content any more.
    pub(crate) fn finish(&self) {
        self.over.store(true, Ordering::Release);
        let saves = std::mem::take(&mut *self.saves());
        saves.into_values().for_each(|save| save.end(Ok(())));
    }

    fn saves(&self) -> MutexGuard<'_, HashMap<u64, Arc<Job>>> {
        // Nothing panics between two states of the table that belong together.
        self.saves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
