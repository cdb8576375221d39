//! The gate that every write passes: it can be closed for the instant at which a snapshot begins.
//!
//! A write must be counted while it is on its way to the device, so that somebody can wait until none is;
//! and no write may pay more for that than two stores to a cache line of its own lane. So each lane has a
//! count that only it changes. To pass, a lane (1) raises its count, (2) reads the gate's epoch; is it the one
//! that the lane knows, the write has passed. To close, one (1) makes the epoch odd, (2) reads all counts and
//! waits until all are zero. Both do a store and then a load of what the other stores, all four
//! sequentially consistent: either the lane sees the odd epoch, takes its count back and waits, or the closer
//! sees the count. Leaving is the same pattern: lower the count, then read the epoch; odd: wake the closer.
//!
//! The gate also carries the **plan**: what a write has to do besides writing. It is replaced while the gate is
//! closed, so that a write sees one plan from beginning to end. A lane keeps the plan with its epoch and takes
//! the lock for a new one only when the epoch has changed.
//!
//! A write that is abandoned (its future dropped) may still be on its way: its count stays up until its lane is
//! gone, which is when the device promises that nothing of it is in flight ([`sealblk_block::BlockLane`]).

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// An epoch that the gate never has.
const NONE: u64 = u64::MAX;

/// See the module's header. Shared by the lanes of one device.
#[derive(Debug)]
pub(crate) struct WriteGate<P> {
    epoch: Padded,
    plan: Mutex<Arc<P>>,
    lanes: Mutex<Vec<Arc<Padded>>>,
    /// One who closes at a time.
    closer: tokio::sync::Mutex<()>,
    changed: Notify,
}

/// On a cache line of its own, and of the neighbour that the processor fetches with it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// One lane's way through the gate. Not shared between threads; outlives the lane's own way to the device.
#[derive(Debug)]
pub(crate) struct LaneGate<P> {
    gate: Arc<WriteGate<P>>,
    in_flight: Arc<Padded>,
    epoch: Cell<u64>,
    plan: RefCell<Rc<Known<P>>>,
}

/// A plan that a lane knows. Each write has it: counted by the lane, so that no shared cache line is written.
#[derive(Debug)]
struct Known<P>(Arc<P>);

/// A write that has passed. Dropped unfinished, it may still reach the device if it was issued.
#[derive(Debug)]
pub(crate) struct Writing<'a, P> {
    lane: &'a LaneGate<P>,
    plan: Rc<Known<P>>,
    issued: Cell<bool>,
}

impl<P> WriteGate<P> {
    pub(crate) fn new(plan: P) -> Self {
        Self {
            epoch: Padded::default(),
            plan: Mutex::new(Arc::new(plan)),
            lanes: Mutex::default(),
            closer: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// A lane's way through.
    pub(crate) fn lane(self: &Arc<Self>) -> LaneGate<P> {
        let in_flight = Arc::<Padded>::default();
        lock(&self.lanes).push(Arc::clone(&in_flight));
        let plan = RefCell::new(Rc::new(Known(self.plan())));
        LaneGate { gate: Arc::clone(self), in_flight, epoch: Cell::new(NONE), plan }
    }

    /// The plan of now.
    pub(crate) fn plan(&self) -> Arc<P> {
        Arc::clone(&lock(&self.plan))
    }

    /// Lets no write begin until those on their way have finished, then makes the plan what `next` says. Given
    /// up before, it leaves the plan as it was.
    ///
    /// Writes that finished before the call ran under the old plan, and writes that begin after it run under
    /// the new one; there is a moment without any.
    pub(crate) async fn exchange(&self, next: impl FnOnce(&P) -> P) {
        let _turn = self.closer.lock().await;
        self.epoch.0.fetch_add(1, SeqCst);
        let closed = Closed(self);
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable(); // From here on a change is noticed, so look only now.
            if lock(&self.lanes).iter().all(|lane| lane.0.load(SeqCst) == 0) {
                break;
            }
            changed.await;
        }
        let mut plan = lock(&self.plan);
        *plan = Arc::new(next(&plan));
        drop(plan);
        drop(closed);
    }

    /// Makes the plan what `next` says. Writes on their way go on under the old one.
    pub(crate) fn replace(&self, next: impl FnOnce(&P) -> P) {
        let mut plan = lock(&self.plan);
        *plan = Arc::new(next(&plan));
        self.epoch.0.fetch_add(2, SeqCst);
    }
}

/// Opens the gate when dropped.
struct Closed<'a, P>(&'a WriteGate<P>);

impl<P> Drop for Closed<'_, P> {
    fn drop(&mut self) {
        self.0.epoch.0.fetch_add(1, SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl<P> LaneGate<P> {
    /// Passes the gate; waits while it is closed.
    pub(crate) async fn enter(&self) -> Writing<'_, P> {
        loop {
            let count = self.in_flight.0.load(SeqCst);
            self.in_flight.0.store(count + 1, SeqCst);
            let writing =
                Writing { lane: self, plan: Rc::clone(&self.plan.borrow()), issued: Cell::new(false) };
            if self.gate.epoch.0.load(SeqCst) == self.epoch.get() {
                return writing;
            }
            drop(writing);
            self.wait_until_open().await;
            self.refresh();
        }
    }

    /// Looks at the plan that the lane knows, which may not be that of now.
    pub(crate) fn known_plan<T>(&self, look: impl FnOnce(&P) -> T) -> T {
        look(&self.plan.borrow().0)
    }

    async fn wait_until_open(&self) {
        loop {
            let mut changed = pin!(self.gate.changed.notified());
            changed.as_mut().enable(); // From here on a change is noticed, so look only now.
            if self.gate.epoch.0.load(SeqCst).is_multiple_of(2) {
                return;
            }
            changed.await;
        }
    }

    /// Takes the plan of now, with its epoch if the gate is open: a closed gate may be about to get another.
    fn refresh(&self) {
        let plan = lock(&self.gate.plan);
        let epoch = self.gate.epoch.0.load(SeqCst);
        self.epoch.set(if epoch.is_multiple_of(2) { epoch } else { NONE });
        self.plan.replace(Rc::new(Known(Arc::clone(&plan))));
    }

    fn leave(&self) {
        let count = self.in_flight.0.load(SeqCst);
        self.in_flight.0.store(count - 1, SeqCst);
        if !self.gate.epoch.0.load(SeqCst).is_multiple_of(2) {
            self.gate.changed.notify_waiters();
        }
    }
}

impl<P> Drop for LaneGate<P> {
    fn drop(&mut self) {
        lock(&self.gate.lanes).retain(|lane| !Arc::ptr_eq(lane, &self.in_flight));
        self.gate.changed.notify_waiters();
    }
}

impl<P> Writing<'_, P> {
    /// What there is to do besides writing.
    pub(crate) fn plan(&self) -> &P {
        &self.plan.0
    }

    /// From here on the device may be changed.
    pub(crate) fn issue(&self) {
        self.issued.set(true);
    }

    /// The device is done with it.
    pub(crate) fn finish(self) {
        self.issued.set(false);
    }
}

impl<P> Drop for Writing<'_, P> {
    fn drop(&mut self) {
        if !self.issued.get() {
            self.lane.leave();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics between two states that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
