//! A block device of a test's own. Needs root.

use std::path::Path;
use std::process::Stdio;

use super::process::{foreign, run};

/// A loop device over a file; gone when dropped.
pub struct LoopDevice(String);

impl LoopDevice {
    #[track_caller]
    pub fn over(file: &Path) -> Self {
        let shown = run(foreign("losetup").args(["--find", "--show"]).arg(file)).ok();
        Self(shown.trim().to_owned())
    }

    /// Its path.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Has it look how long its file is now.
    #[track_caller]
    pub fn look_again(&self) {
        run(foreign("losetup").args(["--set-capacity", &self.0])).ok();
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = foreign("losetup").args(["--detach", &self.0]).stdin(Stdio::null()).status();
    }
}
