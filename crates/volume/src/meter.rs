//! How much the cipher does, and what it costs: bytes exactly, time by samples.
//!
//! A lane times one call of the cipher for every 64 KiB that went through it, and lets it stand for the bytes
//! since the call before: two looks at the clock, about 50 ns, and two locked additions, where moving 64 KiB takes
//! tens of microseconds. Written by [`crate::VolumeLane`], read by the control plane.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes from one call that is timed to the next.
const SAMPLE_BYTES: u64 = 64 << 10;

/// What the cipher of one volume did, in all lanes. Clones share it.
#[derive(Clone, Default, Debug)]
pub struct CipherStatistics {
    totals: Arc<Totals>,
}

#[derive(Default, Debug)]
struct Totals {
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl CipherStatistics {
    /// Bytes that were encrypted or decrypted; 64 KiB of each open lane may be missing.
    pub fn bytes(&self) -> u64 {
        self.totals.bytes.load(Ordering::Relaxed)
    }

    /// Time spent doing so, in all threads together; an estimate.
    pub fn nanoseconds(&self) -> u64 {
        self.totals.nanoseconds.load(Ordering::Relaxed)
    }

    /// The meter of one lane.
    pub(crate) fn meter(&self) -> CipherMeter {
        CipherMeter {
            totals: Arc::clone(&self.totals),
            untimed_bytes: Cell::new(0),
            wait_bytes: Cell::new(0),
        }
    }
}

/// One lane's meter; on its thread only.
pub(crate) struct CipherMeter {
    totals: Arc<Totals>,
    /// Bytes since the last call that was timed.
    untimed_bytes: Cell<u64>,
    /// As many as there must be before the next; none before the first, so that a quiet volume has a figure too.
    wait_bytes: Cell<u64>,
}

impl CipherMeter {
    /// Calls the cipher for `bytes` bytes.
    pub(crate) fn count(&self, bytes: usize, cipher: impl FnOnce()) {
        let call_bytes = bytes as u64;
        let untimed_bytes = self.untimed_bytes.get() + call_bytes;
        if untimed_bytes < self.wait_bytes.get() || call_bytes == 0 {
            self.untimed_bytes.set(untimed_bytes);
            return cipher();
        }
        let started = Instant::now();
        cipher();
        let nanoseconds = started.elapsed().as_nanos() as f64;
        self.untimed_bytes.set(0);
        self.wait_bytes.set(SAMPLE_BYTES);
        let stands_for = untimed_bytes as f64 / call_bytes as f64;
        self.totals.bytes.fetch_add(untimed_bytes, Ordering::Relaxed);
        self.totals.nanoseconds.fetch_add((nanoseconds * stands_for) as u64, Ordering::Relaxed);
    }
}

impl Drop for CipherMeter {
    fn drop(&mut self) {
        self.totals.bytes.fetch_add(self.untimed_bytes.get(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A cipher that takes `micros` microseconds, and not less.
    fn busy(micros: u64) {
        let started = Instant::now();
        while started.elapsed() < Duration::from_micros(micros) {}
    }

    #[test]
    fn every_byte_is_counted_once_the_lane_is_closed() {
        let statistics = CipherStatistics::default();
        let meter = statistics.meter();
        [512, 70_000, 4096, 1024, 0].iter().for_each(|&bytes| meter.count(bytes, || {}));
        assert_eq!(statistics.bytes(), 512 + 70_000);
        drop(meter);
        assert_eq!(statistics.bytes(), 512 + 70_000 + 4096 + 1024);
    }

    #[test]
    fn a_timed_call_stands_for_the_bytes_before_it() {
        let statistics = CipherStatistics::default();
        let meter = statistics.meter();
        // The first is timed for itself, and the seventeenth for sixteen.
        (0..17).for_each(|_| meter.count(4096, || busy(20)));
        assert_eq!(statistics.bytes(), 17 * 4096);
        assert!(statistics.nanoseconds() >= 17 * 20_000, "{} ns", statistics.nanoseconds());
    }

    #[test]
    fn lanes_are_counted_together() {
        let statistics = CipherStatistics::default();
        (0..3).for_each(|_| statistics.meter().count(1000, || {}));
        assert_eq!(statistics.bytes(), 3000);
    }
}
