//! The baton: a value that the workers of one lane hand from one to the next.
//!
//! A mutex for coroutines of one thread, without atomics and without a guard: whoever has the value may
//! use it, across awaits too, and gives it back with [`Baton::pass`]. The worker that began to wait last
//! gets it first: workers are all alike, so nobody starves, and a few of them stay hot in the cache
//! instead of all of them taking turns.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Holds the value while nobody has it.
pub(crate) struct Baton<T> {
    place: RefCell<Place<T>>,
}

struct Place<T> {
    value: Option<T>,
    /// Who waits, and the tickets by which they know their own entry: comparing wakers is not reliable.
    waiting: Vec<(u64, Waker)>,
    last_ticket: u64,
}

impl<T> Baton<T> {
    /// A baton that is free, for at most `workers` workers that wait.
    pub(crate) fn new(value: T, workers: usize) -> Self {
        let waiting = Vec::with_capacity(workers);
        Self { place: RefCell::new(Place { value: Some(value), waiting, last_ticket: 0 }) }
    }

    /// Waits until the value is free and takes it.
    pub(crate) async fn take(&self) -> T {
        let mut ticket = None;
        poll_fn(|context| {
            let mut place = self.place.borrow_mut();
            // A task may be polled for another reason than being passed the baton. Its old entry must not
            // stay: a wake-up spent on a worker that is busy again is one that a waiting worker misses.
            if let Some(mine) = ticket.take() {
                place.waiting.retain(|(theirs, _)| *theirs != mine);
            }
            if let Some(value) = place.value.take() {
                return Poll::Ready(value);
            }
            place.last_ticket += 1;
            let mine = place.last_ticket;
            place.waiting.push((mine, context.waker().clone()));
            ticket = Some(mine);
            Poll::Pending
        })
        .await
    }

    /// Gives the value back and wakes one worker that waits for it.
    pub(crate) fn pass(&self, value: T) {
        let next = {
            let mut place = self.place.borrow_mut();
            assert!(place.value.replace(value).is_none(), "there is one baton");
            place.waiting.pop()
        };
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::rc::Rc;

    use tokio::task::{JoinSet, LocalSet};

    use super::*;

    #[tokio::test]
    async fn the_value_reaches_every_worker_and_is_with_one_at_a_time() {
        let baton = Rc::new(Baton::new(0_u32, 8));
        LocalSet::new()
            .run_until(async {
                let mut workers = JoinSet::new();
                for _ in 0..8 {
                    let baton = Rc::clone(&baton);
                    workers.spawn_local(async move {
                        for _ in 0..100 {
                            let value = baton.take().await;
                            tokio::task::yield_now().await;
                            baton.pass(value + 1);
                        }
                    });
                }
                while let Some(done) = workers.join_next().await {
                    done.expect("no worker panics");
                }
            })
            .await;
        assert_eq!(baton.take().await, 800);
    }

    #[tokio::test]
    async fn a_waiter_polled_for_another_reason_leaves_no_stale_entry() {
        let baton = Baton::new((), 2);
        baton.take().await;
        let mut waiting = std::pin::pin!(baton.take());
        for _ in 0..3 {
            let polled = poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_ready())).await;
            assert!(!polled);
            assert_eq!(baton.place.borrow().waiting.len(), 1);
        }
        baton.pass(());
        waiting.await;
        assert_eq!(baton.place.borrow().waiting.len(), 0);
    }
}
