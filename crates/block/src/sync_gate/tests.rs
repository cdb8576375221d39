//! Which sync answers which flush, and what a failed one leaves.

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use tokio::sync::Semaphore;

use super::SyncGate;
use crate::error::{BlockError, Operation};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A disk whose syncs end when the test lets them.
struct Disk {
    started: Cell<u32>,
    may_end: Semaphore,
    fails: Cell<bool>,
}

impl Disk {
    fn new() -> Rc<Self> {
        Rc::new(Self { started: Cell::new(0), may_end: Semaphore::new(0), fails: Cell::new(false) })
    }

    async fn sync(&self) -> io::Result<()> {
        self.started.set(self.started.get() + 1);
        self.may_end.acquire().await.expect("open").forget();
        if self.fails.get() { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }
}

#[test]
fn flushes_that_arrive_during_a_sync_share_the_next_one_and_not_the_running_one() {
    block_on(async {
        let (gate, disk) = (SyncGate::default(), Disk::new());
        let mut first = pin!(gate.flush(|| disk.sync()));
        assert!(poll_once(first.as_mut()).await.is_none());
        let mut late: Vec<_> = (0..10).map(|_| Box::pin(gate.flush(|| disk.sync()))).collect();
        for flush in &mut late {
            assert!(poll_once(flush.as_mut()).await.is_none());
        }
        assert_eq!(disk.started.get(), 1);
        disk.may_end.add_permits(1);
        first.await.expect("flushed");
        for flush in &mut late {
            assert!(poll_once(flush.as_mut()).await.is_none(), "a sync that began before it is no answer");
        }
        assert_eq!(disk.started.get(), 2);
        disk.may_end.add_permits(1);
        for flush in late {
            flush.await.expect("flushed");
        }
        assert_eq!((disk.started.get(), gate.syncs()), (2, 2));
    });
}

#[test]
fn a_failed_sync_fails_its_flush_the_waiting_ones_and_all_later_ones() {
    block_on(async {
        let (gate, disk) = (SyncGate::default(), Disk::new());
        disk.fails.set(true);
        let mut first = pin!(gate.flush(|| disk.sync()));
        assert!(poll_once(first.as_mut()).await.is_none());
        let mut waiting = pin!(gate.flush(|| disk.sync()));
        assert!(poll_once(waiting.as_mut()).await.is_none());
        disk.may_end.add_permits(10);
        assert!(matches!(first.await, Err(BlockError::Io { operation: Operation::Flush, .. })));
        disk.fails.set(false);
        assert!(matches!(waiting.await, Err(BlockError::Latched { .. })));
        assert!(matches!(gate.flush(|| disk.sync()).await, Err(BlockError::Latched { .. })));
        assert!(matches!(gate.check(Operation::Write), Err(BlockError::Latched { .. })));
        assert_eq!(disk.started.get(), 1, "a failed sync is never tried again");
    });
}

#[test]
fn a_flush_that_is_given_up_hands_its_turn_on_and_covers_nobody() {
    block_on(async {
        let (gate, disk) = (SyncGate::default(), Disk::new());
        let mut waiting = pin!(gate.flush(|| disk.sync()));
        {
            let mut abandoned = pin!(gate.flush(|| disk.sync()));
            assert!(poll_once(abandoned.as_mut()).await.is_none());
            assert!(poll_once(waiting.as_mut()).await.is_none());
        }
        disk.may_end.add_permits(1);
        waiting.await.expect("flushed");
        assert_eq!((disk.started.get(), gate.syncs()), (2, 1));
    });
}

#[test]
fn what_latches_is_a_failed_sync_and_not_a_failed_write() {
    let gate = SyncGate::default();
    let (full, broken) = (io::Error::from(io::ErrorKind::StorageFull), io::Error::other("EIO"));
    gate.note_failure(false, false, &broken);
    gate.note_failure(false, true, &broken);
    gate.note_failure(true, false, &full);
    assert!(gate.check(Operation::Write).is_ok());
    gate.note_failure(true, true, &full);
    assert!(gate.check(Operation::Write).is_err(), "nobody is left to look into it");
    let gate = SyncGate::default();
    gate.note_failure(true, false, &broken);
    assert!(gate.check(Operation::Write).is_err());
}
