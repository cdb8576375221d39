//! A directory for one measurement: nobody else's, and gone afterwards.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// Memory as a file system: there a volume costs what the software costs, and no disk hides it.
const MEMORY: &str = "/dev/shm";
/// What everything but the volumes' data takes, and more.
const BESIDES_BYTES: u64 = 16 << 20;

/// A new directory, removed with everything in it when dropped.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory in `parent` (default: memory, or where temporary files go), which has room for `bytes`.
    pub(crate) fn new(parent: Option<&Path>, bytes: u64) -> Result<Self, Failure> {
        let parent = parent.map_or_else(default_parent, Path::to_owned);
        let failed = |source: io::Error| Failure::file("cannot measure in", &parent, source);
        let absolute = std::path::absolute(&parent).map_err(failed)?;
        let space = rustix::fs::statvfs(&absolute).map_err(|errno| failed(errno.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < bytes.saturating_add(BESIDES_BYTES) {
            return Err(failed(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{free} bytes are free, {bytes} are needed: try another --directory or --size"),
            )));
        }
        Ok(Self { path: create_in(&absolute).map_err(failed)? })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is for whoever cleans temporary files; the figures are none the worse.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn default_parent() -> PathBuf {
    let memory = Path::new(MEMORY);
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Makes a directory that was not there before, for its owner only: in a directory that everybody may
/// write to, a name that is there already is somebody's trap.
fn create_in(parent: &Path) -> io::Result<PathBuf> {
    for attempt in 0..1000 {
        let path = parent.join(format!("sealblk-bench-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}
