//! What the cipher has to reach, and whether it does.

use std::fmt;

use sealblk_xts::Kernel;
use serde_json::{Value, json};

use crate::{Case, KIB};

/// One thing that must hold: a ratio or a rate, at least so much, in both directions.
pub struct Bar {
    what: &'static str,
    at_least: f64,
    encrypt: f64,
    decrypt: f64,
}

impl Bar {
    pub fn holds(&self) -> bool {
        self.encrypt >= self.at_least && self.decrypt >= self.at_least
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds() { "holds" } else { "MISSED" };
        let Self { what, at_least, encrypt, decrypt } = self;
        write!(f, "{verdict:<6} {what}: encrypt {encrypt:.2}, decrypt {decrypt:.2} (at least {at_least})")
    }
}

/// Medians of a case: encrypt, decrypt.
fn medians(cases: &[Case], name: &str, unit: usize, call_bytes: usize) -> (f64, f64) {
    let mut cases = cases.iter();
    let case = cases
        .find(|case| case.name == name && case.unit == unit && case.call_bytes == call_bytes)
        .expect("a case that is measured");
    (case.encrypt.median(), case.decrypt.median())
}

/// All bars, for the fastest kernel with 512-byte data units.
pub fn judge(cases: &[Case]) -> Vec<Bar> {
    let fastest = format!("sealblk {}", Kernel::fastest());
    let ours = medians(cases, &fastest, 512, 64 * KIB);
    let ratio = |what, at_least, a: (f64, f64), b: (f64, f64)| Bar {
        what,
        at_least,
        encrypt: a.0 / b.0,
        decrypt: a.1 / b.1,
    };
    let peer = |name, unit| medians(cases, name, unit, 64 * KIB);
    vec![
        ratio("of aws-lc with 4096-byte data units", 0.9, ours, peer("aws-lc", 4 * KIB)),
        ratio("times aws-lc with 512-byte data units", 1.5, ours, peer("aws-lc", 512)),
        ratio("times xts-mode", 30.0, ours, peer("xts-mode", 512)),
        ratio("times xts-mode, portable kernel", 10.0, peer("sealblk portable", 512), peer("xts-mode", 512)),
        ratio("calls of 4 KiB, of the rate of 64 KiB", 0.85, medians(cases, &fastest, 512, 4 * KIB), ours),
        ratio("calls of one sector, in GB/s", 4.0, medians(cases, &fastest, 512, 512), (1e9, 1e9)),
        // AES takes the same time in both directions, so what decryption is slower by is at most the zero test.
        ratio("decryption with the zero test, of encryption", 0.97, (ours.1, ours.1), (ours.0, ours.0)),
    ]
}

/// The whole run as one JSON document: rates in bytes a second.
pub fn report(cases: &[Case], bars: &[Bar], rounds: usize) -> Value {
    json!({
        "processor": processor(),
        "rounds": rounds,
        "cases": cases.iter().map(|case| json!({
            "implementation": case.name,
            "data_unit_bytes": case.unit,
            "call_bytes": case.call_bytes,
            "encrypt_bytes_per_second": case.encrypt.median().round(),
            "decrypt_bytes_per_second": case.decrypt.median().round(),
        })).collect::<Vec<_>>(),
        "bars": bars.iter().map(|bar| json!({
            "bar": bar.what,
            "at_least": bar.at_least,
            "encrypt": bar.encrypt,
            "decrypt": bar.decrypt,
            "holds": bar.holds(),
        })).collect::<Vec<_>>(),
    })
}

/// What the kernel calls the processor.
fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(name, _)| name.trim() == "model name")
        .map_or_else(String::new, |(_, model)| model.trim().to_owned())
}
