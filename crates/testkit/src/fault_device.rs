//! A device that goes wrong when told: over any other device.
//!
//! A [`Fault`] names an operation, which of them (counted from 1, over all lanes), and what happens to it.
//! As the seam's contract demands, a failed flush is latched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Geometry, Lba, Operation,
    SectorRange, ZeroMode,
};
use tokio::sync::Semaphore;

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Effect {
    /// It fails with this kind of I/O error, with nothing done.
    Fail(std::io::ErrorKind),
    /// The store is full, with nothing done.
    NoSpace,
    /// Half of a transfer is done, then it fails: what a device makes of a short transfer that it cannot
    /// complete. Other operations: as `Fail`, with `UnexpectedEof`.
    Shorten,
    /// It waits for a permit of this semaphore, then goes on.
    WaitFor(Arc<Semaphore>),
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which kind of operation.
    pub operation: Operation,
    /// Which of them, from 1; `None`: each.
    pub nth: Option<u64>,
    /// What happens to it.
    pub effect: Effect,
}

/// A device with faults; see the module's header. Clones share its counts.
#[derive(Debug)]
pub struct FaultDevice<D> {
    device: Arc<D>,
    plan: Arc<Plan>,
}

/// One thread's way to a [`FaultDevice`].
#[derive(Debug)]
pub struct FaultLane<L> {
    lane: L,
    geometry: Geometry,
    plan: Arc<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    state: Mutex<State>,
    latched: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    /// By the operation's name.
    counts: HashMap<String, u64>,
}

impl<D> Clone for FaultDevice<D> {
    fn clone(&self) -> Self {
        Self { device: Arc::clone(&self.device), plan: Arc::clone(&self.plan) }
    }
}

impl<D: BlockDevice> FaultDevice<D> {
    /// `device` without faults.
    pub fn new(device: D) -> Self {
        Self { device: Arc::new(device), plan: Arc::default() }
    }

    /// Adds a fault, for operations from now on; the counts go on.
    pub fn add(&self, fault: Fault) {
        self.plan.state.lock().unwrap_or_else(PoisonError::into_inner).faults.push(fault);
    }

    /// Removes all faults; a latch stays.
    pub fn heal(&self) {
        self.plan.state.lock().unwrap_or_else(PoisonError::into_inner).faults.clear();
    }

    /// How many operations of this kind have begun.
    pub fn count(&self, operation: Operation) -> u64 {
        let state = self.plan.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counts.get(&operation.to_string()).copied().unwrap_or(0)
    }

    /// The device beneath.
    pub fn device(&self) -> &D {
        &self.device
    }
}

impl Plan {
    /// Counts an operation and says what is to happen to it: `Ok(true)` if half of it is to be done.
    async fn begin(&self, operation: Operation, at: Lba) -> Result<bool, BlockError> {
        let changes = !matches!(operation, Operation::Read | Operation::Extents | Operation::Open);
        if changes && self.latched.load(Ordering::Acquire) {
            return Err(BlockError::Latched { operation });
        }
        let outcome = match self.next(operation) {
            None => Ok(false),
            Some(Effect::WaitFor(permits)) => {
                permits.acquire().await.expect("a test's semaphore is not closed").forget();
                Ok(false)
            }
            Some(Effect::Fail(kind)) => Err(BlockError::Io { operation, at, source: kind.into() }),
            Some(Effect::NoSpace) => Err(BlockError::NoSpace { operation, at }),
            Some(Effect::Shorten) if matches!(operation, Operation::Read | Operation::Write) => Ok(true),
            Some(Effect::Shorten) => Err(shortened(operation, at)),
        };
        if operation == Operation::Flush && outcome.is_err() {
            self.latched.store(true, Ordering::Release);
        }
        outcome
    }

    fn next(&self, operation: Operation) -> Option<Effect> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = state.counts.entry(operation.to_string()).or_insert(0);
        *count += 1;
        let count = *count;
        let met = |fault: &&Fault| fault.operation == operation && fault.nth.is_none_or(|nth| nth == count);
        state.faults.iter().find(met).map(|fault| fault.effect.clone())
    }
}

fn shortened(operation: Operation, at: Lba) -> BlockError {
    let kind = if operation == Operation::Write {
        std::io::ErrorKind::WriteZero
    } else {
        std::io::ErrorKind::UnexpectedEof
    };
    BlockError::Io { operation, at, source: kind.into() }
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    type Lane = FaultLane<D::Lane>;

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn open_lane(&self) -> Result<Self::Lane, BlockError> {
        let lane = self.device.open_lane()?;
        Ok(FaultLane { lane, geometry: self.geometry(), plan: Arc::clone(&self.plan) })
    }
}

impl<L: BlockLane> FaultLane<L> {
    /// The whole units in the first half of a transfer.
    fn half(&self, len: usize) -> usize {
        let unit = self.geometry.unit_bytes as usize;
        len / 2 / unit * unit
    }
}

impl<L: BlockLane> BlockLane for FaultLane<L> {
    async fn read(&self, at: Lba, mut buffer: Buffer) -> Completion {
        let len = buffer.len();
        match self.plan.begin(Operation::Read, at).await {
            Ok(false) => return self.lane.read(at, buffer).await,
            Err(error) => return (Err(error), buffer),
            Ok(true) => {}
        }
        buffer.set_len(self.half(len));
        let (_, mut buffer) = self.lane.read(at, buffer).await;
        buffer.set_len(len);
        (Err(shortened(Operation::Read, at)), buffer)
    }

    async fn write(&self, at: Lba, mut buffer: Buffer, durability: Durability) -> Completion {
        let len = buffer.len();
        match self.plan.begin(Operation::Write, at).await {
            Ok(false) => return self.lane.write(at, buffer, durability).await,
            Err(error) => return (Err(error), buffer),
            Ok(true) => {}
        }
        buffer.set_len(self.half(len));
        let (_, mut buffer) = self.lane.write(at, buffer, durability).await;
        buffer.set_len(len);
        (Err(shortened(Operation::Write, at)), buffer)
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.plan.begin(Operation::Zero, range.start).await?;
        self.lane.zero(range, mode, durability).await
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.plan.begin(Operation::Discard, range.start).await?;
        self.lane.discard(range, durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.plan.begin(Operation::Flush, Lba(0)).await?;
        self.lane.flush().await
    }

    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.plan.begin(Operation::Extents, range.start).await?;
        self.lane.extents(range, extents).await
    }
}

#[cfg(test)]
mod tests;
