//! The patience that a lane has with a client that owes it something: the rest of a message, or the taking of
//! its replies.
//!
//! The clock is looked at only when the lane is about to sleep, and its timer is not set back when the client
//! moves: it rings early then, and is set anew. So a busy lane pays nothing for it, and one timer does for all
//! waits of a connection. Used by [`crate::link`].

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A lane's one timer.
#[derive(Default)]
pub(crate) struct StallClock {
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer will ring.
    running: bool,
}

impl StallClock {
    /// Ready when `due` has passed; else the task is woken then at the latest.
    pub(crate) fn poll(&mut self, due: Instant, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            if !self.running || timer.deadline() > due {
                timer.as_mut().reset(due);
                self.running = true;
            }
            ready!(timer.as_mut().poll(context));
            self.running = false;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_later_due_time_outlives_the_timer_of_an_earlier_wait() {
        let (mut clock, start) = (StallClock::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(poll_fn(|context| Poll::Ready(clock.poll(at(5), context))).await.is_pending());
        poll_fn(|context| clock.poll(at(8), context)).await;
        assert_eq!(Instant::now().duration_since(start).as_secs(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_due_time_is_kept_although_a_later_timer_runs() {
        let (mut clock, start) = (StallClock::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(poll_fn(|context| Poll::Ready(clock.poll(at(60), context))).await.is_pending());
        poll_fn(|context| clock.poll(at(2), context)).await;
        assert_eq!(Instant::now().duration_since(start).as_secs(), 2);
    }
}
