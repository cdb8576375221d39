//! What an attachment has done since it began: the document that `sealblk volume stats` shows, that the control
//! socket answers with, and that the metrics are made from.
//!
//! Read from counters that the data path writes anyhow: asking stops nothing, takes no lock of the data path and
//! calls no KMS. Latencies are defined in `sealblk_nbd`'s `stats`.

use std::array;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sealblk_nbd::{Bucket, Kind, KindCounts, Latencies, Statistics};
use sealblk_record::wait_until_free;
use sealblk_volume::{CipherStatistics, VolumeId};
use serde::{Deserialize, Serialize};

use crate::attachment::{AttachmentRecord, AttachmentState};
use crate::conversation::{StatsAnswer, ask_for_statistics};
use crate::error::ControlError;
use crate::pool::PoolDirectory;

/// An answer takes microseconds; a process that is stopped or starved never answers.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The kinds of requests, in the order in which they are told.
pub(crate) const KINDS: [Kind; 8] = Kind::ALL;

/// One attachment's counters, at one moment. Serialises flat, kinds as prefixes: `ReadOps`, `WriteZeroesErrors`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttachmentStatistics {
    /// The volume.
    pub volume_id: VolumeId,
    /// The process that serves it.
    pub pid: u32,
    /// Since when it serves, and all this is counted.
    pub uptime_seconds: f64,
    /// Connections that are served now.
    pub connections: u64,
    /// Connections that were ever served.
    pub connections_total: u64,
    /// Clients that were turned away.
    pub connections_turned_away: u64,
    /// Requests received whole and not yet answered.
    pub in_flight: u64,
    /// Requests answered with an error without being carried out.
    pub refused_ops: u64,
    /// Bytes encrypted or decrypted.
    pub cipher_bytes: u64,
    /// Time spent doing so, in all threads together; an estimate by samples.
    pub cipher_nanoseconds: u64,
    /// Processor time of the process, in all threads together.
    pub cpu_nanoseconds: u64,
    /// The cipher's part of the processor time, 0 to 1.
    pub cipher_share: f64,
    /// By kind of request.
    #[serde(flatten, with = "by_kind")]
    pub kinds: [KindStatistics; KINDS.len()],
}

/// The counters of one kind of request.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KindStatistics {
    /// Requests that were carried out, those that failed included.
    pub ops: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Those that failed.
    pub errors: u64,
    /// What most of them took; `None` if there were none.
    pub latency: Option<Percentiles>,
    /// What each of them took, to the bucket.
    pub latency_histogram: LatencyHistogram,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Percentiles {
    /// Half of the requests took at most this.
    pub p50: f64,
    /// 90 of 100 did.
    pub p90: f64,
    /// 99 of 100 did.
    pub p99: f64,
    /// 999 of 1000 did.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// The arithmetic mean.
    pub mean: f64,
}

/// A histogram as it is written in JSON.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LatencyHistogram {
    /// Upper bound in nanoseconds, and how many requests are in the bucket; empty ones are left out. The last
    /// bucket has no bound: 2^64 - 1.
    pub buckets: Vec<(u64, u64)>,
    /// The sum of all latencies.
    pub sum_nanoseconds: u64,
    /// The longest.
    pub max_nanoseconds: u64,
}

impl LatencyHistogram {
    fn latencies(&self) -> Latencies {
        let bucket = |&(up_to_ns, count): &(u64, u64)| Bucket { up_to_ns, count };
        Latencies {
            buckets: self.buckets.iter().map(bucket).collect(),
            sum_ns: self.sum_nanoseconds,
            max_ns: self.max_nanoseconds,
        }
    }

    fn of(latencies: &Latencies) -> Self {
        Self {
            buckets: latencies.buckets.iter().map(|bucket| (bucket.up_to_ns, bucket.count)).collect(),
            sum_nanoseconds: latencies.sum_ns,
            max_nanoseconds: latencies.max_ns,
        }
    }
}

impl Percentiles {
    fn of(latencies: &Latencies) -> Option<Self> {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let at = |share| latencies.percentile_ns(share).map(microseconds);
        Some(Self {
            p50: at(0.5)?,
            p90: at(0.9)?,
            p99: at(0.99)?,
            p999: at(0.999)?,
            max: microseconds(latencies.max_ns),
            mean: microseconds(latencies.sum_ns) / latencies.count() as f64,
        })
    }
}

impl KindStatistics {
    fn of(counts: &KindCounts) -> Self {
        Self {
            ops: counts.operations,
            bytes: counts.bytes,
            errors: counts.errors,
            latency: Percentiles::of(&counts.latencies),
            latency_histogram: LatencyHistogram::of(&counts.latencies),
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        let latencies = self.latency_histogram.latencies().since(&earlier.latency_histogram.latencies());
        Self {
            ops: self.ops.saturating_sub(earlier.ops),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            errors: self.errors.saturating_sub(earlier.errors),
            latency: Percentiles::of(&latencies),
            latency_histogram: LatencyHistogram::of(&latencies),
        }
    }
}

impl AttachmentStatistics {
    /// What one kind of request did.
    pub fn of(&self, kind: Kind) -> &KindStatistics {
        let at = KINDS.iter().position(|one| *one == kind).expect("every kind is among them");
        &self.kinds[at]
    }

    /// What was counted since `earlier`; gauges as they are now, and `uptime_seconds` the time between. `None` if
    /// `earlier` is of another attachment.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        if self.pid != earlier.pid || self.uptime_seconds < earlier.uptime_seconds {
            return None;
        }
        let cipher_nanoseconds = self.cipher_nanoseconds.saturating_sub(earlier.cipher_nanoseconds);
        let cpu_nanoseconds = self.cpu_nanoseconds.saturating_sub(earlier.cpu_nanoseconds);
        Some(Self {
            uptime_seconds: self.uptime_seconds - earlier.uptime_seconds,
            connections_total: self.connections_total.saturating_sub(earlier.connections_total),
            connections_turned_away: self
                .connections_turned_away
                .saturating_sub(earlier.connections_turned_away),
            refused_ops: self.refused_ops.saturating_sub(earlier.refused_ops),
            cipher_bytes: self.cipher_bytes.saturating_sub(earlier.cipher_bytes),
            cipher_nanoseconds,
            cpu_nanoseconds,
            cipher_share: share(cipher_nanoseconds, cpu_nanoseconds),
            kinds: array::from_fn(|kind| self.kinds[kind].since(&earlier.kinds[kind])),
            ..*self
        })
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) }
}

/// `kinds` in JSON: the fields of each, with its name before them.
mod by_kind {
    use serde::de::Error as _;
    use serde::ser::{Error as _, SerializeMap};
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    use super::{KINDS, KindStatistics};

    pub(super) fn serialize<S: Serializer>(
        kinds: &[KindStatistics; KINDS.len()],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (kind, statistics) in KINDS.iter().zip(kinds) {
            let Value::Object(fields) = serde_json::to_value(statistics).map_err(S::Error::custom)? else {
                return Err(S::Error::custom("a struct is written as an object"));
            };
            for (name, value) in fields {
                map.serialize_entry(&format!("{kind:?}{name}"), &value)?;
            }
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[KindStatistics; KINDS.len()], D::Error> {
        let all = Map::<String, Value>::deserialize(deserializer)?;
        let mut kinds = <[KindStatistics; KINDS.len()]>::default();
        for (kind, statistics) in KINDS.iter().zip(&mut kinds) {
            let prefix = format!("{kind:?}");
            let of_kind = |(name, value): (&String, &Value)| {
                Some((name.strip_prefix(&prefix)?.to_owned(), value.clone()))
            };
            let fields: Map<String, Value> = all.iter().filter_map(of_kind).collect();
            *statistics = serde_json::from_value(Value::Object(fields)).map_err(D::Error::custom)?;
        }
        Ok(kinds)
    }
}

/// Where a serving process reads its own statistics.
#[derive(Clone)]
pub(crate) struct StatisticsSource {
    volume_id: VolumeId,
    server: Arc<Statistics>,
    cipher: CipherStatistics,
    cpu_nanoseconds_before: u64,
}

impl StatisticsSource {
    /// Of a server that is about to begin.
    pub(crate) fn new(volume_id: VolumeId, server: Arc<Statistics>, cipher: CipherStatistics) -> Self {
        Self { volume_id, server, cipher, cpu_nanoseconds_before: cpu_nanoseconds() }
    }

    /// The statistics of this moment.
    pub(crate) fn read(&self) -> AttachmentStatistics {
        let counts = self.server.read();
        let cipher_nanoseconds = self.cipher.nanoseconds();
        let cpu_nanoseconds = cpu_nanoseconds().saturating_sub(self.cpu_nanoseconds_before);
        AttachmentStatistics {
            volume_id: self.volume_id,
            pid: std::process::id(),
            uptime_seconds: counts.uptime.as_secs_f64(),
            connections: counts.connections,
            connections_total: counts.connections_total,
            connections_turned_away: counts.connections_turned_away,
            in_flight: counts.in_flight,
            refused_ops: counts.refused,
            cipher_bytes: self.cipher.bytes(),
            cipher_nanoseconds,
            cpu_nanoseconds,
            cipher_share: share(cipher_nanoseconds, cpu_nanoseconds),
            kinds: array::from_fn(|kind| KindStatistics::of(&counts.kinds[kind])),
        }
    }
}

/// Processor time of this process so far.
fn cpu_nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

impl PoolDirectory {
    /// What the process that serves a volume has counted. `NotAttached` if none does. Needs no key service.
    pub fn volume_statistics(&self, id: VolumeId) -> Result<AttachmentStatistics, ControlError> {
        self.require(id)?;
        let directory = self.volume(id);
        let not_attached = || ControlError::NotAttached { id };
        // What a killed server left describes nothing: the lock is what counts.
        if wait_until_free(directory.lock_path(), Duration::ZERO)? {
            return Err(not_attached());
        }
        let holder = AttachmentRecord::read(&directory)?.ok_or_else(not_attached)?;
        let serves = holder.state == AttachmentState::Attached;
        let socket = holder.control_socket.filter(|_| serves).ok_or_else(not_attached)?;
        match ask_for_statistics(&socket, ANSWER_TIME) {
            Ok(StatsAnswer::Statistics(statistics)) => Ok(*statistics),
            // It has just ended.
            Ok(StatsAnswer::Gone) => Err(not_attached()),
            Ok(StatsAnswer::Error(message)) => {
                Err(ControlError::NoStatistics { id, pid: holder.pid, source: io::Error::other(message) })
            }
            Err(source) => Err(ControlError::NoStatistics { id, pid: holder.pid, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> StatisticsSource {
        let id = "vol-0123456789abcdef0".parse().expect("an id");
        StatisticsSource::new(id, Arc::default(), CipherStatistics::default())
    }

    fn kind(ops: u64, buckets: &[(u64, u64)]) -> KindStatistics {
        let histogram = LatencyHistogram {
            buckets: buckets.to_vec(),
            sum_nanoseconds: buckets.iter().map(|(bound, count)| bound * count).sum(),
            max_nanoseconds: buckets.last().map_or(0, |(bound, _)| *bound),
        };
        let latency = Percentiles::of(&histogram.latencies());
        KindStatistics { ops, bytes: ops * 512, errors: 0, latency, latency_histogram: histogram }
    }

    #[test]
    fn a_document_is_flat_and_comes_back_as_it_was() {
        let mut statistics = source().read();
        statistics.kinds[1] = kind(3, &[(2048, 1), (4096, 2)]);
        statistics.kinds[4] = kind(7, &[(1024, 7)]);
        let document = serde_json::to_value(&statistics).expect("JSON");
        assert_eq!((&document["WriteOps"], &document["WriteZeroesOps"]), (&3.into(), &7.into()));
        assert_eq!(document["WriteLatency"]["P99"], 4.096);
        assert!(document["ReadLatency"].is_null());
        let read: AttachmentStatistics = serde_json::from_value(document).expect("a document");
        assert_eq!(read, statistics);
    }

    #[test]
    fn an_interval_is_what_came_between_and_gauges_as_they_are() {
        let mut earlier = source().read();
        earlier.kinds[0] = kind(10, &[(2048, 10)]);
        let mut later =
            AttachmentStatistics { uptime_seconds: earlier.uptime_seconds + 2.0, ..earlier.clone() };
        later.kinds[0] = kind(14, &[(2048, 12), (8192, 2)]);
        (later.in_flight, later.cipher_nanoseconds, later.cpu_nanoseconds) =
            (3, 25, earlier.cpu_nanoseconds + 100);
        let interval = later.since(&earlier).expect("the same attachment");
        let reads = interval.of(Kind::Read);
        assert_eq!((reads.ops, reads.bytes), (4, 4 * 512));
        let latency = reads.latency.expect("there were reads");
        assert_eq!((latency.p50, latency.p99, latency.mean), (2.048, 8.192, 5.12));
        assert_eq!((interval.in_flight, interval.cipher_share), (3, 0.25));
        // Both uptimes are a clock's, so their difference is rounded.
        assert!((interval.uptime_seconds - 2.0).abs() < 1e-6, "{}", interval.uptime_seconds);
    }

    #[test]
    fn between_two_attachments_there_is_no_interval() {
        let earlier = source().read();
        assert!(AttachmentStatistics { pid: earlier.pid + 1, ..earlier.clone() }.since(&earlier).is_none());
    }
}
