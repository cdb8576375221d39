//! What the figures were measured on. Of no use without it.

use std::fs;
use std::thread::available_parallelism;

use sealblk_xts::Kernel;
use serde::Serialize;

/// The machine, as far as it matters to a measurement.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Machine {
    /// The processor's name, or its architecture where the kernel does not tell.
    pub(crate) processor: String,
    /// Processors that this process may run on.
    pub(crate) processors: usize,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// This program's version.
    pub(crate) sealblk: &'static str,
    /// How many threads wanted to run during the last minute, on average.
    pub(crate) load_average: f64,
    /// The cipher kernel that volumes use here.
    pub(crate) cipher_kernel: &'static str,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|minute| minute.parse().ok());
        Self {
            processor: name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned(),
            processors: available_parallelism().map_or(1, usize::from),
            kernel: release.trim().to_owned(),
            sealblk: env!("CARGO_PKG_VERSION"),
            load_average: load.unwrap_or_default(),
            cipher_kernel: Kernel::fastest().name(),
        }
    }
}
