//! What encryption costs: the same work on an encrypted and on a plain volume, in turn, so that whatever else
//! the machine does meets both.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;

use super::load::{Client, Limit, LoadError, Measured, Work};
use super::pinning;
use super::server::Volumes;
use super::{BenchError, median};

/// Each figure is the median of so many.
const ROUNDS: usize = 5;
/// The share of the time that latencies get.
const LATENCY_SHARE: f64 = 0.2;

/// The rows of the comparison.
const WORKS: [(&str, Work); 4] = [
    ("4 KiB random read, 32 deep", Work { writes: false, random: true, block_bytes: 4 << 10, depth: 32 }),
    ("4 KiB random write, 32 deep", Work { writes: true, random: true, block_bytes: 4 << 10, depth: 32 }),
    ("128 KiB read, 16 deep", Work { writes: false, random: false, block_bytes: 128 << 10, depth: 16 }),
    ("128 KiB write, 16 deep", Work { writes: true, random: false, block_bytes: 128 << 10, depth: 16 }),
];
const ONE_AT_A_TIME: Work = Work { writes: false, random: true, block_bytes: 4 << 10, depth: 1 };

/// One row: the same work on both volumes.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Tax {
    /// What was done, for people.
    pub(crate) work: &'static str,
    /// Bytes of one request.
    pub(crate) block_bytes: usize,
    /// Requests in flight.
    pub(crate) depth: usize,
    /// On the encrypted volume.
    pub(crate) encrypted: Throughput,
    /// On the plain volume.
    pub(crate) plain: Throughput,
    /// Encrypted by plain: the median of the rounds' ratios.
    pub(crate) ratio: f64,
}

/// How much got done in a second.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Throughput {
    /// Requests.
    pub(crate) iops: f64,
    /// Bytes.
    pub(crate) bytes_per_second: f64,
}

/// How long one 4 KiB read takes when it is the only one.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Latency {
    /// Whether client and server share one processor (1) or have one each (2).
    pub(crate) processors: usize,
    /// On the encrypted volume.
    pub(crate) encrypted: Percentiles,
    /// On the plain volume.
    pub(crate) plain: Percentiles,
}

/// Of a round's requests; medians of the rounds.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Percentiles {
    /// Half of the requests took at most so many microseconds.
    pub(crate) p50_microseconds: f64,
    /// All but one in a hundred.
    pub(crate) p99_microseconds: f64,
}

/// Measures everything on volumes that are being served, in about `time` after they are filled.
pub(crate) fn measure(
    volumes: &Volumes<'_>,
    time: Duration,
    interrupted: &AtomicBool,
) -> Result<(Vec<Tax>, Vec<Latency>), BenchError> {
    let mut pair = Pair {
        encrypted: Client::connect(&volumes.socket(true), interrupted)?,
        plain: Client::connect(&volumes.socket(false), interrupted)?,
    };
    pair.encrypted.fill()?;
    pair.plain.fill()?;
    let usable = pinning::usable()?;
    let share = |parts: usize| 1.0 / (parts * 2 * ROUNDS) as f64;
    let slice = time.mul_f64((1.0 - LATENCY_SHARE) * share(WORKS.len()));
    let latency_slice = time.mul_f64(LATENCY_SHARE * share(usable));

    let mut rates: [Vec<(f64, f64)>; WORKS.len()] = Default::default();
    let mut latencies = vec![Vec::new(); usable];
    for round in 0..ROUNDS {
        for ((_, work), rates) in WORKS.iter().zip(&mut rates) {
            rates.push(pair.each(round, *work, slice, &iops)?);
        }
        for (others, latencies) in latencies.iter_mut().enumerate() {
            let _pinned = pinning::pin(others + 1)?;
            latencies.push(pair.each(round, ONE_AT_A_TIME, latency_slice, &percentiles)?);
        }
    }
    let taxes = WORKS.iter().zip(rates).map(|((name, work), rates)| tax(name, *work, &rates));
    let latencies = latencies.iter().enumerate().map(|(others, rounds)| latency(others + 1, rounds));
    Ok((taxes.collect(), latencies.collect()))
}

/// A client of each volume.
struct Pair<'a> {
    encrypted: Client<'a>,
    plain: Client<'a>,
}

impl Pair<'_> {
    /// Does the work on both, in an order that changes from round to round: on the encrypted one, on the plain one.
    fn each<T>(
        &mut self,
        round: usize,
        work: Work,
        slice: Duration,
        figure: &impl Fn(Measured) -> T,
    ) -> Result<(T, T), LoadError> {
        let run = |client: &mut Client<'_>| client.run(work, Limit::Time(slice)).map(figure);
        if round.is_multiple_of(2) {
            let encrypted = run(&mut self.encrypted)?;
            Ok((encrypted, run(&mut self.plain)?))
        } else {
            let plain = run(&mut self.plain)?;
            Ok((run(&mut self.encrypted)?, plain))
        }
    }
}

fn iops(measured: Measured) -> f64 {
    measured.requests as f64 / measured.elapsed.as_secs_f64()
}

/// The 50th and the 99th percentile, in microseconds.
fn percentiles(mut measured: Measured) -> (f64, f64) {
    measured.latencies.sort_unstable();
    let last = measured.latencies.len().saturating_sub(1);
    let at = |hundredths: usize| {
        let latency = measured.latencies.get(last * hundredths / 100).copied();
        latency.unwrap_or_default().as_secs_f64() * 1e6
    };
    (at(50), at(99))
}

fn tax(work_name: &'static str, work: Work, rounds: &[(f64, f64)]) -> Tax {
    let throughput = |iops: f64| Throughput { iops, bytes_per_second: iops * work.block_bytes as f64 };
    Tax {
        work: work_name,
        block_bytes: work.block_bytes,
        depth: work.depth,
        encrypted: throughput(median(rounds.iter().map(|round| round.0).collect())),
        plain: throughput(median(rounds.iter().map(|round| round.1).collect())),
        ratio: median(rounds.iter().map(|(encrypted, plain)| encrypted / plain).collect()),
    }
}

/// A round's percentiles on the encrypted and on the plain volume.
type LatencyRound = ((f64, f64), (f64, f64));

fn latency(processors: usize, rounds: &[LatencyRound]) -> Latency {
    let of = |figure: fn(&LatencyRound) -> f64| median(rounds.iter().map(figure).collect());
    Latency {
        processors,
        encrypted: Percentiles { p50_microseconds: of(|r| r.0.0), p99_microseconds: of(|r| r.0.1) },
        plain: Percentiles { p50_microseconds: of(|r| r.1.0), p99_microseconds: of(|r| r.1.1) },
    }
}
