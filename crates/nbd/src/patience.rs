//! Adaptive polling: how long a lane looks again before it sleeps (design §1).
//!
//! A sleeping thread costs its client a wake-up: an interrupt to an idle processor, which on a virtual
//! machine takes tens of microseconds. A lane that expects the next request soon looks for it again for a
//! while instead. It learns whether that pays: a wait that ended while it was looking, or so soon after it
//! fell asleep that looking would have met it, lets the next wait look for the whole time; a wait in vain
//! halves the time, down to nothing. So a lane whose client is slow or idle burns at most a few windows
//! after the last quick answer, and none from then on. With one processor it never looks again: whoever
//! could bring the answer needs that processor.
//!
//! Pure arithmetic on instants, used by [`crate::link`].

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// The longest look: about what a wake-up from idle costs.
const LONGEST: Duration = Duration::from_micros(50);
/// A shorter look than this is not worth its first system call.
const SHORTEST: Duration = Duration::from_micros(3);

/// What a lane has learned about waiting.
pub(crate) struct Patience {
    /// How long the next wait looks; zero: not at all.
    window: Duration,
    /// When the present wait began, if there is one.
    since: Option<Instant>,
    /// Whether looking ever pays on this machine.
    enabled: bool,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self::with(available_parallelism().is_ok_and(|processors| processors.get() > 1))
    }

    fn with(enabled: bool) -> Self {
        Self { window: if enabled { LONGEST } else { Duration::ZERO }, since: None, enabled }
    }

    /// Nothing was ready: whether to look again at once (`true`) or to sleep.
    pub(crate) fn look_again(&mut self) -> bool {
        self.enabled && self.look_again_at(Instant::now())
    }

    /// The wait is over.
    pub(crate) fn over(&mut self) {
        if self.since.is_some() {
            self.over_at(Instant::now());
        }
    }

    fn look_again_at(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(since) < self.window
    }

    fn over_at(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        if now.saturating_duration_since(since) <= LONGEST {
            self.window = LONGEST;
            return;
        }
        self.window /= 2;
        if self.window < SHORTEST {
            self.window = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wait of `length`, from `start`: whether it was still looking at its end.
    fn wait(patience: &mut Patience, start: Instant, length: Duration) -> bool {
        patience.look_again_at(start);
        let looking = patience.look_again_at(start + length);
        patience.over_at(start + length);
        looking
    }

    #[test]
    fn short_waits_are_met_looking_and_long_ones_asleep() {
        let (mut patience, start) = (Patience::with(true), Instant::now());
        assert!(wait(&mut patience, start, Duration::from_micros(20)));
        assert!(!wait(&mut patience, start, Duration::from_millis(5)));
    }

    #[test]
    fn waits_in_vain_end_the_looking_and_one_quick_answer_brings_it_back() {
        let (mut patience, start) = (Patience::with(true), Instant::now());
        let looked = (0..32)
            .map(|_| {
                let window = patience.window;
                wait(&mut patience, start, Duration::from_secs(1));
                window
            })
            .sum::<Duration>();
        assert!(looked <= 2 * LONGEST, "an idle lane burnt {looked:?}");
        assert_eq!(patience.window, Duration::ZERO);
        assert!(!wait(&mut patience, start, Duration::from_micros(30)), "this one slept");
        assert!(wait(&mut patience, start, Duration::from_micros(30)), "and taught the next to look");
    }

    #[test]
    fn one_processor_is_left_to_whoever_brings_the_answer() {
        let mut patience = Patience::with(false);
        assert!(!patience.look_again());
        patience.over();
        assert!(!patience.look_again());
    }
}
