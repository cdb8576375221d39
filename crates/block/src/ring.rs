//! One io_uring of one lane: the only place in this crate where the kernel is handed memory.
//!
//! A [`Ring`] belongs to one thread and one file. An operation takes a slot of a slab that was allocated
//! with the ring, puts its buffer there, pushes one submission entry and wakes the driver, a local task
//! of the same runtime. The driver runs after the tasks that are runnable now, hands everything that they
//! pushed to the kernel in one `io_uring_enter`, collects what has completed and wakes its owners. A
//! request costs no allocation, and requests pushed together cost one system call. A lane's workers wake
//! one another, so the driver often comes between two of them; letting it wait until no more entries came
//! was tried, and gave 0.84 of the IOPS at 4 KiB, 32 deep, on a disk. When no slot is free, callers wait in
//! the order in which they came. A transfer may be held back in its slot for a while, if the disk gains by it ([`pace`]).
//!
//! Soundness rests on one rule: **the slab owns a buffer from the push until its completion was read from
//! the ring.** A future that is dropped only marks its slot abandoned; the slab frees the buffer when the
//! completion arrives. A ring that goes away (its last owner, or its runtime) first waits in the kernel
//! until nothing is in flight: file I/O ends by itself, so this is bounded by the disk, and no cancel is
//! needed. If even waiting fails, the slab and the ring are leaked rather than freed.
//!
//! Short transfers are continued by the driver, also for abandoned operations, so that a write is never
//! left half done because its caller went away. Not here: what is inline and what is not ([`crate::file`]).
#![allow(unsafe_code, reason = "the kernel reads and writes the buffers whose addresses are pushed here")]

mod pace;
mod work;

use std::cell::RefCell;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::IoUring;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

use crate::buffer::Buffer;
use crate::sync_gate::SyncGate;
use pace::Pace;
use work::{Manner, Progress, Work};

/// Of transfers that were held back, the kernel gets so many at a time: it prepares all that it gets before the disk
/// sees the first, and the disk has nothing else to do. 16 at once instead gave 0.9 of the IOPS (4 KiB random reads).
const PROMPT_ENTRIES: u32 = 2;

/// Where a slot's operation is.
enum Phase {
    Free,
    /// The kernel may touch the buffer, or will when it gets the entry. `waker` is the owner's, once it has polled.
    InFlight {
        waker: Option<Waker>,
        abandoned: bool,
    },
    /// The owner may collect.
    Done(io::Result<()>),
}

struct Slot {
    phase: Phase,
    work: Work,
    buffer: Option<Buffer>,
}

struct State {
    /// `None` only while dropping.
    uring: Option<IoUring>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Entries pushed whose completion was not read yet.
    in_flight: usize,
    /// Which transfers are in flight, and which are held back. None is, unless others are in flight.
    pace: Pace,
    /// The driver's, taken by the first push of a batch.
    driver: Option<Waker>,
    /// The lane is gone: the driver ends when nothing is in flight.
    closing: bool,
    /// Resumed transfers must go on at a multiple of this many bytes.
    unit_bytes: usize,
    /// Told about every failed sync, wanted or abandoned.
    gate: Arc<SyncGate>,
}

struct Core {
    state: RefCell<State>,
    /// One permit per free slot; fair.
    permits: Semaphore,
    /// Open for as long as the kernel may use it.
    _file: Arc<File>,
}

/// One thread's ring on one file; see the module's header.
pub(crate) struct Ring {
    core: Rc<Core>,
}

impl Ring {
    /// A ring with `depth` slots on `file`. Must be called inside a `LocalSet` of a current-thread runtime
    /// with I/O enabled: the driver is spawned there. `unit_bytes` is the device's unit; `gate` learns of
    /// every failed sync.
    pub(crate) fn new(file: Arc<File>, depth: u32, unit_bytes: u32, gate: Arc<SyncGate>) -> io::Result<Self> {
        let depth = depth.clamp(1, 4096);
        let uring = build(depth)?;
        uring.submitter().register_files(&[file.as_raw_fd()])?;
        let ring_fd = uring.as_raw_fd();
        let slots = (0..depth).map(|_| Slot { phase: Phase::Free, work: Work::Sync, buffer: None }).collect();
        let state = State {
            uring: Some(uring),
            slots,
            free: (0..depth).rev().collect(),
            in_flight: 0,
            pace: Pace::new(depth),
            driver: None,
            closing: false,
            unit_bytes: unit_bytes as usize,
            gate,
        };
        let permits = Semaphore::new(depth as usize);
        let core = Rc::new(Core { state: RefCell::new(state), permits, _file: file });
        // SAFETY: the descriptor is that of the ring in `core`, always the same, and open until the core is
        // dropped; the driver holds the core, and drops this first.
        let readiness = unsafe { AsyncFd::register_with_interest(RingFd(ring_fd), Interest::READABLE) };
        let readiness = readiness.map_err(|error| error.into_parts().1)?;
        tokio::task::spawn_local(Driver { readiness, core: Rc::clone(&core) });
        Ok(Self { core })
    }

    /// Fills `buffer` from byte `offset` of the file; its first `done` bytes are there already.
    pub(crate) async fn read(&self, offset: u64, buffer: Buffer, done: usize) -> (io::Result<()>, Buffer) {
        self.transfer(Work::Read { offset, done, aside: false }, buffer).await
    }

    /// As [`read`](Self::read) of all of `buffer`, in a thread of the kernel's: this one is free meanwhile even if
    /// the kernel would not have to wait for anything.
    pub(crate) async fn read_aside(&self, offset: u64, buffer: Buffer) -> (io::Result<()>, Buffer) {
        self.transfer(Work::Read { offset, done: 0, aside: true }, buffer).await
    }

    /// As [`write`](Self::write) of all of `buffer`, not durable, in a thread of the kernel's.
    pub(crate) async fn write_aside(&self, offset: u64, buffer: Buffer) -> (io::Result<()>, Buffer) {
        self.transfer(Work::Write { offset, done: 0, manner: Manner::Aside }, buffer).await
    }

    /// Writes `buffer` at byte `offset` of the file; its first `done` bytes are written already.
    pub(crate) async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        done: usize,
        durable: bool,
    ) -> (io::Result<()>, Buffer) {
        let manner = if durable { Manner::Durable } else { Manner::Plain };
        self.transfer(Work::Write { offset, done, manner }, buffer).await
    }

    /// `fdatasync`. A failure is latched in the gate even if this future is dropped.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        self.run(Work::Sync, None).await.0
    }

    /// `fallocate` of `len` bytes from `offset`, with the mode bits of `<linux/falloc.h>`.
    pub(crate) async fn allocate(&self, offset: u64, len: u64, mode: i32) -> io::Result<()> {
        self.run(Work::Allocate { offset, len, mode }, None).await.0
    }

    async fn transfer(&self, work: Work, buffer: Buffer) -> (io::Result<()>, Buffer) {
        let (result, buffer) = self.run(work, Some(buffer)).await;
        (result, buffer.expect("a transfer's slot returns the buffer that it was given"))
    }

    async fn run(&self, work: Work, buffer: Option<Buffer>) -> (io::Result<()>, Option<Buffer>) {
        match self.core.permits.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_closed) => return (Err(io::Error::other("the lane's runtime has ended")), buffer),
        }
        let operation = self.core.start(work, buffer);
        poll_fn(|context| operation.poll(context)).await
    }
}

impl Drop for Ring {
    /// Waits for what was abandoned: whoever drops a lane may rely on nothing of it reaching the store later.
    fn drop(&mut self) {
        self.core.end();
        let driver = {
            let mut state = self.core.state.borrow_mut();
            state.closing = true;
            state.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// The best ring that this kernel gives: one submitter (6.0), completions that do not interrupt it (5.19),
/// else the plain kind.
///
/// Not `DEFER_TASKRUN`: on Linux 6.18 a completion that waits to be run does not always make the polled ring
/// readable, and a lane that had nothing else to do slept forever (`tests/ring.rs` shows it within a second).
fn build(depth: u32) -> io::Result<IoUring> {
    let cooperative = || IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(depth);
    let single: io::Result<IoUring> =
        IoUring::builder().setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().build(depth);
    single.or_else(|_| cooperative()).or_else(|_| IoUring::new(depth))
}

impl Core {
    /// Puts an operation into a free slot (the caller holds its permit) and tells the driver.
    fn start(&self, work: Work, buffer: Option<Buffer>) -> Operation<'_> {
        let (index, driver) = {
            let mut state = self.state.borrow_mut();
            let index = state.free.pop().expect("as many permits as free slots");
            let slot = &mut state.slots[index as usize];
            slot.work = work;
            slot.buffer = buffer;
            slot.phase = Phase::InFlight { waker: None, abandoned: false };
            state.begin(index);
            (index, state.driver.take())
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        Operation { core: self, index }
    }

    /// Gives the kernel what was pushed and takes what has completed, until neither is left to do.
    fn turn(&self) -> io::Result<()> {
        loop {
            self.state.borrow_mut().enter(0)?;
            while self.reap_one() {}
            let mut state = self.state.borrow_mut();
            let pushed = state.push_held()?;
            if !pushed && (state.in_flight == 0 || !state.has_queued()) {
                return Ok(());
            }
        }
    }

    /// Handles one completion, if there is one. Wakers run outside the borrow: waking may drop a task, and
    /// a task's drop may come back here.
    fn reap_one(&self) -> bool {
        let Some(Reaped { waker, freed }) = self.state.borrow_mut().reap() else { return false };
        if freed {
            self.permits.add_permits(1);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Waits in the kernel until nothing is in flight, then lets no operation start.
    fn end(&self) {
        self.permits.close();
        while self.state.borrow().in_flight > 0 {
            if self.state.borrow_mut().enter(1).is_err() {
                return; // State::drop leaks what the kernel may still use.
            }
            while self.reap_one() {}
            if self.state.borrow_mut().push_held().is_err() {
                return;
            }
        }
    }
}

/// What a completion led to.
struct Reaped {
    waker: Option<Waker>,
    /// An abandoned operation's slot is free again.
    freed: bool,
}

impl State {
    fn uring(&mut self) -> &mut IoUring {
        self.uring.as_mut().expect("there until the state is dropped")
    }

    fn has_queued(&self) -> bool {
        // SAFETY: no other submission queue of this ring exists: each lives within one borrow of the state.
        self.uring.as_ref().is_some_and(|uring| unsafe { !uring.submission_shared().is_empty() })
    }

    /// Pushes the entry of slot `index`, unless it is held back.
    fn begin(&mut self, index: u32) {
        if !self.slots[index as usize].work.is_paced() || self.pace.admits(index) {
            self.push(index);
        }
    }

    /// Pushes what was held back and no longer is, once all completions that there were are reaped; says
    /// whether there was any.
    fn push_held(&mut self) -> io::Result<bool> {
        self.pace.told();
        let mut pushed = 0;
        while let Some(index) = self.pace.next() {
            self.push(index);
            pushed += 1;
            if pushed % PROMPT_ENTRIES == 0 {
                self.enter(0)?;
            }
        }
        Ok(pushed > 0)
    }

    /// Pushes the entry of slot `index`, which is in flight from here on.
    fn push(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let entry = slot.work.entry(&mut slot.buffer).user_data(u64::from(index));
        // SAFETY: the entry's addresses are those of the slot's buffer, which stays in the slab, untouched,
        // until the completion of this entry was reaped; State::drop waits for it or leaks the slab.
        let pushed = unsafe { self.uring().submission().push(&entry) };
        pushed.expect("the queue has an entry for every slot, and a slot has one entry at most");
        self.in_flight += 1;
    }

    /// One `io_uring_enter` if there is a reason: entries to submit, work of the kernel to run in this
    /// thread, or completions to wait for.
    fn enter(&mut self, wait_for: usize) -> io::Result<()> {
        let uring = self.uring();
        let submission = uring.submission();
        let idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if idle && wait_for == 0 {
            return Ok(());
        }
        match uring.submitter().submit_and_wait(wait_for) {
            Ok(_) => Ok(()),
            // Interrupted, or short of memory for requests: what was not taken stays queued.
            Err(error) => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::BUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes one completion off the ring and continues or finishes its operation.
    fn reap(&mut self) -> Option<Reaped> {
        let completion = self.uring().completion().next()?;
        self.in_flight -= 1;
        let index = u32::try_from(completion.user_data()).expect("user data is a slot's index");
        let unit_bytes = self.unit_bytes;
        let slot = &mut self.slots[index as usize];
        let len = slot.buffer.as_ref().map_or(0, |buffer| buffer.len());
        let outcome = match slot.work.progress(completion.result(), len, unit_bytes) {
            Progress::Finished(outcome) => outcome,
            Progress::Again => {
                self.push(index);
                return Some(Reaped { waker: None, freed: false });
            }
        };
        let Phase::InFlight { waker, abandoned } = std::mem::replace(&mut slot.phase, Phase::Done(Ok(())))
        else {
            unreachable!("only slots in flight have entries in the ring");
        };
        if slot.work.is_paced() {
            self.pace.completed();
        }
        if let Err(error) = &outcome {
            self.gate.note_failure(slot.work.syncs(), abandoned, error);
        }
        if abandoned {
            self.release(index);
            return Some(Reaped { waker, freed: true });
        }
        slot.phase = Phase::Done(outcome);
        Some(Reaped { waker, freed: false })
    }

    /// Makes a slot that is not in flight free and gives its buffer back. The caller adds the permit.
    fn release(&mut self, index: u32) -> Option<Buffer> {
        let slot = &mut self.slots[index as usize];
        slot.phase = Phase::Free;
        self.free.push(index);
        slot.buffer.take()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        while self.in_flight > 0 && self.enter(1).is_ok() {
            while self.reap().is_some() {}
            if self.push_held().is_err() {
                break;
            }
        }
        let slots = std::mem::take(&mut self.slots);
        if self.in_flight > 0 {
            // The kernel would not even wait: it may still write to these.
            std::mem::forget(slots);
            std::mem::forget(self.uring.take());
        } else if let Some(uring) = &self.uring {
            // The kernel tears a closed ring down later, and until then would keep the file open: an
            // exclusively opened block device could not be opened again.
            let _ = uring.submitter().unregister_files();
        }
    }
}

/// An operation's claim on its slot: dropped before the end, it abandons the operation.
struct Operation<'a> {
    core: &'a Core,
    index: u32,
}

impl Operation<'_> {
    fn poll(&self, context: &mut Context<'_>) -> Poll<(io::Result<()>, Option<Buffer>)> {
        // Dropped after the borrow: dropping a waker may drop a task, and a task's drop may come back here.
        let _old_waker;
        let mut state = self.core.state.borrow_mut();
        let slot = &mut state.slots[self.index as usize];
        match &mut slot.phase {
            Phase::InFlight { waker, .. } => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    _old_waker = waker.replace(context.waker().clone());
                }
                Poll::Pending
            }
            Phase::Done(outcome) => Poll::Ready((std::mem::replace(outcome, Ok(())), slot.buffer.take())),
            Phase::Free => unreachable!("a slot is freed by its operation's drop only"),
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let (freed, waker) = {
            let mut state = self.core.state.borrow_mut();
            match &mut state.slots[self.index as usize].phase {
                Phase::InFlight { abandoned, waker } => {
                    *abandoned = true;
                    (false, waker.take())
                }
                _ => {
                    state.release(self.index);
                    (true, None)
                }
            }
        };
        drop(waker);
        if freed {
            self.core.permits.add_permits(1);
        }
    }
}

/// The ring's descriptor, for polling; the ring itself stays with the state.
struct RingFd(RawFd);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// The task that turns the ring. `readiness` is dropped before the ring whose descriptor it watches.
struct Driver {
    readiness: AsyncFd<RingFd>,
    core: Rc<Core>,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.core.state.borrow_mut().driver = Some(context.waker().clone());
            if self.core.turn().is_err() {
                return Poll::Ready(()); // The drop below ends the ring: operations fail, none hangs.
            }
            {
                let state = self.core.state.borrow();
                if state.closing && state.in_flight == 0 {
                    return Poll::Ready(());
                }
            }
            match self.readiness.poll_read_ready(context) {
                Poll::Pending => return Poll::Pending,
                // Cleared before the ring is looked at again: whatever comes later is a new edge.
                Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.core.end();
    }
}

#[cfg(test)]
mod tests;
