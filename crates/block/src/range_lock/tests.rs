//! The lock under threads: what it promises, checked by what would break if it did not hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::RangeLock;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}

/// A number from a number, well mixed (splitmix64).
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn plain_holders_do_not_wait_for_each_other() {
    let lock = Arc::new(RangeLock::default());
    let (first, second) = (lock.lane(1), lock.lane(1));
    block_on(async {
        let _one = first.plain(0..512).await;
        let _two = second.plain(0..512).await;
        let _without_a_slot = second.plain(0..512).await;
    });
}

#[test]
fn an_exclusive_holder_waits_for_a_published_slot_and_then_gets_it() {
    let lock = Arc::new(RangeLock::default());
    let (first, second) = (lock.lane(1), lock.lane(1));
    block_on(async {
        let plain = first.plain(0..512).await;
        let mut exclusive = std::pin::pin!(second.exclusive(0..512));
        assert!(futures_poll(exclusive.as_mut()).await.is_none());
        drop(plain);
        exclusive.await;
    });
}

#[test]
fn a_plain_holder_waits_for_an_exclusive_one_and_then_gets_it() {
    let lock = Arc::new(RangeLock::default());
    let (first, second) = (lock.lane(1), lock.lane(1));
    block_on(async {
        let exclusive = first.exclusive(0..512).await;
        let mut plain = std::pin::pin!(second.plain(100..600));
        assert!(futures_poll(plain.as_mut()).await.is_none());
        drop(exclusive);
        plain.await;
    });
}

#[test]
fn ranges_that_do_not_overlap_do_not_wait() {
    let lock = Arc::new(RangeLock::default());
    let lane = lock.lane(4);
    block_on(async {
        let _plain = lane.plain(0..512).await;
        let _exclusive = lane.exclusive(512..1024).await;
        let _other = lane.exclusive(1024..1536).await;
        let _late = lane.plain(1536..2048).await;
    });
}

#[test]
fn giving_up_a_wait_leaves_nothing_behind() {
    let lock = Arc::new(RangeLock::default());
    let lane = lock.lane(4);
    block_on(async {
        let plain = lane.plain(0..512).await;
        {
            let mut abandoned = std::pin::pin!(lane.exclusive(0..512));
            assert!(futures_poll(abandoned.as_mut()).await.is_none());
        }
        drop(plain);
    });
    assert_eq!(lock.exclusives.0.load(Ordering::SeqCst), 0);
    assert!(lock.table().entries.is_empty());
    drop(lane);
    assert!(lock.table().lanes.is_empty());
}

/// Polls once: the output if it is ready.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

/// Exclusive holders add to a cell by load and store, which loses counts as soon as two overlap; plain
/// holders mark the cell while they hold it, and exclusive holders must never see a mark.
#[test]
fn threads_never_hold_overlapping_ranges_against_the_rules() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 20_000;
    const CELLS: u64 = 4;
    let lock = Arc::new(RangeLock::default());
    let cells: Vec<AtomicU64> = (0..CELLS).map(|_| AtomicU64::new(0)).collect();
    let marks: Vec<AtomicUsize> = (0..CELLS).map(|_| AtomicUsize::new(0)).collect();
    let exclusive_rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (lock, cells, marks, exclusive_rounds) = (&lock, &cells, &marks, &exclusive_rounds);
            scope.spawn(move || {
                let lane = lock.lane(2);
                block_on(async {
                    for round in 0..ROUNDS {
                        let random = mixed(thread * ROUNDS + round);
                        let cell = (random % CELLS) as usize;
                        let range = cell as u64 * 512..(cell as u64 + 1) * 512;
                        if (random >> 32).is_multiple_of(3) {
                            let _held = lane.exclusive(range).await;
                            let before = cells[cell].load(Ordering::Relaxed);
                            assert_eq!(marks[cell].load(Ordering::SeqCst), 0, "a plain holder is inside");
                            std::thread::yield_now(); // Inside, so that threads meet also on one core.
                            assert_eq!(marks[cell].load(Ordering::SeqCst), 0, "a plain holder came in");
                            cells[cell].store(before + 1, Ordering::Relaxed);
                            exclusive_rounds.fetch_add(1, Ordering::Relaxed);
                        } else {
                            let _held = lane.plain(range).await;
                            marks[cell].fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            marks[cell].fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            });
        }
    });
    let counted: u64 = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum();
    assert_eq!(counted, exclusive_rounds.into_inner());
}
