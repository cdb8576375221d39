//! Statistics as Prometheus reads them: text exposition format 0.0.4. A pure function; [`crate::metrics`] serves it.

use std::fmt::Write;

use crate::stats::{AttachmentStatistics, KINDS, KindStatistics};

/// The media type of [`exposition`].
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds of the exposed histogram, as powers of two of nanoseconds: 1 µs to 69 s. Each is the bound of a bucket that
/// is counted, so that nothing is interpolated.
const LE_BITS: std::ops::RangeInclusive<u32> = 10..=36;

/// All of `statistics`, every series with the volume as label.
pub(crate) fn exposition(statistics: &AttachmentStatistics) -> String {
    let mut page = Page { text: String::with_capacity(32 << 10), volume: statistics.volume_id.to_string() };
    page.by_kind(statistics, "operations_total", "Requests carried out, failed ones included.", |kind| {
        kind.ops
    });
    page.by_kind(statistics, "bytes_total", "Bytes of requests that succeeded.", |kind| kind.bytes);
    page.by_kind(statistics, "errors_total", "Requests that failed.", |kind| kind.errors);
    page.durations(statistics);
    let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
    let of = statistics;
    page.counter(
        "refused_requests_total",
        "Requests answered with an error without being carried out.",
        of.refused_ops,
    );
    page.counter("connections_served_total", "Connections ever served.", of.connections_total);
    page.counter("connections_turned_away_total", "Clients turned away.", of.connections_turned_away);
    page.counter("cipher_bytes_total", "Bytes encrypted or decrypted.", of.cipher_bytes);
    page.counter(
        "cipher_seconds_total",
        "Time in the cipher, in all threads; sampled.",
        seconds(of.cipher_nanoseconds),
    );
    page.counter("cpu_seconds_total", "Processor time of the serving process.", seconds(of.cpu_nanoseconds));
    page.gauge("connections", "Connections served now.", of.connections);
    page.gauge("in_flight_requests", "Requests received and not yet answered.", of.in_flight);
    page.gauge("uptime_seconds", "Time since the volume was attached.", of.uptime_seconds);
    page.text
}

struct Page {
    text: String,
    volume: String,
}

const STRING: &str = "a String takes everything";

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        write!(self.text, "# HELP sealblk_{name} {help}\n# TYPE sealblk_{name} {kind}\n").expect(STRING);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.single("counter", name, help, value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.single("gauge", name, help, value);
    }

    fn single(&mut self, kind: &str, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        writeln!(self.text, "sealblk_{name}{{volume=\"{}\"}} {value}", self.volume).expect(STRING);
    }

    fn by_kind(
        &mut self,
        statistics: &AttachmentStatistics,
        name: &str,
        help: &str,
        value: fn(&KindStatistics) -> u64,
    ) {
        self.family(name, "counter", help);
        for (label, kind) in labelled(statistics) {
            let (volume, value) = (&self.volume, value(kind));
            writeln!(self.text, "sealblk_{name}{{volume=\"{volume}\",kind=\"{label}\"}} {value}")
                .expect(STRING);
        }
    }

    fn durations(&mut self, statistics: &AttachmentStatistics) {
        const NAME: &str = "sealblk_request_duration_seconds";
        self.family(
            "request_duration_seconds",
            "histogram",
            "From a request received to its reply queued; sampled.",
        );
        for (label, kind) in labelled(statistics) {
            let labels = format!("volume=\"{}\",kind=\"{label}\"", self.volume);
            let histogram = &kind.latency_histogram;
            let mut buckets = histogram.buckets.iter().peekable();
            let mut count = 0;
            for bits in LE_BITS {
                while let Some((_, more)) = buckets.next_if(|(up_to_ns, _)| *up_to_ns <= 1 << bits) {
                    count += more;
                }
                let le = (1_u64 << bits) as f64 / 1e9;
                writeln!(self.text, "{NAME}_bucket{{{labels},le=\"{le}\"}} {count}").expect(STRING);
            }
            count += buckets.map(|(_, more)| more).sum::<u64>();
            let sum = histogram.sum_nanoseconds as f64 / 1e9;
            writeln!(self.text, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {count}").expect(STRING);
            writeln!(self.text, "{NAME}_sum{{{labels}}} {sum}").expect(STRING);
            writeln!(self.text, "{NAME}_count{{{labels}}} {count}").expect(STRING);
        }
    }
}

/// Each kind's statistics, with its value of the label `kind`.
fn labelled(statistics: &AttachmentStatistics) -> impl Iterator<Item = (&'static str, &KindStatistics)> {
    use sealblk_nbd::Kind::{BlockStatus, Cache, Flush, Other, Read, Trim, Write, WriteZeroes};
    let label = |kind| match kind {
        Read => "read",
        Write => "write",
        Flush => "flush",
        Trim => "trim",
        WriteZeroes => "write_zeroes",
        BlockStatus => "block_status",
        Cache => "cache",
        Other => "other",
    };
    KINDS.iter().zip(&statistics.kinds).map(move |(kind, counts)| (label(*kind), counts))
}
