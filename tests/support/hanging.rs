//! A pool's snapshot repository that hangs, at a place that the test chooses: whatever is to happen in the middle of a snapshot
//! happens there, and not after its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::attachment::Attachment;
use super::pool::Pool;
use super::process::{foreign, run};
use super::snapshots::objects;

/// Nothing that is waited for takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again and again until `there` holds.
#[track_caller]
pub fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let started = Instant::now();
    while !there() {
        assert!(started.elapsed() < PATIENCE, "{what}: it does not come to that");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lock under which records of snapshots change, in the test's hands: a snapshot that is asked for meanwhile freezes its
/// volume, and gets no further, until this is dropped.
pub struct HeldRecords {
    _lock: File,
}

impl HeldRecords {
    /// Takes it, of the pool's own repository, in which there is a snapshot already.
    pub fn of(pool: &Pool) -> Self {
        let lock = File::open(pool.path().join("snapshots/lock")).expect("a repository in use");
        lock.lock().expect("locked");
        Self { _lock: lock }
    }
}

/// The file that the serving process puts blocks aside in while a snapshot is made, which has no name any more.
pub fn spool(attachment: &Attachment) -> Option<PathBuf> {
    let files = fs::read_dir(format!("/proc/{}/fd", attachment.pid())).expect("its files");
    files
        .map(|file| file.expect("a file").path())
        .find(|file| fs::read_link(file).is_ok_and(|to| to.to_string_lossy().ends_with(".cow (deleted)")))
}

/// Whether the process that makes a snapshot of a volume that nobody serves puts blocks aside; or was killed then.
pub fn has_spool(pool: &Pool, volume: &str) -> bool {
    let files = fs::read_dir(pool.volume_dir(volume)).expect("the volume's directory");
    files.flatten().any(|file| file.file_name().to_string_lossy().ends_with(".cow"))
}

/// A page of a snapshot's index that is a pipe that nobody writes to: whoever builds upon the snapshot gets no further than
/// there, until the process ends. Dropped, the page is what it was.
pub struct HungPage {
    page: PathBuf,
    aside: PathBuf,
}

impl HungPage {
    /// The leaf page `position`, over the blocks from 1024 times that on, that `snapshot` wrote.
    pub fn of(pool: &Pool, snapshot: &str, position: u64) -> Self {
        let page = leaf_page(pool, snapshot, position).expect("a page");
        let aside = pool.root().join("page");
        fs::rename(&page, &aside).expect("moved");
        run(foreign("mkfifo").arg(&page)).ok();
        Self { page, aside }
    }
}

impl Drop for HungPage {
    fn drop(&mut self) {
        // Of a test that failed, nobody reads it.
        let _ = fs::rename(&self.aside, &self.page);
    }
}

/// The leaf page `position` that `snapshot` wrote, if it is there.
pub fn leaf_page(pool: &Pool, snapshot: &str, position: u64) -> Option<PathBuf> {
    let prefix = format!("0-{position:06x}-");
    let written = |page: &Path| page.parent().is_some_and(|of| of.ends_with(snapshot));
    let named =
        |page: &Path| page.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    objects(pool, "pages").into_iter().find(|page| written(page) && named(page))
}
