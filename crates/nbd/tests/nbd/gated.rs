//! A device for tests whose operations wait behind a gate, or fail as told.

use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Geometry, Lba, MemoryDevice,
    MemoryLane, Operation, SectorRange, ZeroMode,
};

/// Opens and closes the way to the memory of [`GatedDevice`]s.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    /// Operations at or behind this sector wait.
    closed_from: Option<u64>,
    /// Makes the error that every operation meets.
    failure: Option<fn() -> BlockError>,
    /// Ranges cannot be zeroed faster than by writing.
    zeroing_is_slow: bool,
    waiting: Vec<Waker>,
    arrived: usize,
    flushed: usize,
    /// Operations that were asked to be durable by themselves.
    durable: usize,
}

impl Gate {
    /// Operations at or behind `sector` wait from now on.
    pub(crate) fn close_from(&self, sector: u64) {
        self.state().closed_from = Some(sector);
    }

    /// Lets everything through.
    pub(crate) fn open(&self) {
        let mut state = self.state();
        state.closed_from = None;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Every operation fails from now on.
    pub(crate) fn fail_with(&self, failure: Option<fn() -> BlockError>) {
        self.state().failure = failure;
    }

    /// Fast zeroing is not to be had from now on.
    pub(crate) fn zero_slowly(&self) {
        self.state().zeroing_is_slow = true;
    }

    /// Waits until `count` operations have begun.
    pub(crate) fn wait_for_arrivals(&self, count: usize) {
        let (state, arrival) = &*self.0;
        let state = state.lock().expect("no test thread panicked");
        let waited =
            arrival.wait_timeout_while(state, Duration::from_secs(20), |state| state.arrived < count);
        let (state, timeout) = waited.expect("no test thread panicked");
        assert!(!timeout.timed_out(), "only {} of {count} operations arrived", state.arrived);
    }

    /// Operations that have begun.
    pub(crate) fn arrivals(&self) -> usize {
        self.state().arrived
    }

    /// Flushes that were completed.
    pub(crate) fn flushes(&self) -> usize {
        self.state().flushed
    }

    /// Operations that were asked to be durable by themselves.
    pub(crate) fn durable(&self) -> usize {
        self.state().durable
    }

    fn count(&self, durability: Durability) {
        self.state().durable += usize::from(durability == Durability::Durable);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.0.lock().expect("no test thread panicked")
    }

    async fn pass(&self, sector: u64) -> Result<(), BlockError> {
        self.state().arrived += 1;
        self.0.1.notify_all();
        poll_fn(|context| {
            let mut state = self.state();
            if state.closed_from.is_some_and(|from| sector >= from) {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(state.failure.map_or(Ok(()), |failure| Err(failure())))
        })
        .await
    }
}

/// Memory behind a [`Gate`].
pub(crate) struct GatedDevice {
    pub(crate) memory: MemoryDevice,
    pub(crate) gate: Gate,
}

/// One thread's way to it.
pub(crate) struct GatedLane {
    memory: MemoryLane,
    gate: Gate,
}

impl BlockDevice for GatedDevice {
    type Lane = GatedLane;

    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }

    fn open_lane(&self) -> Result<GatedLane, BlockError> {
        Ok(GatedLane { memory: self.memory.open_lane()?, gate: self.gate.clone() })
    }
}

impl BlockLane for GatedLane {
    async fn read(&self, at: Lba, buffer: Buffer) -> Completion {
        match self.gate.pass(at.0).await {
            Ok(()) => self.memory.read(at, buffer).await,
            Err(error) => (Err(error), buffer),
        }
    }

    async fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> Completion {
        self.gate.count(durability);
        match self.gate.pass(at.0).await {
            Ok(()) => self.memory.write(at, buffer, durability).await,
            Err(error) => (Err(error), buffer),
        }
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.gate.count(durability);
        self.gate.pass(range.start.0).await?;
        let fast = matches!(mode, ZeroMode::FastOnly | ZeroMode::FastKeepAllocated);
        if fast && self.gate.state().zeroing_is_slow {
            return Err(BlockError::Unsupported { operation: Operation::Zero });
        }
        self.memory.zero(range, mode, durability).await
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.gate.count(durability);
        self.gate.pass(range.start.0).await?;
        self.memory.discard(range, durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.gate.pass(0).await?;
        self.memory.flush().await?;
        self.gate.state().flushed += 1;
        Ok(())
    }

    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.memory.extents(range, extents).await
    }
}
