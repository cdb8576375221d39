//! One holder at a time, across processes: an advisory lock on a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::RecordError;

/// How often [`wait_until_free`] looks.
const POLL_MS: u64 = 10;

/// An exclusive lock on a file, held until it is dropped or the process ends in whatever way.
///
/// It is a `flock(2)` lock: it excludes other `LockFile`s, in this process and others, and nothing else. A
/// child that runs another program does not inherit it (the descriptor is close-on-exec). The file stays; its
/// content is not used.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    file: File,
}

impl LockFile {
    /// Locks the file at `path`, creating it (mode 0600) if it is not there; `None`: somebody holds it.
    ///
    /// # Errors
    /// [`RecordError::Io`]: the file cannot be opened, created or locked.
    pub fn try_exclusive(path: impl Into<PathBuf>) -> Result<Option<Self>, RecordError> {
        let path = path.into();
        loop {
            if let Some(locked) = Self::lock(&path, FlockOperation::NonBlockingLockExclusive)? {
                return Ok(Some(locked));
            }
            // Refused also while somebody only looks whether it is free, which takes a shared lock for a
            // moment. A shared lock tells the two apart: only a holder refuses it.
            if Self::is_held(&path)? {
                return Ok(None);
            }
        }
    }

    /// As [`try_exclusive`](Self::try_exclusive), but waits until the lock is free, however long.
    ///
    /// # Errors
    /// [`RecordError::Io`]: the file cannot be opened, created or locked.
    pub fn exclusive(path: impl Into<PathBuf>) -> Result<Self, RecordError> {
        let path = path.into();
        loop {
            if let Some(locked) = Self::lock(&path, FlockOperation::LockExclusive)? {
                return Ok(locked);
            }
        }
    }

    /// Whether somebody, in this process or another, holds the lock at `path`; never creates the file.
    ///
    /// A moment's truth, for showing to a human: whoever acts on it takes the lock instead.
    ///
    /// # Errors
    /// [`RecordError::Io`]: the file cannot be opened or looked at.
    pub fn is_held(path: impl AsRef<Path>) -> Result<bool, RecordError> {
        wait_until_free(path, Duration::ZERO).map(|free| !free)
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(path: &Path, how: FlockOperation) -> Result<Option<Self>, RecordError> {
        loop {
            let opened =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
            let file = opened.map_err(RecordError::io("open the lock file", path))?;
            if !try_lock(&file, path, how)? {
                return Ok(None);
            }
            // Somebody may have removed the file between opening and locking it: a lock on a file without a
            // name excludes nobody.
            if is_still_at(&file, path)? {
                return Ok(Some(Self { path: path.to_owned(), file }));
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// Waits until nobody holds the lock at `path`, at most `timeout`; `false`: it is held still.
///
/// A missing file is free. "Free" is a moment's truth: whoever needs it for longer takes the lock.
///
/// # Errors
/// [`RecordError::Io`]: the file cannot be opened or looked at.
pub fn wait_until_free(path: impl AsRef<Path>, timeout: Duration) -> Result<bool, RecordError> {
    let path = path.as_ref();
    let started = Instant::now();
    loop {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            opened => opened.map_err(RecordError::io("open the lock file", path))?,
        };
        // Shared: two who wait do not see each other.
        if try_lock(&file, path, FlockOperation::NonBlockingLockShared)? {
            unlock(&file);
            return Ok(true);
        }
        drop(file);
        let Some(left) = timeout.checked_sub(started.elapsed()) else { return Ok(false) };
        sleep(left.min(Duration::from_millis(POLL_MS)));
    }
}

fn try_lock(file: &File, path: &Path, how: FlockOperation) -> Result<bool, RecordError> {
    loop {
        match flock(file, how) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(RecordError::io("lock", path)(error)),
        }
    }
}

/// Releases the lock on `file`. Closing it is not enough: another thread may be between the fork and the exec of
/// a child just then, and the child's copy of the descriptor would keep the lock a moment longer.
fn unlock(file: &File) {
    // Fails only for a descriptor that is none; closing it follows in any case.
    let _ = flock(file, FlockOperation::Unlock);
}

fn is_still_at(file: &File, path: &Path) -> Result<bool, RecordError> {
    let locked = file.metadata().map_err(RecordError::io("look at the lock file", path))?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (locked.dev(), locked.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(RecordError::io("look at the lock file", path)(error)),
    }
}
