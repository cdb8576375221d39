//! The serving process's side: starts the helper, and is its client.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Opened, Purpose, Task, receive, send};
use crate::block_stream::{BlockStream, StreamedBlock};

/// How long the helper may take to open the snapshot.
const OPENING_TIME: Duration = Duration::from_secs(60);
/// How long the helper may take for an answer. What it asks a store for is bounded below that.
const ANSWER_TIME: Duration = Duration::from_secs(90);

/// The program that serves as restore helper: this very binary, with its hidden subcommand. It inherits the environment,
/// where credentials for an object store are.
#[derive(Clone, Debug)]
pub struct RestoreProgram {
    /// Its path.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// A helper that has the snapshot open. Dropped, it is no longer asked; that it ends is [`HelperSlot`]'s part.
pub(crate) struct HelperStream {
    stream: BlockStream,
}

/// The one helper that runs for a volume; killed when it is dropped, or replaced. Clones share it, so that whoever sees the
/// end of what it is needed for can end it.
#[derive(Clone, Default)]
pub(crate) struct HelperSlot(Arc<Mutex<Option<Helper>>>);

impl HelperSlot {
    /// Ends the helper that runs, if one does.
    pub(crate) fn end(&self) {
        self.put(None);
    }

    fn put(&self, helper: Option<Helper>) {
        // Killing it waits for its end, which comes at once; nobody else is kept from the slot for that.
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), helper);
        drop(before);
    }
}

struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl HelperStream {
    /// Starts a helper in `slot`, and has it open the snapshot. In a local task set.
    pub(crate) async fn start(program: &RestoreProgram, task: &Task, slot: &HelperSlot) -> io::Result<Self> {
        let opening = async {
            let ours = begin(program, task, slot).await?;
            BlockStream::open(ours, ANSWER_TIME).await
        };
        let opened = timeout(OPENING_TIME, opening).await.map_err(late).flatten();
        if opened.is_err() {
            slot.end();
        }
        Ok(Self { stream: opened? })
    }

    /// Block `index` of the snapshot; behind its end there are zeros.
    pub(crate) async fn read(&self, index: u64) -> io::Result<StreamedBlock> {
        if index >= sealblk_snapshot::block_count(self.stream.size_bytes()) {
            return Ok(StreamedBlock::Zero);
        }
        self.stream.read(index).await
    }

    /// Whether the helper has gone.
    pub(crate) fn is_over(&self) -> bool {
        self.stream.is_over()
    }
}

/// Has a helper in `slot` release what the volume holds of the snapshot, if it holds anything.
pub(crate) async fn release(program: &RestoreProgram, task: &Task, slot: &HelperSlot) -> io::Result<()> {
    let task = Task { purpose: Purpose::Release, ..task.clone() };
    let released = timeout(OPENING_TIME, begin(program, &task, slot)).await.map_err(late).flatten();
    slot.end();
    released.map(drop)
}

/// Starts a helper, and waits until it has done what comes first.
async fn begin(program: &RestoreProgram, task: &Task, slot: &HelperSlot) -> io::Result<UnixStream> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(&program.path);
    // In a group of its own: a signal for the server from its terminal is not the helper's end.
    command.args(&program.args).process_group(0);
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
    slot.put(Some(Helper(command.spawn()?)));
    // Here it would keep the socket open that tells of the helper's end.
    drop(command);
    let mut ours = UnixStream::from_std(ours)?;
    send(&mut ours, task).await?;
    match receive(&mut ours).await? {
        Opened::Ready => Ok(ours),
        Opened::Refused { message } => Err(io::Error::new(io::ErrorKind::HostUnreachable, message)),
    }
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the restore helper does not answer")
}
