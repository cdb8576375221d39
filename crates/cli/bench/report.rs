//! The result of `sealblk bench`: a document for programs, tables for people.

use std::path::PathBuf;

use serde::Serialize;

use super::cipher::{CALL_BYTES, CipherRate};
use super::machine::Machine;
use super::tax::{Latency, Percentiles, Tax, Throughput};
use crate::args::BenchArgs;
use crate::output::table;
use crate::size::show_bytes;

/// Everything that was measured (docs/CLI.md).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Report {
    machine: Machine,
    seconds: u32,
    volume_bytes: u64,
    /// `null`: memory.
    directory: Option<PathBuf>,
    direct: bool,
    cipher: Vec<CipherRate>,
    tax: Vec<Tax>,
    latency: Vec<Latency>,
}

impl Report {
    /// The figures of one run.
    pub(crate) fn new(
        args: &BenchArgs,
        machine: Machine,
        cipher: Vec<CipherRate>,
        tax: Vec<Tax>,
        latency: Vec<Latency>,
    ) -> Self {
        Self {
            machine,
            seconds: args.seconds,
            volume_bytes: args.size,
            directory: args.directory.clone(),
            direct: args.direct,
            cipher,
            tax,
            latency,
        }
    }

    /// The same for people.
    pub(crate) fn text(&self) -> String {
        let machine = &self.machine;
        let (processor, kernel, version) = (&machine.processor, &machine.kernel, machine.sealblk);
        let processors = match machine.processors {
            1 => "1 processor".to_owned(),
            many => format!("{many} processors"),
        };
        [
            format!("{processor}, {processors}, Linux {kernel}, sealblk {version}\n"),
            "AES-256-XTS, one thread, by bytes a call: encrypt / decrypt, GB/s".to_owned(),
            self.cipher_table(),
            self.how_volumes_are_served(),
            self.tax_table(),
            "One 4 KiB read at a time, p50 (p99), µs".to_owned(),
            self.latency_table(),
        ]
        .join("\n")
    }

    fn cipher_table(&self) -> String {
        let sizes = CALL_BYTES.map(|bytes| show_bytes(bytes as u64));
        let header: Vec<&str> = std::iter::once("KERNEL").chain(sizes.iter().map(String::as_str)).collect();
        let rows: Vec<Vec<String>> = self
            .cipher
            .chunks(CALL_BYTES.len())
            .map(|kernel| {
                let name = kernel.first().map_or("", |rate| rate.kernel);
                let in_use = if name == self.machine.cipher_kernel { " *" } else { "" };
                let rates = kernel.iter().map(|rate| {
                    let (encrypt, decrypt) = (rate.encrypt_bytes_per_second, rate.decrypt_bytes_per_second);
                    format!("{:.2} / {:.2}", encrypt / 1e9, decrypt / 1e9)
                });
                std::iter::once(format!("{name}{in_use}")).chain(rates).collect()
            })
            .collect();
        table(&header, &[1, 2, 3], &rows) + "* what volumes use here\n"
    }

    fn how_volumes_are_served(&self) -> String {
        let directory =
            self.directory.as_ref().map_or("memory".to_owned(), |path| path.display().to_string());
        let cache = if self.direct { "around the page cache" } else { "through the page cache" };
        let size = show_bytes(self.volume_bytes);
        format!("Volumes of {size} in {directory}, {cache}; NBD, a Unix socket, one connection")
    }

    fn tax_table(&self) -> String {
        let row = |tax: &Tax| {
            let ratio = format!("{:.2}", tax.ratio);
            vec![tax.work.to_owned(), throughput(&tax.encrypted), throughput(&tax.plain), ratio]
        };
        let rows: Vec<Vec<String>> = self.tax.iter().map(row).collect();
        table(&["WORK", "ENCRYPTED", "PLAIN", "RATIO"], &[1, 2, 3], &rows)
    }

    fn latency_table(&self) -> String {
        let row = |latency: &Latency| {
            let processors = match latency.processors {
                1 => "client and server on one processor",
                _ => "client and server on one each",
            };
            let more = latency.encrypted.p50_microseconds - latency.plain.p50_microseconds;
            let (encrypted, plain) = (percentiles(&latency.encrypted), percentiles(&latency.plain));
            vec![processors.to_owned(), encrypted, plain, format!("{more:+.1}")]
        };
        let rows: Vec<Vec<String>> = self.latency.iter().map(row).collect();
        table(&["PROCESSORS", "ENCRYPTED", "PLAIN", "MORE"], &[1, 2, 3], &rows)
    }
}

fn throughput(figure: &Throughput) -> String {
    format!("{:.1}k IOPS, {:.0} MB/s", figure.iops / 1e3, figure.bytes_per_second / 1e6)
}

fn percentiles(figure: &Percentiles) -> String {
    format!("{:.1} ({:.1})", figure.p50_microseconds, figure.p99_microseconds)
}
