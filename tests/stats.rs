//! What an attachment says of itself: `volume stats` and the metrics, through the binary with clients that are not ours.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Attachment, Pool, exit, foreign, run};

fn stats(pool: &Pool, volume: &str) -> Value {
    pool.json(&["volume", "stats", volume])
}

/// The counts of one kind of request: operations, bytes, errors.
fn counts(stats: &Value, kind: &str) -> [u64; 3] {
    ["Ops", "Bytes", "Errors"].map(|name| {
        let field = format!("{kind}{name}");
        stats[&field].as_u64().unwrap_or_else(|| panic!("no {field} in {stats}"))
    })
}

/// A known number of everything: 96 writes and 64 reads of 4 KiB, a trim, a zeroing, and CACHE; a read outside.
const SCRIPT: &str = "
import nbd
for i in range(96): h.pwrite(b'\\x55' * 4096, i * 4096)
for i in range(64): h.pread(4096, i * 4096)
h.trim(65536, 0)
h.zero(8192, 131072)
h.flush()
h.flush()
h.set_strict_mode(0)
try:
    h.pread(512, h.get_size())
    raise SystemExit('a read outside succeeded')
except nbd.Error:
    pass
";

#[track_caller]
fn work(attachment: &Attachment) {
    run(foreign("nbdsh").args(["-u", attachment.uri(), "-c", SCRIPT])).ok();
}

/// The attachment's metrics address, as it told on standard error before it was ready.
#[track_caller]
fn metrics_port(attachment: &Attachment) -> u16 {
    let log = attachment.log();
    let address = log.split("metrics at http://127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next());
    address.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no metrics address in {log}"))
}

/// Sends `request` and reads to the end of the stream: the status line and the body.
#[track_caller]
fn ask(mut stream: impl Read + Write, request: &[u8]) -> (String, String) {
    stream.write_all(request).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer to its end");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    assert_eq!(length, Some(body.len().to_string().as_str()), "{head}");
    (head.lines().next().expect("a status line").to_owned(), body.to_owned())
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream
}

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\n\r\n";

/// Every sample of a page, by name and labels as they are written. Strict: what is not exactly the text format 0.0.4 as
/// written by one that declares every family before its samples, fails the test.
#[track_caller]
fn parse(page: &str) -> BTreeMap<String, f64> {
    assert!(page.ends_with('\n'), "the last line has an end");
    let (mut families, mut samples, mut helped) = (BTreeMap::new(), BTreeMap::new(), None);
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').expect("a name and a text");
            assert!(!text.is_empty(), "{line}");
            helped = Some(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(helped, Some(name), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name, kind).is_none(), "{name} is declared twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            let (name, labels) = series.split_once('{').expect("labels");
            let labels = labels.strip_suffix('}').expect("labels end");
            assert!(labels.starts_with("volume=\"vol-"), "{line}");
            for label in labels.split(',') {
                let (key, text) = label.split_once('=').expect("a label");
                assert!(key.chars().all(|char| char.is_ascii_lowercase() || char == '_'), "{line}");
                let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
                assert!(inner.is_some_and(|text| !text.contains(['"', '\\'])), "{line}");
            }
            let part =
                |suffix| name.strip_suffix(suffix).filter(|base| families.get(base) == Some(&"histogram"));
            let family = part("_bucket").or(part("_sum")).or(part("_count")).unwrap_or(name);
            assert_eq!(Some(family), helped, "{line} stands with its family");
            assert!(family.starts_with("sealblk_"), "{line}");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
        }
    }
    samples
}

#[test]
fn counters_equal_what_a_client_did() {
    for encryption in ["--encrypted", "--no-encrypted"] {
        let pool = Pool::new();
        let volume = pool.create(&[encryption, "--size", "4MiB"]);
        let attachment = pool.attach(&volume, &[]);
        work(&attachment);
        let told = stats(&pool, &volume);
        assert_eq!(counts(&told, "Write"), [96, 96 * 4096, 0], "{told}");
        assert_eq!(counts(&told, "Read"), [64, 64 * 4096, 0], "{told}");
        assert_eq!(counts(&told, "Trim"), [1, 65536, 0], "{told}");
        assert_eq!(counts(&told, "WriteZeroes"), [1, 8192, 0], "{told}");
        assert_eq!(counts(&told, "Flush"), [2, 0, 0], "{told}");
        assert_eq!((&told["RefusedOps"], &told["InFlight"]), (&1.into(), &0.into()), "{told}");
        assert_eq!(told["VolumeId"], volume.as_str());
        assert_eq!(told["Pid"], attachment.pid());
        let encrypted = encryption == "--encrypted";
        // The connection may take a moment to end; its last bytes are counted then.
        let wait = Instant::now() + Duration::from_secs(60);
        let ended = std::iter::repeat_with(|| stats(&pool, &volume))
            .find(|told| told["Connections"] == 0 || Instant::now() > wait)
            .expect("it repeats");
        assert_eq!((&ended["Connections"], &ended["ConnectionsTotal"]), (&0.into(), &1.into()), "{ended}");
        let cipher_bytes = if encrypted { (96 + 64) * 4096 } else { 0 };
        assert_eq!(ended["CipherBytes"], cipher_bytes, "{ended}");
        assert_eq!(ended["CipherNanoseconds"].as_u64().expect("a number") > 0, encrypted, "{ended}");
        attachment.terminate();
    }
}

#[test]
fn latencies_are_in_order_and_their_histogram_is_complete() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "4MiB"]);
    let attachment = pool.attach(&volume, &[]);
    work(&attachment);
    let told = stats(&pool, &volume);
    let latency = |name: &str| told["WriteLatency"][name].as_f64().expect("a latency");
    let rising = ["P50", "P90", "P99", "P999", "Max"].map(latency);
    assert!(rising.is_sorted() && rising[0] > 0.0, "{told}");
    assert!(latency("Mean") <= latency("Max"), "{told}");
    let buckets = told["WriteLatencyHistogram"]["Buckets"].as_array().expect("buckets");
    let stand_for: u64 = buckets.iter().map(|bucket| bucket[1].as_u64().expect("a count")).sum();
    // Of a busy lane one in eight is timed, and the last few may be missing.
    assert!((89..=104).contains(&stand_for), "{told}");
    let text = pool.run(&["volume", "stats", &volume]).ok();
    assert!(text.contains("write ") && text.contains("P99.9 µs"), "{text}");
    attachment.terminate();
}

#[test]
fn a_volume_that_is_not_attached_has_no_statistics() {
    let pool = Pool::new();
    let volume = pool.create(&["--no-encrypted", "--size", "1MiB"]);
    for watch in [&[][..], &["--watch"]] {
        pool.run(&[&["volume", "stats", &volume], watch].concat()).refused(exit::WRONG_STATE);
    }
    pool.run(&["volume", "stats", "vol-0123456789abcdef0"]).refused(exit::NOT_FOUND);
    let attachment = pool.attach(&volume, &[]);
    stats(&pool, &volume);
    attachment.kill();
    pool.run(&["volume", "stats", &volume]).refused(exit::WRONG_STATE);
}

#[test]
fn watch_shows_what_happens_while_it_happens_and_ends_with_the_attachment() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "16MiB"]);
    let attachment = pool.attach(&volume, &[]);
    let mut fio = foreign("fio");
    fio.args(["--name=load", "--ioengine=nbd", "--thread", "--rw=randrw", "--bs=4k", "--iodepth=8"]);
    fio.args(["--size=16m", "--time_based", "--runtime=600"]).arg(format!("--uri={}", attachment.uri()));
    let mut load =
        fio.current_dir(pool.root()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("fio");
    let watch = ["--output", "json", "volume", "stats", &volume, "--watch", "--interval", "0.2"];
    let mut watch = pool.command(&watch).stdout(Stdio::piped()).spawn().expect("the binary starts");
    let lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut busy = 0;
    for line in lines.map_while(Result::ok) {
        let interval: Value = serde_json::from_str(&line).expect("one document a line");
        let seconds = interval["UptimeSeconds"].as_f64().expect("a time");
        assert!(seconds > 0.1, "{interval}");
        busy += u32::from(counts(&interval, "Read")[0] > 0 && counts(&interval, "Write")[0] > 0);
        if busy == 3 {
            break;
        }
    }
    assert_eq!(busy, 3, "three intervals with reads and writes in them");
    load.kill().expect("it runs");
    load.wait().expect("it ends");
    // Its reader is gone: it ends, and not with an error.
    let status = support::wait_within(&mut watch, Duration::from_secs(60)).expect("it ends");
    assert!(status.success(), "{status}");
    let text = pool.run(&["volume", "stats", &volume, "--watch", "--interval", "0.1", "--count", "2"]).ok();
    assert_eq!(text.lines().count(), 3, "a header and two lines: {text}");

    let watch = ["volume", "stats", &volume, "--watch", "--interval", "0.1"];
    let mut watch =
        pool.command(&watch).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    attachment.terminate();
    let status = support::wait_within(&mut watch, Duration::from_secs(60)).expect("it ends");
    assert!(matches!(status.code(), Some(0 | exit::WRONG_STATE)), "{status}");
}

#[test]
fn metrics_are_prometheus_text_and_agree_with_the_statistics() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "4MiB"]);
    let attachment = pool.attach(&volume, &["--metrics", "127.0.0.1:0"]);
    work(&attachment);
    let (status, page) = ask(connect(metrics_port(&attachment)), SCRAPE);
    assert_eq!(status, "HTTP/1.1 200 OK");
    let samples = parse(&page);
    let sample = |name: &str, labels: &str| {
        let series = format!("sealblk_{name}{{volume=\"{volume}\"{labels}}}");
        *samples.get(&series).unwrap_or_else(|| panic!("no {series} in {page}"))
    };
    assert_eq!(sample("operations_total", ",kind=\"write\""), 96.0);
    assert_eq!(sample("bytes_total", ",kind=\"read\""), 64.0 * 4096.0);
    assert_eq!(sample("operations_total", ",kind=\"write_zeroes\""), 1.0);
    assert_eq!(sample("refused_requests_total", ""), 1.0);
    assert_eq!(sample("connections_served_total", ""), 1.0);
    let told = stats(&pool, &volume);
    for (kind, label) in [("Read", "read"), ("Write", "write"), ("Flush", "flush")] {
        let name = "request_duration_seconds";
        let prefix = format!("sealblk_{name}_bucket{{volume=\"{volume}\",kind=\"{label}\",le=\"");
        let mut buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter_map(|(series, count)| {
                let le = series.strip_prefix(&prefix)?.strip_suffix("\"}").expect("le comes last");
                Some((le.replace("+Inf", "inf").parse().expect("a bound"), *count))
            })
            .collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(buckets.len() > 20 && buckets.is_sorted_by(|one, other| one.1 <= other.1), "{buckets:?}");
        let count = sample(&format!("{name}_count"), &format!(",kind=\"{label}\""));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)));
        let histogram =
            told[format!("{kind}LatencyHistogram")]["Buckets"].as_array().expect("buckets").iter();
        assert_eq!(
            count,
            histogram.map(|bucket| bucket[1].as_f64().expect("a count")).sum::<f64>(),
            "{kind}"
        );
        assert!(sample(&format!("{name}_sum"), &format!(",kind=\"{label}\"")) > 0.0);
    }
    attachment.terminate();
}

#[test]
fn metrics_at_a_unix_socket_are_for_their_owner_and_gone_with_the_attachment() {
    let pool = Pool::new();
    let volume = pool.create(&["--no-encrypted", "--size", "1MiB"]);
    let path = pool.root().join("m.sock");
    let attachment = pool.attach(&volume, &["--metrics", &format!("unix:{}", path.display())]);
    let mode = std::fs::metadata(&path).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (status, page) = ask(UnixStream::connect(&path).expect("it listens"), SCRAPE);
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(parse(&page).len() > 100, "{page}");
    attachment.terminate();
    assert!(!path.exists());
}

#[test]
fn metrics_off_loopback_are_refused_and_nothing_is_attached() {
    let pool = Pool::new();
    let volume = pool.create(&["--no-encrypted", "--size", "1MiB"]);
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.7:9100", "localhost:9100", "unix:"] {
        pool.run(&["volume", "attach", &volume, "--metrics", address]).refused(exit::USAGE);
    }
    assert_eq!(pool.describe(&volume)["State"], "available");
}

#[test]
fn garbage_at_the_metrics_port_is_refused_in_bounded_time_and_disturbs_nobody() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let attachment = pool.attach(&volume, &["--metrics", "127.0.0.1:0"]);
    let port = metrics_port(&attachment);
    let status = |request: &[u8]| ask(connect(port), request).0;
    assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
    assert_eq!(status(b"POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\r\n\r\n"), "HTTP/1.1 400 Bad Request");
    assert_eq!(status(&[b'a'; 8192]), "HTTP/1.1 431 Request Header Fields Too Large");
    // Says nothing: given up after two seconds, and whoever comes meanwhile waits no longer than that.
    let silent = connect(port);
    assert_eq!(status(SCRAPE), "HTTP/1.1 200 OK");
    drop(silent);
    // An endless request is cut, whether or not its sender reads.
    let mut endless = connect(port);
    while endless.write_all(&[b'x'; 65536]).is_ok() {}
    work(&attachment);
    assert_eq!(counts(&stats(&pool, &volume), "Read")[0], 64);
    attachment.terminate();
}
