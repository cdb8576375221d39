//! nbdkit as a store to be killed.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// One nbdkit on a Unix socket; killed when dropped.
pub struct Nbdkit(Child);

impl Nbdkit {
    /// nbdkit with these arguments. It can be reached when this returns: that is when it writes its pid file.
    pub fn start(socket: &Path, pid: &Path, args: &[&OsStr]) -> Self {
        for old in [socket, pid] {
            // The first time there is none.
            let _ = std::fs::remove_file(old);
        }
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.arg("-f").arg("-U").arg(socket).arg("-P").arg(pid).args(args);
        let mut nbdkit = Self(nbdkit.spawn().expect("nbdkit, which scripts/install-tools installs"));
        while !std::fs::read_to_string(pid).is_ok_and(|pid| pid.ends_with('\n')) {
            let ended = nbdkit.0.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "nbdkit: {ended:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        nbdkit
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
