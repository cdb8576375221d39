//! The blocks of a volume that are not here yet, in memory: which they are, and who is bringing or replacing one.
//!
//! A block is **missing**, or it is here. It is *brought* by the keeper, which fetches and writes it, or *replaced*
//! by a request of a client that covers all of it, which needs no fetch. Whoever does one of the two has claimed
//! the block; everybody else waits until that is over and then looks again. So nobody writes into a
//! block that is missing, and nobody brings a block that a client may be writing to.
//!
//! A block that is here may yet be **unsettled**: the file still says that it is missing, because what the block
//! holds is not durable yet. After a crash it would be fetched again, over whatever was written to it; so nothing
//! in it may be promised to be durable until a commit has settled it (keeper.rs).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::bits::Bits;
use super::desk::{Asked, Desk, Work};
use super::job::{Job, Trouble};

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Restore {
    missing: Bits,
    missing_count: AtomicU64,
    /// How many blocks were to be restored when the volume was made.
    total: u64,
    unsettled: Bits,
    unsettled_count: AtomicU64,
    table: Mutex<Table>,
    desk: Desk,
    /// Told when a block has been settled or could not be brought.
    progress: Notify,
}

#[derive(Debug, Default)]
struct Table {
    claims: HashMap<u64, Claim>,
    /// Unsettled blocks that no commit has taken up.
    newly_here: Vec<u64>,
    /// Why the last block that nobody waited for could not be brought.
    failure: Option<Trouble>,
}

#[derive(Debug)]
struct Claim {
    over: Arc<Job>,
    /// Whether a client replaces the block; else the keeper brings it.
    replaces: bool,
}

/// Whether a block is here, or whose turn it is.
pub(crate) enum Turn {
    Here,
    /// The caller's: it has the claim.
    Mine,
    Theirs(Arc<Job>),
}

impl Restore {
    pub(crate) fn new(missing: Bits, total: u64, desk: Desk) -> Self {
        let unsettled = Bits::new(missing.len());
        let missing_count = AtomicU64::new(missing.count());
        Self {
            missing,
            missing_count,
            total,
            unsettled,
            unsettled_count: AtomicU64::new(0),
            table: Mutex::default(),
            desk,
            progress: Notify::new(),
        }
    }

    pub(crate) fn is_missing(&self, block: u64) -> bool {
        block < self.missing.len() && self.missing.get(block)
    }

    pub(crate) fn any_missing(&self, blocks: Range<u64>) -> bool {
        self.missing.any(self.known(blocks))
    }

    /// Those of `blocks` that the volume had when it was opened. What it has grown by since is here.
    fn known(&self, blocks: Range<u64>) -> Range<u64> {
        blocks.start.min(self.missing.len())..blocks.end.min(self.missing.len())
    }

    /// The blocks as they are now.
    pub(crate) fn missing(&self) -> &Bits {
        &self.missing
    }

    /// Where the run of blocks ends that are missing as `block` is, or here as it is; the largest number if it
    /// does not end.
    pub(crate) fn end_of_run(&self, block: u64) -> u64 {
        if self.is_missing(block) {
            self.missing.next_clear(block).unwrap_or(self.missing.len())
        } else {
            self.missing.next_set(block).unwrap_or(u64::MAX)
        }
    }

    pub(crate) fn missing_count(&self) -> u64 {
        self.missing_count.load(Ordering::Acquire)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Whether a promise that something is durable needs a commit first.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unsettled_count.load(Ordering::Acquire) != 0
    }

    /// The same, of these blocks only.
    pub(crate) fn any_unsettled(&self, blocks: Range<u64>) -> bool {
        self.is_unsettled() && self.unsettled.any(self.known(blocks))
    }

    /// Returns once `block` is here. If nobody is at it, the keeper is told to bring it.
    ///
    /// An error is that of an attempt that began after this call: what was wrong before it may have been put right.
    pub(crate) async fn need(&self, block: u64) -> Result<(), Trouble> {
        let mut began_before = true;
        while self.is_missing(block) {
            match self.take_turn(block, false) {
                Turn::Here => {}
                Turn::Mine => {
                    began_before = false;
                    if !self.desk.put(Work::Bring(block)) {
                        self.end_claim(block, false, Err(Trouble::unkept()));
                        return Err(Trouble::unkept());
                    }
                }
                Turn::Theirs(claim) => {
                    let outcome = claim.wait().await;
                    if !std::mem::take(&mut began_before) {
                        outcome?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Claims `block` if it is missing and nobody has.
    pub(crate) fn take_turn(&self, block: u64, replaces: bool) -> Turn {
        let mut table = self.table();
        if !self.is_missing(block) {
            return Turn::Here;
        }
        if let Some(claim) = table.claims.get(&block) {
            return Turn::Theirs(Arc::clone(&claim.over));
        }
        table.claims.insert(block, Claim { over: Arc::default(), replaces });
        Turn::Mine
    }

    /// Whether `claim`, which is over, still holds `block`: its keeper is gone.
    pub(crate) fn is_claimed_by(&self, block: u64, claim: &Arc<Job>) -> bool {
        self.table().claims.get(&block).is_some_and(|held| Arc::ptr_eq(&held.over, claim))
    }

    /// Ends a claim: the block is here now, or it is as it was.
    pub(crate) fn end_claim(&self, block: u64, here: bool, outcome: Result<(), Trouble>) {
        let mut table = self.table();
        let mut complete = false;
        if here {
            // In this order: who sees that it is not missing any more sees that it is unsettled.
            self.unsettled_count.fetch_add(1, Ordering::AcqRel);
            self.unsettled.set(block);
            table.newly_here.push(block);
            self.missing.clear(block);
            complete = self.missing_count.fetch_sub(1, Ordering::AcqRel) == 1;
        }
        let claim = table.claims.remove(&block);
        drop(table);
        claim.expect("a claim that was taken").over.end(outcome);
        if complete {
            // Without a keeper it is the next keeper's: its commits find it.
            let _ = self.desk.put(Work::Commit(Asked::default()));
        }
    }

    /// The blocks that a commit is to settle.
    pub(crate) fn take_newly_here(&self) -> Vec<u64> {
        std::mem::take(&mut self.table().newly_here)
    }

    /// How many that are.
    pub(crate) fn newly_here(&self) -> usize {
        self.table().newly_here.len()
    }

    /// What a commit took up and could not settle.
    pub(crate) fn put_back(&self, blocks: Vec<u64>) {
        self.table().newly_here.extend(blocks);
    }

    /// What a commit took up is durable and said to be.
    pub(crate) fn settle(&self, blocks: &[u64]) {
        for &block in blocks {
            self.unsettled.clear(block);
        }
        self.unsettled_count.fetch_sub(blocks.len() as u64, Ordering::AcqRel);
        self.progress.notify_waiters();
    }

    /// Notes why a block was not brought in the background.
    pub(crate) fn note_failure(&self, trouble: Trouble) {
        self.table().failure = Some(trouble);
        self.progress.notify_waiters();
    }

    pub(crate) fn take_failure(&self) -> Option<Trouble> {
        self.table().failure.take()
    }

    /// Is told when a block has been settled or could not be brought.
    pub(crate) fn progress(&self) -> &Notify {
        &self.progress
    }

    /// Nobody brings blocks any more: who waits for one is told. The claims stay, for what was begun may still be on
    /// its way to the device.
    pub(crate) fn end_all(&self) {
        for claim in self.table().claims.values().filter(|claim| !claim.replaces) {
            claim.over.end(Err(Trouble::unkept()));
        }
        self.note_failure(Trouble::unkept());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics between two states of the table that belong together.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
