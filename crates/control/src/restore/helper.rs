//! The restore helper: a child process that reads a snapshot for the process that serves a volume, so that the process
//! that holds keys parses nothing that an object store sent. It is given a connected socket as standard input.
//!
//! First one message each way, JSON behind its length (32-bit, little-endian): which snapshot, and whether it is open.
//! Then the block stream (`block_stream.rs`), of which the helper is the server. Or the helper is asked to release what the
//! volume holds of the snapshot, and that is all.

mod child;
mod parent;

use std::io;

use sealblk_volume::{SnapshotId, VolumeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::snapshot::RepositoryName;

pub use child::serve_restore_helper;
pub use parent::RestoreProgram;
pub(crate) use parent::{HelperSlot, HelperStream, release};

/// No message is longer.
const MESSAGE_BYTES: u32 = 64 << 10;

/// What the helper is to do. Credentials are in its environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Task {
    /// Where the repository is, and how it is reached.
    pub(crate) repository: RepositoryName,
    /// The snapshot.
    pub(crate) snapshot_id: SnapshotId,
    /// The volume, which holds it.
    pub(crate) volume_id: VolumeId,
    /// What for.
    pub(crate) purpose: Purpose,
}

/// What a helper is started for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// To give blocks.
    Read,
    /// To release the snapshot; then it ends.
    Release,
}

/// Whether the snapshot is open, or released.
#[derive(Debug, Serialize, Deserialize)]
enum Opened {
    Ready,
    Refused { message: String },
}

async fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MESSAGE_BYTES);
    let length = length.ok_or_else(|| io::Error::other("a message of more than 64 KiB"))?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(&json).await
}

async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let malformed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length);
    let bytes = usize::try_from(length).ok().filter(|_| length <= MESSAGE_BYTES);
    let mut json = vec![0; bytes.ok_or_else(|| malformed("a message of more than 64 KiB"))?];
    stream.read_exact(&mut json).await?;
    serde_json::from_slice(&json).map_err(|_| malformed("a message that is none"))
}
