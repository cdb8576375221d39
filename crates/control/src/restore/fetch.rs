//! Where the keeper of a block map gets missing blocks: from a restore helper, encrypted anew on the way in if the
//! volume's data key is not the snapshot's.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sealblk_block::Lba;
use sealblk_volume::map::{BLOCK_BYTES, BlockFetch, FetchedBlock};
use sealblk_volume::{CipherLoan, SectorCipher};
use tokio::time::Instant;

use super::helper::{HelperSlot, HelperStream, RestoreProgram, Task};
use crate::block_stream::StreamedBlock;
use crate::snapshot::reencrypt_in_place;

const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES as u64 / 512;
/// How many helpers may end over a block before who waits for it is told.
const ATTEMPTS: usize = 3;
/// From a helper's end to the start of the next: doubled each time, until one gives a block.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The snapshot's own cipher, as long as blocks are to be decrypted. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct SourceCipher(Arc<Mutex<Option<SectorCipher>>>);

impl SourceCipher {
    pub(crate) fn new(cipher: SectorCipher) -> Self {
        Self(Arc::new(Mutex::new(Some(cipher))))
    }

    /// Wipes it. On return no thread uses it.
    pub(crate) fn wipe(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// How blocks are encrypted anew.
pub(crate) struct Anew {
    /// `None`: the snapshot is not encrypted.
    pub(crate) from: Option<SourceCipher>,
    /// The volume's own cipher, as long as the volume may have it.
    pub(crate) to: CipherLoan,
}

/// A source of missing blocks that is to be: it becomes one in the keeper's thread.
pub(crate) struct FetchPlan {
    pub(crate) program: RestoreProgram,
    pub(crate) task: Task,
    /// Where the helper is.
    pub(crate) slot: HelperSlot,
    /// `None`: blocks are stored as they come.
    pub(crate) anew: Option<Anew>,
}

/// The source of missing blocks of a volume; without a plan: of one that has none.
pub(crate) struct RestoreFetch {
    plan: Option<FetchPlan>,
    helper: RefCell<Option<Rc<HelperStream>>>,
    /// How many helpers have been tried.
    tried: Cell<u64>,
    starting: tokio::sync::Mutex<Starting>,
}

/// When a helper may be started.
struct Starting {
    pause: Duration,
    not_before: Instant,
    /// Why the last one did not start.
    failure: Option<(io::ErrorKind, String)>,
}

impl RestoreFetch {
    pub(crate) fn new(plan: Option<FetchPlan>) -> Self {
        let starting = Starting { pause: FIRST_PAUSE, not_before: Instant::now(), failure: None };
        let starting = tokio::sync::Mutex::new(starting);
        Self { plan, helper: RefCell::default(), tried: Cell::new(0), starting }
    }

    /// A helper that runs. All who come while one is being started share what comes of it.
    async fn helper(&self, plan: &FetchPlan) -> io::Result<Rc<HelperStream>> {
        let tried_before = self.tried.get();
        let mut starting = self.starting.lock().await;
        if let Some(helper) = self.running() {
            return Ok(helper);
        }
        if let Some((kind, text)) = starting.failure.as_ref().filter(|_| self.tried.get() > tried_before) {
            return Err(io::Error::new(*kind, text.clone()));
        }
        tokio::time::sleep_until(starting.not_before).await;
        let started = HelperStream::start(&plan.program, &plan.task, &plan.slot).await;
        self.tried.set(self.tried.get() + 1);
        starting.not_before = Instant::now() + starting.pause;
        starting.pause = LONGEST_PAUSE.min(starting.pause * 2);
        match started {
            Ok(helper) => {
                starting.failure = None;
                let helper = Rc::new(helper);
                *self.helper.borrow_mut() = Some(Rc::clone(&helper));
                Ok(helper)
            }
            Err(error) => {
                let text = format!("the snapshot cannot be read: {error}");
                starting.failure = Some((error.kind(), text.clone()));
                Err(io::Error::new(error.kind(), text))
            }
        }
    }

    fn running(&self) -> Option<Rc<HelperStream>> {
        let mut helper = self.helper.borrow_mut();
        if helper.as_ref().is_some_and(|helper| helper.is_over()) {
            *helper = None;
        }
        helper.clone()
    }

    /// A block has come: the next helper, if one is needed, is started without much delay.
    fn went_well(&self) {
        if let Ok(mut starting) = self.starting.try_lock() {
            starting.pause = FIRST_PAUSE;
        }
    }

    /// What is in the place of block `index`; `None`: the helper ended over it.
    async fn ask(&self, plan: &FetchPlan, index: u64) -> io::Result<Option<StreamedBlock>> {
        let helper = match self.running() {
            Some(helper) => helper,
            None => self.helper(plan).await?,
        };
        match helper.read(index).await {
            Ok(block) => {
                self.went_well();
                Ok(Some(block))
            }
            Err(_) if helper.is_over() => Ok(None),
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    // What does not answer is not asked again.
                    self.helper.borrow_mut().take_if(|current| Rc::ptr_eq(current, &helper));
                }
                Err(error)
            }
        }
    }
}

impl BlockFetch for RestoreFetch {
    async fn fetch(&self, index: u64) -> io::Result<FetchedBlock> {
        let Some(plan) = &self.plan else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no snapshot to fetch from"));
        };
        let named = |error: io::Error| io::Error::new(error.kind(), format!("block {index}: {error}"));
        for _ in 0..ATTEMPTS {
            match self.ask(plan, index).await.map_err(named)? {
                None => {}
                Some(StreamedBlock::Zero) => return Ok(FetchedBlock::Zero),
                Some(StreamedBlock::Data(mut block)) => {
                    plan.encrypt_anew(index, &mut block).await.map_err(named)?;
                    return Ok(FetchedBlock::Data(block));
                }
            }
        }
        Err(named(io::Error::new(io::ErrorKind::BrokenPipe, "the restore helper ended again and again")))
    }
}

impl FetchPlan {
    /// Makes of a block as the snapshot has it one as the volume is to have it.
    async fn encrypt_anew(&self, index: u64, block: &mut [u8]) -> io::Result<()> {
        let Some(anew) = &self.anew else { return Ok(()) };
        let done = anew.to.lend(Lba(index.saturating_mul(SECTORS_PER_BLOCK)), |to| match &anew.from {
            None => reencrypt_in_place(None, to, index, block).map_err(io::Error::other),
            Some(SourceCipher(from)) => {
                let from = from.lock().unwrap_or_else(PoisonError::into_inner);
                let from = from.as_ref().ok_or_else(|| io::Error::other("the snapshot's key is gone"))?;
                reencrypt_in_place(Some(from), to, index, block).map_err(io::Error::other)
            }
        });
        done.await.map_err(io::Error::other)?
    }
}
