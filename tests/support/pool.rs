//! A pool, a runtime directory and a temporary directory that belong to one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::attachment::Attachment;
use super::process::{Finished, run};

/// One test's own world; gone with it.
pub struct Pool {
    dir: TempDir,
}

impl Pool {
    /// An empty directory: the pool in it is made by the first command, as on a fresh machine.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sealblk-test-").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("tmp")).expect("a directory for temporary files");
        Self { dir }
    }

    /// Everything that the commands of this pool can leave on disk is below it.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The pool's own directory.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    /// The directory of one volume.
    pub fn volume_dir(&self, volume: &str) -> PathBuf {
        self.path().join("volumes").join(volume)
    }

    /// The data file of a volume whose backing is a file.
    pub fn data(&self, volume: &str) -> PathBuf {
        self.volume_dir(volume).join("data")
    }

    /// Where the sockets are that no argument names.
    pub fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// `sealblk` with this pool and these arguments.
    pub fn command<I: AsRef<str>>(&self, args: &[I]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .env("TMPDIR", self.dir.path().join("tmp"))
            .env("HOME", self.dir.path())
            .env_remove("SEALBLK_POOL");
        command.arg("--pool").arg(self.path()).arg("--runtime-dir").arg(self.runtime());
        command.args(args.iter().map(AsRef::as_ref));
        command
    }

    /// Runs `sealblk` to its end.
    #[track_caller]
    pub fn run<I: AsRef<str>>(&self, args: &[I]) -> Finished {
        run(&mut self.command(args))
    }

    /// The JSON document that a successful command prints.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[&["--output", "json"], args].concat()).ok();
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{args:?} printed no JSON ({error}): {text}"))
    }

    /// Creates a volume and returns its id.
    #[track_caller]
    pub fn create(&self, args: &[&str]) -> String {
        let made = self.json(&[&["volume", "create"], args].concat());
        made["VolumeId"].as_str().unwrap_or_else(|| panic!("no VolumeId in {made}")).to_owned()
    }

    /// What `volume describe` says of a volume.
    #[track_caller]
    pub fn describe(&self, volume: &str) -> Value {
        self.json(&["volume", "describe", volume])
    }

    /// Attaches a volume on a Unix socket; ready when this returns.
    #[track_caller]
    pub fn attach(&self, volume: &str, args: &[&str]) -> Attachment {
        Attachment::start(self, volume, args)
    }

    /// Every regular file below the root, with its path.
    pub fn files(&self) -> Vec<PathBuf> {
        let (mut dirs, mut files) = (vec![self.root().to_owned()], Vec::new());
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
            {
                let entry = entry.expect("a directory entry");
                let kind = entry.file_type().expect("its type");
                if kind.is_dir() {
                    dirs.push(entry.path());
                } else if kind.is_file() {
                    files.push(entry.path());
                }
            }
        }
        files
    }
}
