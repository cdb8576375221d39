//! Overlapping changes go to the server one after the other, in the order in which they were asked for.
//!
//! A client that sends overlapping writes at once accepts either order. But whatever order the server made
//! of them must still hold after a lost connection, when they are made again: so the server is never left a
//! choice. Changes that do not overlap pay one look at a short list.

use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The changes that are being made or wait to be.
#[derive(Debug, Default)]
pub(crate) struct Order {
    line: Mutex<Line>,
    left: Notify,
}

/// In the order in which they came.
#[derive(Debug, Default)]
struct Line {
    next: u64,
    places: Vec<(u64, Range<u64>)>,
}

impl Line {
    fn is_first(&self, ticket: u64, range: &Range<u64>) -> bool {
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        let mut earlier = self.places.iter().take_while(|place| place.0 < ticket);
        !earlier.any(|place| overlaps(&place.1))
    }
}

/// A place in the line; left when dropped. Goes with its request, not with the future that made it.
#[derive(Debug)]
pub(crate) struct Turn {
    order: Arc<Order>,
    ticket: u64,
}

impl Order {
    /// Waits until every earlier change of any byte of `range` is done.
    pub(crate) async fn turn(self: &Arc<Self>, range: Range<u64>) -> Turn {
        let turn = {
            let mut line = self.line();
            let ticket = line.next;
            line.next += 1;
            line.places.push((ticket, range.clone()));
            Turn { order: Arc::clone(self), ticket }
        };
        loop {
            let mut left = pin!(self.left.notified());
            left.as_mut().enable(); // From here on a leaving is noticed, so look only now.
            if self.line().is_first(turn.ticket, &range) {
                return turn;
            }
            left.await;
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing panics while holding it.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.order.line().places.retain(|place| place.0 != self.ticket);
        self.order.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn overlapping_changes_wait_for_each_other_in_order_and_others_do_not() {
        let order = Arc::<Order>::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = pin!(order.turn(0..10));
        let Poll::Ready(first) = first.as_mut().poll(&mut context) else { panic!("nobody is before it") };
        let mut wide = pin!(order.turn(5..30));
        assert!(wide.as_mut().poll(&mut context).is_pending());
        // Not overlapping what is under way, but what came before it.
        let mut behind = pin!(order.turn(20..21));
        assert!(behind.as_mut().poll(&mut context).is_pending());
        let mut apart = pin!(order.turn(30..40));
        assert!(apart.as_mut().poll(&mut context).is_ready());
        drop(first);
        let Poll::Ready(wide) = wide.as_mut().poll(&mut context) else { panic!("it is its turn") };
        assert!(behind.as_mut().poll(&mut context).is_pending());
        drop(wide);
        assert!(behind.as_mut().poll(&mut context).is_ready());
        assert!(order.line().places.len() <= 2);
    }
}
