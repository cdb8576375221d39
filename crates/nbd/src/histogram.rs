//! Latencies, counted in fixed buckets by one thread while any other may read.
//!
//! Log-linear, as HDR histograms are: every power of two of nanoseconds is cut into 16 buckets, so that a
//! percentile is at most 1/16 above the latency it stands for, and never below it. An array of a fixed size
//! in place of the crate `hdrhistogram`, which grows as it counts and needs a lock to be read meanwhile: on
//! the data path nothing is allocated and nobody waits.
//!
//! | bucket | holds |
//! |---|---|
//! | 0 | up to 2^10 ns |
//! | 1 to 416 | 2^10 ns (1 µs) to 2^36 ns (69 s), 16 to each power of two, upper bounds included |
//! | 417 | everything longer |

use crate::stats::Count;

/// Buckets to a power of two, as a power of two.
const SUB_BITS: u32 = 4;
/// Where the first power of two that is cut begins.
const FIRST_BITS: u32 = 10;
/// Where the last one ends.
const LAST_BITS: u32 = 36;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
const BUCKETS: usize = (LAST_BITS - FIRST_BITS) as usize * SUB_BUCKETS + 2;

/// The bucket of a latency.
fn bucket_of(nanoseconds: u64) -> usize {
    // Upper bounds belong to their buckets.
    let below = nanoseconds.saturating_sub(1);
    if below >> FIRST_BITS == 0 {
        return 0;
    }
    if below >> LAST_BITS != 0 {
        return BUCKETS - 1;
    }
    let power = below.ilog2();
    let sub = (below >> (power - SUB_BITS)) as usize % SUB_BUCKETS;
    1 + (power - FIRST_BITS) as usize * SUB_BUCKETS + sub
}

/// The longest latency of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    match bucket {
        0 => 1 << FIRST_BITS,
        inner if inner < BUCKETS - 1 => {
            let power = FIRST_BITS + ((inner - 1) / SUB_BUCKETS) as u32;
            ((SUB_BUCKETS + (inner - 1) % SUB_BUCKETS + 1) as u64) << (power - SUB_BITS)
        }
        _ => u64::MAX,
    }
}

/// The counting side.
pub(crate) struct Histogram {
    buckets: [Count; BUCKETS],
    sum_ns: Count,
    max_ns: Count,
}

impl Histogram {
    pub(crate) const fn new() -> Self {
        Self { buckets: [const { Count::new() }; BUCKETS], sum_ns: Count::new(), max_ns: Count::new() }
    }

    /// Counts a request that took so long, and stands for `weight` requests.
    pub(crate) fn record(&self, nanoseconds: u64, weight: u64) {
        self.buckets[bucket_of(nanoseconds)].add(weight);
        self.sum_ns.add(nanoseconds.saturating_mul(weight));
        self.max_ns.raise(nanoseconds);
    }

    /// Takes over what another one counted, which counts no longer.
    pub(crate) fn fold(&self, other: &Self) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            mine.add(theirs.get());
        }
        self.sum_ns.add(other.sum_ns.get());
        self.max_ns.raise(other.max_ns.get());
    }

    /// Copies what several have counted so far, taken together.
    pub(crate) fn read<'a>(histograms: impl Iterator<Item = &'a Self> + Clone) -> Latencies {
        let total = |count: fn(&Self) -> u64| histograms.clone().map(count).fold(0, u64::wrapping_add);
        let buckets = (0..BUCKETS).filter_map(|bucket| {
            let count = histograms.clone().map(|one| one.buckets[bucket].get()).sum();
            (count > 0).then(|| Bucket { up_to_ns: upper_bound(bucket), count })
        });
        Latencies {
            buckets: buckets.collect(),
            sum_ns: total(|one| one.sum_ns.get()),
            max_ns: histograms.clone().map(|one| one.max_ns.get()).max().unwrap_or(0),
        }
    }
}

/// The requests of one bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// The longest latency of the bucket; `u64::MAX` in the last one, which has no bound.
    pub up_to_ns: u64,
    /// How many requests are in it, and in none before.
    pub count: u64,
}

/// Latencies that were counted, at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Latencies {
    /// Buckets with requests in them, the shortest latencies first.
    pub buckets: Vec<Bucket>,
    /// The sum of all latencies.
    pub sum_ns: u64,
    /// The longest latency that was measured.
    pub max_ns: u64,
}

impl Latencies {
    /// How many requests were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }

    /// A latency that `share` of the requests (0.5: half of them) did not exceed, by nearest rank; `None` if
    /// nothing was counted. Above the exact value by at most 1/16, or by 1024 ns below that; never below it.
    pub fn percentile_ns(&self, share: f64) -> Option<u64> {
        let rank = (share.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reached = self.buckets.iter().find(|bucket| {
            seen += bucket.count;
            seen >= rank
        });
        Some(reached.or(self.buckets.last())?.up_to_ns.min(self.max_ns))
    }

    /// What was counted since `earlier`, a copy of the same histogram. The longest latency of the time between is
    /// not known exactly: it is told as its bucket's bound.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut before = earlier.buckets.iter().copied().peekable();
        let buckets = self.buckets.iter().filter_map(|bucket| {
            while before.next_if(|old| old.up_to_ns < bucket.up_to_ns).is_some() {}
            let old = before.next_if(|old| old.up_to_ns == bucket.up_to_ns).map_or(0, |old| old.count);
            let count = bucket.count.saturating_sub(old);
            (count > 0).then_some(Bucket { count, ..*bucket })
        });
        let buckets: Vec<Bucket> = buckets.collect();
        let max_ns = buckets.last().map_or(0, |last| last.up_to_ns.min(self.max_ns));
        Self { buckets, sum_ns: self.sum_ns.wrapping_sub(earlier.sum_ns), max_ns }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted(latencies: &[u64]) -> Latencies {
        let histogram = Histogram::new();
        latencies.iter().for_each(|&ns| histogram.record(ns, 1));
        Histogram::read(std::iter::once(&histogram))
    }

    /// From nanoseconds to minutes, every magnitude alike.
    fn latency() -> impl Strategy<Value = u64> {
        (0_u32..40, any::<u64>()).prop_map(|(bits, noise)| (1 << bits) | (noise & ((1 << bits) - 1)))
    }

    #[test]
    fn buckets_join_without_gap_or_overlap() {
        for bucket in 0..BUCKETS - 1 {
            let bound = upper_bound(bucket);
            assert_eq!(bucket_of(bound), bucket, "{bound} is the last of bucket {bucket}");
            assert_eq!(bucket_of(bound + 1), bucket + 1, "{bound} + 1 is the first after bucket {bucket}");
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
        assert_eq!(upper_bound(BUCKETS - 2), 1 << LAST_BITS);
    }

    #[test]
    fn without_requests_there_is_no_percentile() {
        assert_eq!(counted(&[]).percentile_ns(0.5), None);
    }

    #[test]
    fn a_latency_past_the_last_bound_is_told_as_it_was() {
        assert_eq!(counted(&[500_000_000_000]).percentile_ns(0.99), Some(500_000_000_000));
    }

    proptest! {
        #[test]
        fn a_percentile_is_at_most_a_sixteenth_above_the_exact_one_and_never_below(
            mut latencies in prop::collection::vec(latency(), 1..300),
            share in 0.0..=1.0_f64,
        ) {
            let told = counted(&latencies).percentile_ns(share).expect("there are requests");
            latencies.sort_unstable();
            let rank = (share * latencies.len() as f64).ceil().max(1.0) as usize;
            let exact = latencies[rank - 1];
            let most = if exact > 1 << LAST_BITS { u64::MAX } else { (exact + exact / 16).max(1024) };
            prop_assert!((exact..=most).contains(&told), "{told} for {exact}");
        }

        #[test]
        fn an_interval_has_what_came_after_its_beginning(
            before in prop::collection::vec(latency(), 0..50),
            after in prop::collection::vec(latency(), 0..50),
        ) {
            let all = counted(&[before.as_slice(), &after].concat());
            let (interval, alone) = (all.since(&counted(&before)), counted(&after));
            prop_assert_eq!(&interval.buckets, &alone.buckets);
            prop_assert_eq!(interval.sum_ns, alone.sum_ns);
        }

        #[test]
        fn several_read_together_are_as_one(
            one in prop::collection::vec(latency(), 0..50),
            other in prop::collection::vec(latency(), 0..50),
        ) {
            let (first, second) = (Histogram::new(), Histogram::new());
            one.iter().for_each(|&ns| first.record(ns, 1));
            other.iter().for_each(|&ns| second.record(ns, 1));
            let together = Histogram::read([&first, &second].into_iter());
            prop_assert_eq!(&together, &counted(&[one, other].concat()));
            first.fold(&second);
            prop_assert_eq!(Histogram::read(std::iter::once(&first)), together);
        }
    }
}
