//! Which processors the client and the serving threads run on, for latencies: left to the scheduler, a run has
//! both on one processor or on two as it falls, and its figures are the one or the other.

use std::fs;
use std::io;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What the names of the threads that serve connections begin with (`sealblk_nbd::Server`).
const SERVING: &str = "nbd-";

/// Threads bound to processors; free again when dropped.
pub(crate) struct Pinned {
    before: CpuSet,
}

/// How many processors this process may use, two at most.
pub(crate) fn usable() -> io::Result<usize> {
    Ok(processors(&sched_getaffinity(None)?).len().min(2))
}

/// Binds every serving thread to one processor, and this thread to the same (`count` 1) or to another (2).
pub(crate) fn pin(count: usize) -> io::Result<Pinned> {
    let before = sched_getaffinity(None)?;
    let usable = processors(&before);
    let server = *usable.first().ok_or(io::ErrorKind::Unsupported)?;
    let client = *usable.get(count - 1).ok_or(io::ErrorKind::Unsupported)?;
    // Made first, so that whatever fails after it is undone.
    let pinned = Pinned { before };
    sched_setaffinity(None, &only(client))?;
    bind_serving(&only(server))?;
    Ok(pinned)
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Fails only where the processors themselves went away; then the kernel has chosen others.
        let _ = sched_setaffinity(None, &self.before);
        let _ = bind_serving(&self.before);
    }
}

fn processors(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect()
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}

fn bind_serving(set: &CpuSet) -> io::Result<()> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        // A thread that ends meanwhile is none of those that are measured.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let number = task.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = number.and_then(Pid::from_raw).filter(|_| name.starts_with(SERVING)) {
            sched_setaffinity(Some(pid), set)?;
        }
    }
    Ok(())
}
