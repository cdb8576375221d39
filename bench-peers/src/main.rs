//! Measures Sealblk's sector cipher beside AWS-LC, OpenSSL and `xts-mode`, and says which bars hold.
//!
//! Every round runs every case once, for about a millisecond, so that whatever else the machine does meets all
//! cases alike; a case's figure is the median over the rounds. Time is the thread's own CPU time.
//! Before anything is measured, all implementations must agree on the bytes.

mod bars;
mod peers;

use std::time::Duration;

use peers::{AwsLc, OpenSsl, Ours, Peer, XtsMode};
use rustix::time::{ClockId, clock_gettime};
use sealblk_xts::Kernel;

const KIB: usize = 1024;
/// How long one case runs in one direction in one round.
const SLICE: Duration = Duration::from_micros(1000);

/// What is measured: an implementation, a data unit, how many bytes a call gets.
struct Case {
    name: String,
    unit: usize,
    call_bytes: usize,
    peer: Box<dyn Peer>,
    encrypt: Series,
    decrypt: Series,
}

/// Rates of one case in one direction, in bytes a second.
#[derive(Default)]
struct Series {
    calls: usize,
    rates: Vec<f64>,
}

impl Series {
    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}

impl Case {
    fn new(name: &str, unit: usize, call_bytes: usize, peer: impl Peer + 'static) -> Self {
        let (encrypt, decrypt) = (Series::default(), Series::default());
        Self { name: name.to_owned(), unit, call_bytes, peer: Box::new(peer), encrypt, decrypt }
    }

    /// Runs one slice in each direction.
    fn round(&mut self, buffer: &mut [u8]) {
        let (unit, call_bytes) = (self.unit, self.call_bytes);
        let peer = &mut self.peer;
        measure(&mut self.encrypt, call_bytes, || peer.encrypt(unit, &mut buffer[..call_bytes]));
        measure(&mut self.decrypt, call_bytes, || peer.decrypt(unit, &mut buffer[..call_bytes]));
    }
}

/// Calls `work` for about a slice and adds the rate to `series`. The first time finds out how often that is.
fn measure(series: &mut Series, call_bytes: usize, mut work: impl FnMut()) {
    let calls = series.calls.max(1);
    let start = cpu_time();
    (0..calls).for_each(|_| work());
    let taken = cpu_time() - start;
    if taken < SLICE / 2 {
        series.calls = calls * 2;
        return measure(series, call_bytes, work);
    }
    series.rates.push((calls * call_bytes) as f64 / taken.as_secs_f64());
}

/// CPU time of this thread: what others run on the machine does not count.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kernel in Kernel::available() {
        cases.push(Case::new(&format!("sealblk {kernel}"), 512, 64 * KIB, Ours::new(kernel)));
    }
    let fastest = Kernel::fastest();
    for call_bytes in [4 * KIB, 512] {
        cases.push(Case::new(&format!("sealblk {fastest}"), 512, call_bytes, Ours::new(fastest)));
    }
    for unit in [512, 4 * KIB] {
        cases.push(Case::new("aws-lc", unit, 64 * KIB, AwsLc::new()));
        cases.push(Case::new("openssl", unit, 64 * KIB, OpenSsl::new()));
    }
    cases.push(Case::new("xts-mode", 512, 64 * KIB, XtsMode::new()));
    cases
}

/// A comparison of implementations that compute different things would be worth nothing.
fn assert_same_bytes(cases: &mut [Case]) {
    for unit in [512, 4 * KIB] {
        let mut expected: Option<Vec<u8>> = None;
        for case in cases.iter_mut().filter(|case| case.unit == unit && case.call_bytes == 64 * KIB) {
            let plaintext: Vec<u8> = (0..64 * KIB).map(|index| ((index * 31) >> 3) as u8).collect();
            let mut data = plaintext.clone();
            case.peer.encrypt(unit, &mut data);
            assert!(
                expected.get_or_insert_with(|| data.clone()) == &data,
                "{} encrypts differently",
                case.name
            );
            case.peer.decrypt(unit, &mut data);
            assert!(data == plaintext, "{} decrypts differently", case.name);
        }
    }
}

fn print_table(cases: &[Case]) {
    println!(
        "{:<20} {:>9} {:>10} {:>14} {:>14}",
        "implementation", "data unit", "bytes/call", "encrypt GB/s", "decrypt GB/s"
    );
    for case in cases {
        let (encrypt, decrypt) = (case.encrypt.median() / 1e9, case.decrypt.median() / 1e9);
        println!(
            "{:<20} {:>9} {:>10} {encrypt:>14.2} {decrypt:>14.2}",
            case.name, case.unit, case.call_bytes
        );
    }
}

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let json = arguments.next();
    let rounds: usize = arguments.next().map_or(201, |rounds| rounds.parse().expect("a number of rounds"));
    let mut cases = cases();
    assert_same_bytes(&mut cases);
    let mut buffer = vec![0x5a; 64 * KIB];
    cases.iter_mut().for_each(|case| case.round(&mut buffer)); // warm-up, and finds the calls in a slice
    for series in cases.iter_mut().flat_map(|case| [&mut case.encrypt, &mut case.decrypt]) {
        series.rates.clear();
    }
    for _ in 0..rounds {
        cases.iter_mut().for_each(|case| case.round(&mut buffer));
    }
    print_table(&cases);
    let bars = bars::judge(&cases);
    println!();
    bars.iter().for_each(|bar| println!("{bar}"));
    if let Some(path) = json {
        let report = bars::report(&cases, &bars, rounds);
        std::fs::write(&path, format!("{report:#}\n")).expect("the report can be written");
    }
    if bars.iter().all(|bar| bar.holds()) {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
