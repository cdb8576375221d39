//! What a server counts while it serves: requests, bytes, errors, latencies, connections.
//!
//! Each lane writes counters of its own, which share no cache line with another lane's, and is their only
//! writer: a plain load and store, no locked instruction. [`Statistics::read`] sums them up from any other
//! thread. The only lock is taken to read, and when a connection opens its lane or closes it.
//!
//! A **latency** runs from a request received whole, payload included, until its reply is queued: storage
//! and cipher, and not the time in socket buffers. Reading the clock twice costs about 50 ns, and so a lane
//! with more than 100 000 requests a second has only one in 8 of them timed, which then counts as 8.
//! Counting then costs 11 ns a request (release build, a clock of 24 ns); otherwise, timed, at most 60 ns of 10 µs.
//!
//! Written by [`crate::lane`] and [`crate::server`]; read by whoever made the [`Statistics`].

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::histogram::{Histogram, Latencies};
use crate::request::{Request, StatusQuery};

/// A lane whose requests are closer together than this is busy.
const BUSY_GAP: Duration = Duration::from_micros(10);
/// Of so many requests a busy lane has one timed.
const BUSY_INTERVAL: u32 = 8;
const KINDS: usize = 8;

/// A number that one thread writes and any thread reads.
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds. Not a read-modify-write: there is no other writer.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    /// Sets to `value` if that is more.
    pub(crate) fn raise(&self, value: u64) {
        if value > self.get() {
            self.0.store(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a request asks for, as it is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// FLUSH.
    Flush,
    /// TRIM.
    Trim,
    /// WRITE_ZEROES.
    WriteZeroes,
    /// BLOCK_STATUS.
    BlockStatus,
    /// CACHE.
    Cache,
    /// Any command on zero bytes.
    Other,
}

impl Kind {
    /// Every kind, in the order of [`ServerCounts::kinds`].
    pub const ALL: [Self; KINDS] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::WriteZeroes,
        Self::BlockStatus,
        Self::Cache,
        Self::Other,
    ];

    /// A request's kind, and how many bytes it is about.
    fn of(request: &Request) -> (Self, u64) {
        match *request {
            Request::Read { length, .. } => (Self::Read, length.into()),
            Request::Write { length, .. } => (Self::Write, length.into()),
            Request::Flush => (Self::Flush, 0),
            Request::Discard { length, .. } => (Self::Trim, length),
            Request::Zero { length, .. } => (Self::WriteZeroes, length),
            Request::BlockStatus(StatusQuery { length, .. }) => (Self::BlockStatus, length),
            Request::Cache { length } => (Self::Cache, length),
            Request::Nothing => (Self::Other, 0),
        }
    }
}

/// One lane's counters. Aligned to two cache lines, which processors fetch in pairs.
#[repr(align(128))]
struct LaneCounters {
    /// Requests that were received whole, to be carried out.
    received: Count,
    refused: Count,
    kinds: [KindCounters; KINDS],
}

struct KindCounters {
    operations: Count,
    bytes: Count,
    errors: Count,
    latencies: Histogram,
}

impl KindCounters {
    const fn new() -> Self {
        Self {
            operations: Count::new(),
            bytes: Count::new(),
            errors: Count::new(),
            latencies: Histogram::new(),
        }
    }
}

impl LaneCounters {
    const fn new() -> Self {
        Self { received: Count::new(), refused: Count::new(), kinds: [const { KindCounters::new() }; KINDS] }
    }

    /// Requests received and not yet answered. Approximate: the lane goes on while this reads.
    fn in_flight(&self) -> u64 {
        let done: u64 = self.kinds.iter().map(|kind| kind.operations.get()).sum();
        self.received.get().saturating_sub(done)
    }

    /// Takes over what a lane that has ended counted. What it left unanswered is in flight no longer.
    fn fold(&self, ended: &Self) {
        self.refused.add(ended.refused.get());
        for (mine, theirs) in self.kinds.iter().zip(&ended.kinds) {
            mine.operations.add(theirs.operations.get());
            mine.bytes.add(theirs.bytes.get());
            mine.errors.add(theirs.errors.get());
            mine.latencies.fold(&theirs.latencies);
        }
    }
}

/// The counters of a server, past and present connections together. Counting begins when this is made.
pub struct Statistics {
    started: Instant,
    lanes: Mutex<Lanes>,
    opened: AtomicU64,
    closed: AtomicU64,
    turned_away: AtomicU64,
}

struct Lanes {
    open: Vec<Arc<LaneCounters>>,
    /// What lanes counted that are closed; written under the lock.
    closed: Box<LaneCounters>,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            lanes: Mutex::new(Lanes { open: Vec::new(), closed: Box::new(LaneCounters::new()) }),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        }
    }
}

impl Statistics {
    /// Sums up what all connections have counted so far. Numbers of one kind may be a request or two apart
    /// from each other, for nobody stops meanwhile; each by itself is exact and never goes back.
    pub fn read(&self) -> ServerCounts {
        let lanes = self.lanes();
        let all = || lanes.open.iter().map(|lane| &**lane).chain(std::iter::once(&*lanes.closed));
        let kinds = std::array::from_fn(|kind| {
            let total =
                |count: fn(&KindCounters) -> &Count| all().map(|lane| count(&lane.kinds[kind]).get()).sum();
            KindCounts {
                operations: total(|counters| &counters.operations),
                bytes: total(|counters| &counters.bytes),
                errors: total(|counters| &counters.errors),
                latencies: Histogram::read(all().map(|lane| &lane.kinds[kind].latencies)),
            }
        });
        // The ends first: never more of them than beginnings.
        let closed = self.closed.load(Ordering::Acquire);
        let opened = self.opened.load(Ordering::Acquire);
        ServerCounts {
            kinds,
            refused: all().map(|lane| lane.refused.get()).sum(),
            in_flight: lanes.open.iter().map(|lane| lane.in_flight()).sum(),
            connections: opened.saturating_sub(closed),
            connections_total: opened,
            connections_turned_away: self.turned_away.load(Ordering::Relaxed),
            uptime: self.started.elapsed(),
        }
    }

    /// A client is served until the return value is dropped.
    pub(crate) fn connect(self: &Arc<Self>) -> Connected {
        self.opened.fetch_add(1, Ordering::Release);
        Connected { statistics: Arc::clone(self) }
    }

    /// A client was turned away.
    pub(crate) fn turn_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // Numbers are whole whatever happened to the thread that held them.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, while it is one.
pub(crate) struct Connected {
    statistics: Arc<Statistics>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.statistics.closed.fetch_add(1, Ordering::Release);
    }
}

/// What was counted, at one moment.
#[derive(Clone, Debug)]
pub struct ServerCounts {
    /// By kind, in the order of [`Kind::ALL`].
    pub kinds: [KindCounts; KINDS],
    /// Requests answered with an error without being carried out: outside the export, not permitted, unknown,
    /// or while the server was stopping.
    pub refused: u64,
    /// Requests received whole and not yet answered.
    pub in_flight: u64,
    /// Connections that are served now.
    pub connections: u64,
    /// Connections that were ever served.
    pub connections_total: u64,
    /// Clients that were turned away: there were as many connections as allowed, or no thread for it.
    pub connections_turned_away: u64,
    /// Since when all this is counted.
    pub uptime: Duration,
}

/// What was counted of one kind of request.
#[derive(Clone, Default, Debug)]
pub struct KindCounts {
    /// Requests that were carried out, those that failed included.
    pub operations: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Those that failed.
    pub errors: u64,
    /// How long they took: those that were timed, each for as many as it stands for.
    pub latencies: Latencies,
}

/// A lane's own hold on its counters; on its thread only.
pub(crate) struct Meter {
    counters: Arc<LaneCounters>,
    statistics: Arc<Statistics>,
    last_timed: Cell<Instant>,
    /// One in so many requests is timed.
    interval: Cell<u32>,
    /// Requests until then.
    until_timed: Cell<u32>,
}

/// The beginning of a request that is timed, and how many requests it stands for.
#[derive(Clone, Copy)]
pub(crate) struct Timed {
    since: Instant,
    weight: u32,
}

impl Meter {
    /// The counters of a lane that begins.
    pub(crate) fn new(statistics: &Arc<Statistics>) -> Self {
        let counters = Arc::new(LaneCounters::new());
        statistics.lanes().open.push(Arc::clone(&counters));
        Self {
            counters,
            statistics: Arc::clone(statistics),
            last_timed: Cell::new(Instant::now()),
            interval: Cell::new(1),
            until_timed: Cell::new(1),
        }
    }

    /// A request was received whole. What is returned goes into [`Self::finish`].
    pub(crate) fn begin(&self) -> Option<Timed> {
        self.counters.received.add(1);
        let left = self.until_timed.get() - 1;
        self.until_timed.set(left);
        (left == 0).then(|| self.begin_timed())
    }

    /// The last request of an interval is timed, and says how long the next one is to be.
    fn begin_timed(&self) -> Timed {
        let since = Instant::now();
        let weight = self.interval.get();
        let elapsed = since.duration_since(self.last_timed.replace(since));
        let next = if elapsed < BUSY_GAP * weight { BUSY_INTERVAL } else { 1 };
        self.interval.set(next);
        self.until_timed.set(next);
        Timed { since, weight }
    }

    /// A request was carried out.
    pub(crate) fn finish(&self, timed: Option<Timed>, request: &Request, succeeded: bool) {
        let (kind, bytes) = Kind::of(request);
        let counters = &self.counters.kinds[kind as usize];
        counters.operations.add(1);
        if succeeded {
            counters.bytes.add(bytes);
        } else {
            counters.errors.add(1);
        }
        if let Some(Timed { since, weight }) = timed {
            let nanoseconds = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            counters.latencies.record(nanoseconds, weight.into());
        }
    }

    /// A request was answered with an error instead of being carried out.
    pub(crate) fn refuse(&self) {
        self.counters.refused.add(1);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let mut lanes = self.statistics.lanes();
        lanes.open.retain(|lane| !Arc::ptr_eq(lane, &self.counters));
        lanes.closed.fold(&self.counters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Request = Request::Read { offset: 0, length: 4096 };

    fn serve(meter: &Meter, request: &Request, succeeded: bool) {
        let timed = meter.begin();
        meter.finish(timed, request, succeeded);
    }

    #[test]
    fn a_closed_lane_stays_in_the_sum_and_leaves_nothing_in_flight() {
        let statistics = Arc::new(Statistics::default());
        let (first, second) = (Meter::new(&statistics), Meter::new(&statistics));
        serve(&first, &READ, true);
        serve(&second, &READ, false);
        first.refuse();
        let _unanswered = first.begin();
        assert_eq!(statistics.read().in_flight, 1);
        drop(first);
        let counts = statistics.read();
        let reads = &counts.kinds[Kind::Read as usize];
        assert_eq!((reads.operations, reads.bytes, reads.errors), (2, 4096, 1));
        assert_eq!((counts.in_flight, counts.refused), (0, 1));
    }

    #[test]
    fn timed_requests_stand_for_all() {
        let statistics = Arc::new(Statistics::default());
        let meter = Meter::new(&statistics);
        for _ in 0..10_000 {
            serve(&meter, &READ, true);
        }
        let reads = statistics.read().kinds[Kind::Read as usize].clone();
        let missing = reads.operations - reads.latencies.count();
        assert!(missing < BUSY_INTERVAL.into(), "{missing} of {} are not stood for", reads.operations);
    }

    #[test]
    fn every_request_of_a_lane_that_is_not_busy_is_timed() {
        let statistics = Arc::new(Statistics::default());
        let meter = Meter::new(&statistics);
        for _ in 0..20 {
            meter.last_timed.set(Instant::now() - Duration::from_millis(1));
            serve(&meter, &READ, true);
        }
        assert_eq!(statistics.read().kinds[Kind::Read as usize].latencies.count(), 20);
    }

    #[test]
    fn connections_are_counted_while_they_last() {
        let statistics = Arc::new(Statistics::default());
        let open = statistics.connect();
        drop(statistics.connect());
        statistics.turn_away();
        let counts = statistics.read();
        assert_eq!((counts.connections, counts.connections_total), (1, 2));
        assert_eq!(counts.connections_turned_away, 1);
        drop(open);
        assert_eq!(statistics.read().connections, 0);
    }
}
