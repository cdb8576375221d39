//! The gate from several lanes of one thread, and from several threads.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::Poll;

use super::*;

async fn once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| match std::pin::Pin::new(&mut *future).poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn an_exchange_waits_for_the_write_on_its_way_and_keeps_later_ones_out() {
    let gate = Arc::new(WriteGate::new(1));
    let (lane, other) = (gate.lane(), gate.lane());
    let writing = lane.enter().await;
    let mut exchange = Box::pin(gate.exchange(|plan| plan + 1));
    assert!(once(&mut exchange).await.is_none());
    let mut later = Box::pin(other.enter());
    assert!(once(&mut later).await.is_none());
    assert_eq!(*writing.plan(), 1);
    writing.finish();
    exchange.await;
    assert_eq!(*later.await.plan(), 2);
    assert_eq!(*lane.enter().await.plan(), 2);
}

#[tokio::test]
async fn an_exchange_that_is_given_up_opens_the_gate_again() {
    let gate = Arc::new(WriteGate::new(1));
    let lane = gate.lane();
    let writing = lane.enter().await;
    let mut exchange = Box::pin(gate.exchange(|plan| plan + 1));
    assert!(once(&mut exchange).await.is_none());
    drop(exchange);
    assert_eq!(*gate.lane().enter().await.plan(), 1);
    drop(writing);
}

#[tokio::test]
async fn a_write_that_was_abandoned_counts_until_its_lane_is_gone() {
    let gate = Arc::new(WriteGate::new(()));
    let lane = gate.lane();
    let writing = lane.enter().await;
    writing.issue();
    drop(writing);
    let mut exchange = Box::pin(gate.exchange(|()| ()));
    assert!(once(&mut exchange).await.is_none());
    drop(lane);
    assert!(once(&mut exchange).await.is_some());
}

#[tokio::test]
async fn a_replaced_plan_is_seen_by_the_next_write() {
    let gate = Arc::new(WriteGate::new(1));
    let lane = gate.lane();
    drop(lane.enter().await);
    gate.replace(|plan| plan + 1);
    assert_eq!(*lane.enter().await.plan(), 2);
    assert_eq!(lane.known_plan(|plan| *plan), 2);
}

/// Writers that hold the gate say which plan they run under; whoever exchanges it sees nobody inside.
#[test]
fn no_write_is_inside_while_the_plan_changes() {
    const EXCHANGES: u64 = 2000;
    let gate = Arc::new(WriteGate::new(0_u64));
    let inside: Arc<[AtomicU64; 3]> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let block_on = |work: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work);
    };
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (gate, inside, done) = (Arc::clone(&gate), Arc::clone(&inside), Arc::clone(&done));
            scope.spawn(move || {
                block_on(Box::pin(async move {
                    let lane = gate.lane();
                    while !done.load(Acquire) {
                        let writing = lane.enter().await;
                        inside[writer].store(*writing.plan() + 1, SeqCst);
                        tokio::task::yield_now().await;
                        inside[writer].store(0, SeqCst);
                        writing.finish();
                    }
                }));
            });
        }
        let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
        block_on(Box::pin(async move {
            for number in 0..EXCHANGES {
                gate.exchange(|plan| {
                    assert_eq!(*plan, number);
                    assert!(inside.iter().all(|writer| writer.load(SeqCst) == 0), "a write is inside");
                    plan + 1
                })
                .await;
            }
        }));
        done.store(true, Release);
    });
}
