//! `sealblk bench` measures and cleans up after itself; the charts of scripts/bench are well-formed. No test here
//! says how fast anything is: that depends on what else the machine does.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{foreign, run, wait_within};

/// `sealblk bench` with a directory of its own and nothing in the environment, as on a fresh machine.
fn bench(directory: &Path, size: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.env_clear().args(["bench", "--size", size, "--directory"]).arg(directory);
    command.args(arguments);
    command
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("the directory can be listed").count()
}

/// The number that `path` leads to; it must be above zero and finite.
#[track_caller]
fn positive(value: &Value, path: &str) -> f64 {
    let number =
        value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {value}"));
    assert!(number.is_finite() && number > 0.0, "{path} is {number}");
    number
}

#[test]
fn a_bench_of_one_second_has_every_promised_figure_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = run(&mut bench(dir.path(), "8MiB", &["--seconds", "1", "--output", "json"])).ok();
    let document: Value = serde_json::from_str(&text).expect("one document");
    assert_eq!(entries(dir.path()), 0, "what it made is gone");

    for name in ["Processor", "Kernel", "Sealblk", "CipherKernel"] {
        assert!(document["Machine"][name].as_str().is_some_and(|text| !text.is_empty()), "{name}");
    }
    let processors = positive(&document, "/Machine/Processors");
    assert_eq!(document["Seconds"], 1);
    assert_eq!(document["VolumeBytes"], 8 << 20);
    assert_eq!(document["Direct"], false);

    let rates = document["Cipher"].as_array().expect("kernels");
    let mut measured = BTreeSet::new();
    for rate in rates {
        positive(rate, "/EncryptBytesPerSecond");
        positive(rate, "/DecryptBytesPerSecond");
        let size = rate["CallBytes"].as_u64().expect("a size");
        measured.insert((rate["Kernel"].as_str().expect("a name").to_owned(), size));
    }
    let expected = sealblk_xts::Kernel::available()
        .flat_map(|kernel| [512, 4096, 65536].map(|size| (kernel.name().to_owned(), size)));
    assert_eq!(measured, expected.collect(), "every kernel of this processor, at every size");

    let works = document["Tax"].as_array().expect("rows");
    let shapes: Vec<_> =
        works.iter().map(|row| (row["BlockBytes"].as_u64(), row["Depth"].as_u64())).collect();
    let small = (Some(4096), Some(32));
    let large = (Some(131_072), Some(16));
    assert_eq!(shapes, [small, small, large, large]);
    for row in works {
        positive(row, "/Ratio");
        for volume in ["Encrypted", "Plain"] {
            let iops = positive(row, &format!("/{volume}/Iops"));
            let bytes = positive(row, &format!("/{volume}/BytesPerSecond"));
            let block = row["BlockBytes"].as_f64().expect("a size");
            assert!((bytes / iops / block - 1.0).abs() < 1e-6, "bytes are requests times their size: {row}");
        }
    }

    let latencies = document["Latency"].as_array().expect("rows");
    let counts: Vec<_> = latencies.iter().filter_map(|row| row["Processors"].as_u64()).collect();
    assert_eq!(counts, if processors > 1.0 { vec![1, 2] } else { vec![1] });
    for row in latencies {
        for volume in ["Encrypted", "Plain"] {
            let half = positive(row, &format!("/{volume}/P50Microseconds"));
            assert!(positive(row, &format!("/{volume}/P99Microseconds")) >= half, "{row}");
        }
    }
}

#[test]
fn an_interrupted_bench_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = bench(dir.path(), "8MiB", &["--seconds", "600"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut notes = BufReader::new(child.stderr.take().expect("piped"));
    let mut note = String::new();
    notes.read_line(&mut note).expect("a line");
    assert!(note.starts_with("measuring"), "{note}");
    assert_eq!(entries(dir.path()), 1, "it is at work");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it lives");
    let status = wait_within(&mut child, std::time::Duration::from_secs(60)).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let (mut figures, mut errors) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut figures).expect("text");
    notes.read_to_string(&mut errors).expect("text");
    assert_eq!(figures, "", "what was not measured to the end is not shown");
    assert!(errors.contains("interrupted"), "{errors}");
    assert_eq!(entries(dir.path()), 0, "what it made is gone");
}

#[test]
fn volumes_that_do_not_fit_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let refused = run(&mut bench(dir.path(), "32TiB", &[])).refused(support::exit::FAILED);
    assert!(refused.contains("--size"), "{refused}");
    assert_eq!(entries(dir.path()), 0);
}

/// Whether `text` is XML whose elements are all closed, by Python's parser; the names of its elements.
fn elements(path: &Path) -> Vec<String> {
    let program = "import sys, xml.etree.ElementTree as tree\n\
                   print('\\n'.join(one.tag.rpartition('}')[2] for one in tree.parse(sys.argv[1]).iter()))";
    let names = run(foreign("python3").args(["-c", program]).arg(path)).ok();
    names.lines().map(str::to_owned).collect()
}

#[test]
fn charts_are_well_formed_and_show_every_server_of_the_sample() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut draw = foreign("python3");
    draw.arg(root.join("scripts/bench-chart")).arg(root.join("tests/bench/sample.json")).arg(dir.path());
    let drawn = run(&mut draw).ok();
    let mut charts: Vec<_> = drawn.lines().filter_map(|line| Path::new(line).file_name()).collect();
    charts.sort_unstable();
    assert_eq!(charts, ["cipher.svg", "connections.svg", "depth.svg", "disk.svg", "size.svg", "tmpfs.svg"]);
    for chart in charts {
        let path = dir.path().join(chart);
        let names = elements(&path);
        assert_eq!(names.first().map(String::as_str), Some("svg"), "{chart:?}");
        assert!(names.iter().filter(|name| *name == "text").count() > 5, "{chart:?} has its labels");
        let shape =
            if ["depth.svg", "size.svg"].iter().any(|lines| chart == *lines) { "polyline" } else { "rect" };
        assert!(names.iter().filter(|name| *name == shape).count() > 5, "{chart:?} shows figures");
        let text = std::fs::read_to_string(&path).expect("an SVG file");
        assert!(!text.contains("NaN") && !text.contains("inf\""), "{chart:?} has a place for everything");
        if chart != "cipher.svg" {
            assert!(
                text.contains("sealblk, encrypted") && text.contains("sealblk, not encrypted"),
                "{chart:?}"
            );
        }
    }
}
