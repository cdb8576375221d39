//! The rules of durability that all lanes of a device share: one sync for many flushes, and no way back
//! from a failed one.
//!
//! **Sharing.** A flush must cover the writes acknowledged before it was called, so it may be answered by
//! any sync that *starts* after that. Flushes that arrive while a sync runs wait for the next one, which
//! one of them starts for all. Reads and writes touch one atomic that only a failure changes.
//!
//! **Latching** (design §4.5). The kernel reports a failed write-back once and then forgets it: a second
//! sync succeeds without the data. So the first failure is final for this device. It is noted where the
//! completion is read ([`crate::ring`]), not in the future that wanted it, which may be gone.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::error::{BlockError, Operation};
use crate::sector::Lba;

/// See the module's header. Shared by the lanes of one device.
#[derive(Debug, Default)]
pub(crate) struct SyncGate {
    latched: AtomicBool,
    /// Syncs that succeeded.
    syncs: AtomicU64,
    turns: Mutex<Turns>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Turns {
    /// Flushes that have arrived; a flush's number is the count with itself.
    arrived: u64,
    /// Flushes up to this number are covered by a sync that succeeded.
    covered: u64,
    /// A sync is running.
    running: bool,
}

impl SyncGate {
    /// Whether writes and flushes are still taken.
    pub(crate) fn check(&self, operation: Operation) -> Result<(), BlockError> {
        if self.latched.load(Ordering::Acquire) { Err(BlockError::Latched { operation }) } else { Ok(()) }
    }

    /// No write or flush succeeds from here on.
    pub(crate) fn latch(&self) {
        self.latched.store(true, Ordering::Release);
    }

    /// Successful syncs so far.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Notes that an operation failed. `synced`: the sync may be what failed. A full store is left to the
    /// owner of a durable write to look into (see `FileLane`), unless nobody is waiting for it.
    pub(crate) fn note_failure(&self, synced: bool, abandoned: bool, error: &io::Error) {
        if synced && (abandoned || !is_no_space(error)) {
            self.latch();
        }
    }

    /// Returns once a sync that started after this call has succeeded. `sync` is called if it falls to
    /// this flush to run it; its failure latches.
    pub(crate) async fn flush<F>(&self, sync: impl FnOnce() -> F) -> Result<(), BlockError>
    where
        F: Future<Output = io::Result<()>>,
    {
        const OPERATION: Operation = Operation::Flush;
        self.check(OPERATION)?;
        let number = {
            let mut turns = self.turns();
            turns.arrived += 1;
            turns.arrived
        };
        let turn = loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable(); // From here on an end is noticed, so look only now.
            self.check(OPERATION)?;
            if let Some(decision) = self.take_turn(number) {
                match decision {
                    Some(turn) => break turn,
                    None => return Ok(()),
                }
            }
            ended.await;
        };
        let outcome = sync().await;
        if outcome.is_err() {
            self.latch();
        }
        turn.end(outcome.is_ok());
        outcome.map_err(|source| BlockError::Io { operation: OPERATION, at: Lba(0), source })
    }

    /// `None`: wait for the running sync. `Some(None)`: covered already. `Some(turn)`: run one.
    fn take_turn(&self, number: u64) -> Option<Option<Turn<'_>>> {
        let mut turns = self.turns();
        if turns.covered >= number {
            return Some(None);
        }
        if turns.running {
            return None;
        }
        turns.running = true;
        Some(Some(Turn { gate: self, covers: turns.arrived, succeeded: false }))
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        // Nothing panics while holding it; the counters are right even if something did.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run a sync; handed on when it is dropped, also by a flush that was given up.
struct Turn<'a> {
    gate: &'a SyncGate,
    covers: u64,
    succeeded: bool,
}

impl Turn<'_> {
    fn end(mut self, succeeded: bool) {
        self.succeeded = succeeded;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.gate.turns();
        turns.running = false;
        if self.succeeded {
            turns.covered = turns.covered.max(self.covers);
            self.gate.syncs.fetch_add(1, Ordering::Relaxed);
        }
        drop(turns);
        self.gate.ended.notify_waiters();
    }
}

/// Whether the store is full rather than broken.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests;
