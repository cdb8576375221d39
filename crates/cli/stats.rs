//! `sealblk volume stats`: what an attached volume has done since it was attached, or does from second to second.

use std::thread;
use std::time::Duration;

use sealblk_control::{
    AttachmentStatistics, ControlError, KindStatistics, Percentiles, PoolDirectory, VolumeId,
};
use sealblk_nbd::Kind;

use crate::args::StatsArgs;
use crate::exit::Failure;
use crate::output::{Output, fields, table};
use crate::size::show_bytes;
use crate::volume::id;

/// After so many lines the header is written again.
const HEADER_EVERY: u32 = 20;

/// Shows the statistics of one volume, once or again and again. Asks no key service.
pub(crate) fn run(pool: &PoolDirectory, args: &StatsArgs, output: &Output) -> Result<(), Failure> {
    let volume = id(&args.volume)?;
    let statistics = pool.volume_statistics(volume)?;
    if args.watch {
        return watch(pool, volume, statistics, args, output);
    }
    Ok(output.result(&statistics, || show(&statistics))?)
}

fn show(statistics: &AttachmentStatistics) -> String {
    let turned_away = match statistics.connections_turned_away {
        0 => String::new(),
        count => format!(", {count} turned away"),
    };
    let connections =
        format!("{} now, {} in all{turned_away}", statistics.connections, statistics.connections_total);
    let cipher = format!(
        "{}, {:.1} % of {:.2} s of processor time",
        show_bytes(statistics.cipher_bytes),
        statistics.cipher_share * 100.0,
        statistics.cpu_nanoseconds as f64 / 1e9
    );
    let head = fields(&[
        ("VolumeId", statistics.volume_id.to_string()),
        ("Process", statistics.pid.to_string()),
        ("Uptime", format!("{:.1} s", statistics.uptime_seconds)),
        ("Connections", connections),
        ("InFlight", statistics.in_flight.to_string()),
        ("Refused", statistics.refused_ops.to_string()),
        ("Cipher", cipher),
    ]);
    let rows: Vec<Vec<String>> = Kind::ALL.iter().map(|&kind| row(kind, statistics.of(kind))).collect();
    let header = ["KIND", "OPS", "BYTES", "ERRORS", "P50 µs", "P90 µs", "P99 µs", "P99.9 µs", "MAX µs"];
    format!("{head}\n{}", table(&header, &[1, 2, 3, 4, 5, 6, 7, 8], &rows))
}

fn row(kind: Kind, statistics: &KindStatistics) -> Vec<String> {
    let name = match kind {
        Kind::Read => "read",
        Kind::Write => "write",
        Kind::Flush => "flush",
        Kind::Trim => "trim",
        Kind::WriteZeroes => "write zeroes",
        Kind::BlockStatus => "block status",
        Kind::Cache => "cache",
        Kind::Other => "other",
    };
    let counts = [statistics.ops.to_string(), show_bytes(statistics.bytes), statistics.errors.to_string()];
    let at = |value: fn(&Percentiles) -> f64| {
        statistics.latency.as_ref().map_or("-".to_owned(), |latency| microseconds(value(latency)))
    };
    let latencies = [at(|l| l.p50), at(|l| l.p90), at(|l| l.p99), at(|l| l.p999), at(|l| l.max)];
    [name.to_owned()].into_iter().chain(counts).chain(latencies).collect()
}

/// As many digits as are certain.
fn microseconds(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// One line for each interval, until the volume is detached or nobody reads on.
fn watch(
    pool: &PoolDirectory,
    volume: VolumeId,
    mut before: AttachmentStatistics,
    args: &StatsArgs,
    output: &Output,
) -> Result<(), Failure> {
    let mut lines = 0;
    while args.count.is_none_or(|count| lines < count) {
        thread::sleep(args.interval);
        let now = match pool.volume_statistics(volume) {
            Ok(now) => now,
            Err(ControlError::NotAttached { .. } | ControlError::VolumeNotFound { .. }) => {
                output.text_note(&format!("{volume} is not attached any more"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        // Attached anew since: what it has done is what it did since then.
        let interval = now.since(&before).unwrap_or_else(|| now.clone());
        let text = || {
            let header = if lines % HEADER_EVERY == 0 { HEADER } else { "" };
            format!("{header}{}", line(&interval))
        };
        if !output.continuing(&interval, text)? {
            return Ok(());
        }
        before = now;
        lines += 1;
    }
    Ok(())
}

const HEADER: &str = "    READ/s      MB/s    P50 µs    P99 µs   WRITE/s      MB/s    P50 µs    P99 µs   FLUSH/s    ERRORS  INFLIGHT   CLIENTS  CIPHER %\n";

/// An interval's line, in the columns of [`HEADER`].
fn line(interval: &AttachmentStatistics) -> String {
    let seconds = interval.uptime_seconds.max(1e-9);
    let rate = |count: u64| count as f64 / seconds;
    let latency = |kind: Kind, value: fn(&Percentiles) -> f64| {
        interval.of(kind).latency.as_ref().map_or("-".to_owned(), |latency| microseconds(value(latency)))
    };
    let moved = |kind| {
        let statistics = interval.of(kind);
        [
            format!("{:.0}", rate(statistics.ops)),
            format!("{:.1}", rate(statistics.bytes) / 1e6),
            latency(kind, |latency| latency.p50),
            latency(kind, |latency| latency.p99),
        ]
    };
    let errors: u64 = interval.kinds.iter().map(|kind| kind.errors).sum();
    let rest = [
        format!("{:.0}", rate(interval.of(Kind::Flush).ops)),
        (errors + interval.refused_ops).to_string(),
        interval.in_flight.to_string(),
        interval.connections.to_string(),
        format!("{:.1}", interval.cipher_share * 100.0),
    ];
    let columns = moved(Kind::Read).into_iter().chain(moved(Kind::Write)).chain(rest);
    columns.map(|column| format!("{column:>10}")).collect()
}

/// Reads the time between two lines.
pub(crate) fn parse_interval(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "a number of seconds from 0.1 to 3600";
    let seconds: f64 = text.parse().map_err(|_| EXPECTED.to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(EXPECTED.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_seconds_within_reason() {
        assert_eq!(parse_interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "NaN", "inf", "1s", "", "3601"] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_column_has_its_heading() {
        assert_eq!(HEADER.trim_end_matches('\n').chars().count(), 13 * 10);
    }
}
