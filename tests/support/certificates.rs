//! Certificates as an operator makes them: with our own script.

use std::path::{Path, PathBuf};

use super::process::{foreign, require, run};

/// An authority and a server in the directory `name` below `root`, and each of `clients` in a directory of its own in it.
#[track_caller]
pub fn certificates(root: &Path, name: &str, clients: &[&str]) -> PathBuf {
    require("openssl");
    let directory = root.join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-tls-certificates");
    run(foreign("bash").arg(script).arg(&directory).arg("--").args(clients)).ok();
    directory
}
