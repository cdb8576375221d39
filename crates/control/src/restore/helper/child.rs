//! The helper's side: opens the snapshot, and answers until its parent goes away.

use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use bytes::Bytes;
use sealblk_snapshot::{Block, Snapshot, SnapshotError, StoreOptions, block_count};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::super::error::RestoreError;
use super::{Opened, Purpose, Task, receive, send};
use crate::block_stream::{self, MOST_BLOCKS, Run, ServeBlocks, ServedBlock};
use crate::error::{ControlError, with_causes};
use crate::offline;
use crate::snapshot::RepositoryPlace;

/// How long a store that does not answer is asked again for one block. Who waits for it is then told, and may ask again.
const PATIENCE: Duration = Duration::from_secs(40);

/// Reads a snapshot for the parent at the other end of `socket`, until that goes away. A snapshot that cannot be
/// read is no error: it is an answer. `environment` has what it takes
/// to reach an object store. Run by the binary's hidden subcommand.
pub fn serve_restore_helper(socket: StdUnixStream, environment: StoreOptions) -> Result<(), ControlError> {
    socket.set_nonblocking(true).map_err(RestoreError::Helper)?;
    let served: Result<(), RestoreError> = offline::run(async {
        let mut stream = UnixStream::from_std(socket).map_err(RestoreError::Helper)?;
        let task: Task = receive(&mut stream).await.map_err(RestoreError::Helper)?;
        let mut nothing = [0];
        let opened = tokio::select! {
            opened = open(&task, environment) => opened,
            // A parent that goes away while a store does not answer is not waited for. It says nothing meanwhile.
            _ = stream.read(&mut nothing) => return Ok(()),
        };
        match opened {
            Ok(snapshot) => {
                send(&mut stream, &Opened::Ready).await.map_err(RestoreError::Helper)?;
                if let Some(snapshot) = snapshot {
                    // A snapshot can be read for ever: this costs nobody anything.
                    let endless = block_stream::Patience::Endless;
                    let served = block_stream::serve(stream, SnapshotBlocks { snapshot }, endless).await;
                    served.map_err(RestoreError::Helper)?;
                }
            }
            Err(message) => {
                send(&mut stream, &Opened::Refused { message }).await.map_err(RestoreError::Helper)?;
            }
        }
        Ok(())
    })?;
    Ok(served?)
}

/// The snapshot, if it is to be read.
async fn open(task: &Task, environment: StoreOptions) -> Result<Option<Snapshot>, String> {
    let place = RepositoryPlace::named(task.repository.clone(), environment)
        .map_err(|error| error.with_causes())?
        .within(PATIENCE);
    let repository = place.open().await.map_err(|error| error.with_causes())?;
    let holder = task.volume_id.to_string();
    let opened = match task.purpose {
        // The volume has held it since it was made; so it opens also while it is being deleted.
        Purpose::Read => repository.hold(task.snapshot_id, &holder).await.map(Some),
        Purpose::Release => repository.release(task.snapshot_id, &holder).await.map(|_| None),
    };
    opened.map_err(|error| with_causes(&error))
}

/// A snapshot, as a block stream gives it.
struct SnapshotBlocks {
    snapshot: Snapshot,
}

impl ServeBlocks for SnapshotBlocks {
    type Data = Bytes;

    fn size_bytes(&self) -> u64 {
        self.snapshot.record().volume_size_bytes
    }

    async fn next(&self, from: u64) -> io::Result<Option<Run>> {
        let end = from.saturating_add(MOST_BLOCKS).min(block_count(self.size_bytes()));
        Ok((from < end).then_some(Run { blocks: from..end, in_origin: false }))
    }

    async fn read(&self, index: u64) -> io::Result<ServedBlock<Bytes>> {
        match self.snapshot.read_block(index).await {
            Ok(Block::Zero) => Ok(ServedBlock::Zero),
            Ok(Block::Data(bytes)) => Ok(ServedBlock::Data(bytes)),
            Err(error) => Err(io_error(&error)),
        }
    }

    async fn release(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    async fn complete(&self) -> io::Result<()> {
        Ok(())
    }
}

fn io_error(error: &SnapshotError) -> io::Error {
    let kind = match error {
        SnapshotError::Damaged { .. } => io::ErrorKind::InvalidData,
        SnapshotError::Store { .. } => io::ErrorKind::HostUnreachable,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, with_causes(error))
}
