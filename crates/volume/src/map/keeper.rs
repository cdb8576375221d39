//! The keeper: one task (in production one thread) that does for all lanes what the block map needs done on the device and in
//! its file. It brings missing blocks, puts aside blocks for snapshots, and is the only writer of the file.
//!
//! Nothing that it does can be abandoned by a client that goes away. So whatever it writes to the
//! device is there before the claim on the block ends, and cannot arrive later, over something newer.
//!
//! A **commit** makes restored blocks durable: (1) it takes the list of blocks that came here since the last one,
//! (2) flushes the device, (3) writes in the file that those are here, and flushes that. Flushes of clients that find
//! unsettled blocks ask for a commit, and share one if they can.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Durability, Extent, Lba, SECTOR_BYTES, SectorRange, ZeroMode,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::task::JoinSet;

use super::block::{BLOCK_BYTES, sectors_of};
use super::desk::{Asked, Work};
use super::device::{Inbox, MappedDevice, Shared, block_bytes};
use super::file::{MapFile, SnapshotBase};
use super::format::MapIdentity;
use super::freeze::Freeze;
use super::job::Trouble;
use super::restore::{Restore, Turn};

/// Blocks that are fetched at a time because a client waits for them.
const URGENT_FETCHES: usize = 16;
/// Blocks that are fetched at a time because nobody does.
const BACKGROUND_FETCHES: u64 = 4;
/// Blocks that are put aside at a time: so much memory, times 512 KiB.
const SAVES: usize = 8;
/// Blocks that may be lost to a crash because no client flushed.
const COMMIT_BLOCKS: usize = 256;
/// How long the background waits after a block could not be brought.
const PAUSE: Duration = Duration::from_secs(5);

/// Where missing blocks come from.
pub trait BlockFetch: 'static {
    /// The content of block `index` as it is to be stored: ciphertext on an encrypted volume, under this volume's
    /// key. It was verified. Retries are the implementation's: an error goes to whoever waits for the block, who may
    /// ask again.
    fn fetch(&self, index: u64) -> impl Future<Output = io::Result<FetchedBlock>>;
}

/// A block as it was fetched.
#[derive(Clone, PartialEq, Eq)]
pub enum FetchedBlock {
    /// Zeros throughout.
    Zero,
    /// These bytes, from the block's start; zeros behind them. Whole sectors, and no more than the block has on this
    /// volume: anything else is an error.
    Data(Vec<u8>),
}

impl std::fmt::Debug for FetchedBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zero => f.write_str("Zero"),
            Self::Data(bytes) => write!(f, "Data({} bytes)", bytes.len()),
        }
    }
}

/// The source of a volume that has no missing blocks.
#[derive(Clone, Copy, Debug)]
pub struct NoSource;

impl BlockFetch for NoSource {
    async fn fetch(&self, _index: u64) -> io::Result<FetchedBlock> {
        Err(io::Error::new(io::ErrorKind::NotFound, "there is no snapshot to fetch from"))
    }
}

/// Whether blocks are restored that nobody has asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Background {
    /// One after the other, a few at a time, whenever no client waits for one.
    Restore,
    /// Only what clients ask for.
    Idle,
}

impl<D: BlockDevice, S: BlockDevice> MappedDevice<D, S> {
    /// Keeps the block map until [`Self::close`] or [`Self::stop`], or until the future is dropped. There is one
    /// keeper in a device's life. An error: it could not begin.
    ///
    /// Runs where lanes do, with time: a current-thread runtime and a local task set; in production in a thread of its own,
    /// so that no client waits for another's restore.
    pub async fn keep<F: BlockFetch>(&self, source: F, background: Background) -> Result<(), BlockError> {
        self.keep_and_tell(source, background, || {}).await
    }

    /// As [`Self::keep`]; `begun` is called when nothing more can keep it from beginning.
    pub async fn keep_and_tell<F: BlockFetch>(
        &self,
        source: F,
        background: Background,
        begun: impl FnOnce(),
    ) -> Result<(), BlockError> {
        // Dropped last: by then nothing more can be left for this keeper.
        let unkept = Unkept(Arc::clone(&self.map));
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Inbox { work: mut inbox, missing } = inbox.expect("one keeper");
        let keeper = Rc::new(Keeper::new(self, source, missing)?);
        begun();
        let mut tasks = JoinSet::new();
        keeper.say_if_complete().await;
        if background == Background::Restore {
            keeper.restore_in_background(&mut tasks);
        }
        let last = keeper.work(&mut inbox, &mut tasks).await;
        // What is on its way ends with the lane, before anybody is told that there is no keeper.
        tasks.shutdown().await;
        if let Some(job) = last {
            job.end(keeper.close().await);
        }
        drop((keeper, inbox));
        drop(unkept);
        Ok(())
    }
}

/// When a keeper ends, however it does, nobody may wait for it.
struct Unkept(Arc<Shared>);

impl<D, S> MappedDevice<D, S> {
    /// There will be no keeper: whoever waits for it, now or later, is told so. Nothing if there was one.
    pub fn give_up_keeping(&self) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        if inbox.is_some() {
            drop((inbox, Unkept(Arc::clone(&self.map))));
        }
    }
}

impl Drop for Unkept {
    fn drop(&mut self) {
        if let Some(restore) = &self.0.restore {
            restore.end_all();
        }
        if let Some(freeze) = &self.0.gate.plan().freeze {
            freeze.break_off(Trouble::unkept());
        }
    }
}

struct Keeper<D: BlockDevice, S: BlockDevice, F> {
    device: D::Lane,
    /// `None`: the volume has no map.
    file: Mutex<Option<MapFile<S::Lane>>>,
    source: F,
    of: MappedDevice<D, S>,
    urgent: Semaphore,
    /// Blocks that clients wait for.
    waited_for: Cell<usize>,
    calm: Notify,
    next_in_background: Cell<u64>,
    saves: Semaphore,
    spool: RefCell<Option<OpenSpool<S>>>,
    spare: RefCell<Vec<Buffer>>,
    commits_begun: Cell<u64>,
    /// The number of the last commit that succeeded.
    committed: Cell<u64>,
}

/// A snapshot's spool, and the keeper's lane on it.
struct OpenSpool<S: BlockDevice> {
    spool: Arc<S>,
    lane: Rc<S::Lane>,
}

impl<D: BlockDevice, S: BlockDevice, F: BlockFetch> Keeper<D, S, F> {
    fn new(of: &MappedDevice<D, S>, source: F, missing: Vec<u64>) -> Result<Self, BlockError> {
        let file = match (&of.store, of.map.of) {
            (Some(store), Some(identity)) => {
                let lane = store.open_lane()?;
                Some(MapFile::new(lane, identity, of.map.header, missing))
            }
            _ => None,
        };
        Ok(Self {
            device: of.device.open_lane()?,
            file: Mutex::new(file),
            source,
            of: of.clone(),
            urgent: Semaphore::new(URGENT_FETCHES),
            waited_for: Cell::new(0),
            calm: Notify::new(),
            next_in_background: Cell::new(0),
            saves: Semaphore::new(SAVES),
            spool: RefCell::new(None),
            spare: RefCell::default(),
            commits_begun: Cell::new(0),
            committed: Cell::new(0),
        })
    }

    /// Does what is left on the desk until it is told to end; the job of who wants a clean end.
    async fn work(
        self: &Rc<Self>,
        inbox: &mut UnboundedReceiver<Work>,
        tasks: &mut JoinSet<()>,
    ) -> Option<Asked> {
        loop {
            let work = tokio::select! {
                work = inbox.recv() => work.expect("the device, which is borrowed, has a sender"),
                Some(done) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(failed) = done && let Ok(panic) = failed.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                    continue;
                }
            };
            let keeper = Rc::clone(self);
            match work {
                Work::Bring(block) => drop(tasks.spawn_local(keeper.bring_urgently(block))),
                Work::Save(freeze, block) => drop(tasks.spawn_local(keeper.put_aside(freeze, block))),
                Work::LetSpoolGo => drop(self.spool.borrow_mut().take()),
                Work::Commit(job) => {
                    drop(tasks.spawn_local(async move { job.end(keeper.commit().await) }));
                }
                Work::ForgetChanges(job) => {
                    drop(tasks.spawn_local(async move { job.end(keeper.forget_changes().await) }));
                }
                Work::Grow(identity, job) => {
                    drop(tasks.spawn_local(async move { job.end(keeper.grow(identity).await) }));
                }
                Work::Close(job) => return Some(job),
                Work::Stop => return None,
            }
        }
    }

    fn restore(&self) -> &Arc<Restore> {
        self.of.map.restore.as_ref().expect("a block is brought only where some are missing")
    }

    async fn bring_urgently(self: Rc<Self>, block: u64) {
        self.waited_for.set(self.waited_for.get() + 1);
        let _permit = self.urgent.acquire().await.expect("it is never closed");
        let outcome = self.bring(block).await;
        self.restore().end_claim(block, outcome.is_ok(), outcome);
        self.waited_for.set(self.waited_for.get() - 1);
        if self.waited_for.get() == 0 {
            self.calm.notify_waiters();
        }
    }

    /// Fetches a block that is claimed, and writes it.
    async fn bring(&self, block: u64) -> Result<(), Trouble> {
        // Read once: the volume may grow meanwhile, and its last block with it.
        let sectors = self.of.map.sectors();
        let range = sectors_of(block..block + 1, sectors);
        let data = match self.source.fetch(block).await? {
            FetchedBlock::Zero => {
                return Ok(self.device.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await?);
            }
            FetchedBlock::Data(data) => data,
        };
        let bytes = block_bytes(block, sectors);
        if data.len() > bytes || !data.len().is_multiple_of(SECTOR_BYTES) {
            let what = format!("block {block} has {bytes} bytes, but {} were fetched", data.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what).into());
        }
        let mut buffer = self.buffer(bytes);
        let (head, tail) = buffer.split_at_mut(data.len());
        head.copy_from_slice(&data);
        tail.fill(0);
        drop(data);
        let (result, buffer) = self.device.write(range.start, buffer, Durability::Volatile).await;
        self.give_back(buffer);
        Ok(result?)
    }

    /// A crash may have come between the last block and the word that it was the last.
    async fn say_if_complete(&self) {
        if self.of.map.restore.as_ref().is_some_and(|restore| restore.missing_count() == 0) {
            // A failure is latched, and told to the next who flushes.
            let _ = self.commit().await;
        }
    }

    fn restore_in_background(self: &Rc<Self>, tasks: &mut JoinSet<()>) {
        if self.of.map.restore.is_some() {
            for _ in 0..BACKGROUND_FETCHES {
                tasks.spawn_local(Rc::clone(self).restore_the_rest());
            }
        }
    }

    /// Brings missing blocks, one after the other, until there is none.
    async fn restore_the_rest(self: Rc<Self>) {
        let restore = Arc::clone(self.restore());
        loop {
            self.wait_until_calm().await;
            let from = self.next_in_background.get();
            let Some(block) = restore.missing().next_set(from) else {
                if from == 0 {
                    return;
                }
                // Those that are missing still are claimed, or could not be brought: from the beginning again.
                self.next_in_background.set(0);
                tokio::task::yield_now().await;
                continue;
            };
            self.next_in_background.set(block + 1);
            match restore.take_turn(block, false) {
                Turn::Here => {}
                Turn::Theirs(claim) => drop(claim.wait().await),
                Turn::Mine => {
                    let outcome = self.bring(block).await;
                    let failure = outcome.clone().err();
                    restore.end_claim(block, failure.is_none(), outcome);
                    if let Some(trouble) = failure {
                        restore.note_failure(trouble);
                        tokio::time::sleep(PAUSE).await;
                    } else if restore.newly_here() >= COMMIT_BLOCKS {
                        // A failure is latched, and told to the next who flushes.
                        let _ = self.commit().await;
                    }
                }
            }
        }
    }

    async fn wait_until_calm(&self) {
        while self.waited_for.get() > 0 {
            let mut calm = pin!(self.calm.notified());
            calm.as_mut().enable();
            if self.waited_for.get() > 0 {
                calm.await;
            }
        }
    }

    /// Copies a block into the spool, if the snapshot still wants it.
    async fn put_aside(self: Rc<Self>, freeze: Arc<Freeze>, block: u64) {
        let _permit = self.saves.acquire().await.expect("it is never closed");
        let wanted = freeze.wants(block..block + 1) && freeze.broken().is_none();
        let outcome = if wanted { self.copy_aside(&freeze, block).await } else { Ok(()) };
        if let Err(trouble) = &outcome {
            // In this order: who reads what was put aside looks afterwards whether it was lost.
            freeze.lose(trouble.clone());
            self.empty_spool(&freeze).await;
        }
        freeze.end_save(block, outcome);
    }

    /// Gives back the space of a spool whose snapshot is lost, as far as that works.
    async fn empty_spool(&self, freeze: &Arc<Freeze>) {
        let Ok(spool) = self.spool_lane(freeze) else { return };
        let all = SectorRange { start: Lba(0), count: self.of.map.sectors() };
        // Where holes cannot be made, zeros are not written instead: they would take what is to be given back.
        let _ = spool.discard(all, Durability::Volatile).await;
    }

    async fn copy_aside(&self, freeze: &Arc<Freeze>, block: u64) -> Result<(), Trouble> {
        if let Some(restore) = &self.of.map.restore {
            restore.need(block).await?;
        }
        let range = sectors_of(block..block + 1, self.of.map.sectors());
        let mut known: Vec<Extent> = Vec::with_capacity(1);
        self.device.extents(range, &mut known).await?;
        if known.first().is_some_and(|extent| extent.allocation.zero && extent.count == range.count) {
            return Ok(()); // A spool is zeros where nothing was put.
        }
        let buffer = self.buffer(block_bytes(block, self.of.map.sectors()));
        let (result, mut buffer) = self.device.read(range.start, buffer).await;
        let mut outcome = result.map_err(Trouble::from);
        if outcome.is_ok() && buffer.iter().any(|&byte| byte != 0) {
            let spool = self.spool_lane(freeze)?;
            let result;
            (result, buffer) = spool.write(range.start, buffer, Durability::Volatile).await;
            outcome = result.map_err(Trouble::from);
        }
        self.give_back(buffer);
        outcome
    }

    /// The lane on the spool of this snapshot, which another may have followed.
    fn spool_lane(&self, freeze: &Arc<Freeze>) -> Result<Rc<S::Lane>, Trouble> {
        let current = self.of.spool().clone();
        let spool = current.filter(|(of, _)| Arc::ptr_eq(of, freeze)).map(|(_, spool)| spool);
        let spool = spool.ok_or_else(|| io::Error::other("the snapshot is over"))?;
        let mut known = self.spool.borrow_mut();
        if let Some(open) = known.as_ref().filter(|open| Arc::ptr_eq(&open.spool, &spool)) {
            return Ok(Rc::clone(&open.lane));
        }
        let lane = Rc::new(spool.open_lane()?);
        *known = Some(OpenSpool { spool, lane: Rc::clone(&lane) });
        Ok(lane)
    }

    /// Returns once a commit that began after this call has succeeded.
    async fn commit(&self) -> Result<(), Trouble> {
        let begun_before = self.commits_begun.get();
        let mut file = self.file.lock().await;
        if self.committed.get() > begun_before {
            return Ok(());
        }
        let number = self.commits_begun.get() + 1;
        self.commits_begun.set(number);
        self.commit_in(file.as_mut()).await?;
        self.committed.set(number);
        Ok(())
    }

    async fn commit_in(&self, file: Option<&mut MapFile<S::Lane>>) -> Result<(), Trouble> {
        let (Some(restore), Some(file)) = (&self.of.map.restore, file) else {
            return Ok(self.device.flush().await?);
        };
        let blocks = restore.take_newly_here();
        let committed = async {
            self.device.flush().await?;
            if blocks.is_empty() && !file.is_complete_unsaid() {
                Ok(())
            } else {
                file.restored(&blocks).await
            }
        };
        match committed.await {
            Ok(()) => {
                restore.settle(&blocks);
                Ok(())
            }
            Err(error) => {
                restore.put_back(blocks);
                Err(error.into())
            }
        }
    }

    async fn forget_changes(&self) -> Result<(), Trouble> {
        if let Some(file) = self.file.lock().await.as_mut() {
            file.forget_changes().await?;
        }
        self.of.map.vouched.store(false, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// Has the file say that the volume has grown.
    async fn grow(&self, identity: MapIdentity) -> Result<(), Trouble> {
        if let Some(file) = self.file.lock().await.as_mut() {
            file.grow(identity).await?;
        }
        self.of.map.vouched.store(false, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// Everything durable, and said to be.
    async fn close(&self) -> Result<(), Trouble> {
        self.commit().await?;
        let plan = self.of.map.gate.plan();
        let base = *self.of.map.base();
        let mut file = self.file.lock().await;
        let (Some(file), Some(snapshot), Some(changed)) = (file.as_mut(), base, &plan.changed) else {
            return Ok(());
        };
        let said = file.header().tracking == super::format::Tracking::Exact(snapshot);
        if plan.freeze.is_some() || said || changed.len() != file.blocks() {
            // What a snapshot in progress means for what changed is not known yet; what is said is so; and a volume
            // that could not grow to the end leaves it unsaid.
            return Ok(());
        }
        Ok(file.record_changes(SnapshotBase { snapshot, changed }).await?)
    }

    /// A buffer of `bytes`, of unspecified content.
    fn buffer(&self, bytes: usize) -> Buffer {
        let mut buffer = self.spare.borrow_mut().pop().unwrap_or_else(|| Buffer::new(BLOCK_BYTES));
        buffer.set_len(bytes);
        buffer
    }

    fn give_back(&self, buffer: Buffer) {
        self.spare.borrow_mut().push(buffer);
    }
}
