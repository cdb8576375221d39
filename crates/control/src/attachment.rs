//! `attachment.json`: what the holder of a volume says of itself, for others to read and for its successor to
//! clean up by. The lock on the volume's directory says whether there is a holder at all.

use std::path::PathBuf;

use jiff::Timestamp;
use sealblk_kms::GrantId;
use sealblk_record::{Document, RecordError, RecordFile};
use sealblk_volume::{SnapshotId, VolumeDirectory};
use serde::{Deserialize, Serialize};

use crate::error::ControlError;

/// What the holder is doing; as EC2 names an attachment's states.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentState {
    /// It is about to serve.
    Attaching,
    /// It serves.
    Attached,
    /// It works on the volume offline.
    Busy,
}

impl AttachmentState {
    /// As EC2 writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Busy => "busy",
        }
    }
}

/// One holder, as it is stored while it lasts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct AttachmentRecord {
    pub(crate) state: AttachmentState,
    pub(crate) pid: u32,
    pub(crate) attach_time: Timestamp,
    pub(crate) read_only: bool,
    /// NBD URIs; none until it serves.
    pub(crate) uris: Vec<String>,
    /// The grant it decrypted under, for an encrypted volume.
    pub(crate) grant: Option<GrantRecord>,
    /// The grant it decrypts the snapshot's blocks under, while the volume is restored under another key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restore_grant: Option<GrantRecord>,
    /// The snapshot that it makes of the volume, which nobody serves meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<SnapshotId>,
    /// Where `detach` reaches it, if it can be reached.
    pub(crate) control_socket: Option<PathBuf>,
    /// All its socket files, to be removed after it.
    pub(crate) sockets: Vec<PathBuf>,
}

/// A grant and the key it is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct GrantRecord {
    /// The key's ARN.
    pub(crate) kms_key_id: String,
    pub(crate) grant_id: GrantId,
}

impl Document for AttachmentRecord {
    const FORMAT: &'static str = "sealblk-attachment";
    const VERSION: u32 = 1;
}

impl AttachmentRecord {
    /// This process, from now on.
    pub(crate) fn of_this_process(state: AttachmentState, read_only: bool) -> Self {
        Self {
            state,
            pid: std::process::id(),
            attach_time: Timestamp::now(),
            read_only,
            uris: Vec::new(),
            grant: None,
            restore_grant: None,
            snapshot: None,
            control_socket: None,
            sockets: Vec::new(),
        }
    }

    /// What the volume's holder, or one that was killed, said of itself.
    pub(crate) fn read(directory: &VolumeDirectory) -> Result<Option<Self>, ControlError> {
        match file(directory).load() {
            Ok(record) => Ok(Some(record)),
            Err(RecordError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what a killed holder said.
    pub(crate) fn remove(directory: &VolumeDirectory) -> Result<(), ControlError> {
        Ok(file(directory).remove()?)
    }
}

fn file(directory: &VolumeDirectory) -> RecordFile<AttachmentRecord> {
    RecordFile::new(directory.path().join("attachment.json"))
}

/// This process's own `attachment.json`; removed when dropped, unless it is kept for a successor.
pub(crate) struct Announcement {
    record: AttachmentRecord,
    file: RecordFile<AttachmentRecord>,
    keep: bool,
}

impl Announcement {
    /// Says `record` of the volume in `directory`, whose lock the caller holds.
    pub(crate) fn make(directory: &VolumeDirectory, record: AttachmentRecord) -> Result<Self, ControlError> {
        let file = file(directory);
        file.store(&record)?;
        Ok(Self { record, file, keep: false })
    }

    /// Changes what is said.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut AttachmentRecord)) -> Result<(), ControlError> {
        change(&mut self.record);
        Ok(self.file.store(&self.record)?)
    }

    /// Leaves it, because something it names could not be cleaned up.
    pub(crate) fn keep_for_successor(&mut self) {
        self.keep = true;
    }

    /// Takes it back.
    pub(crate) fn withdraw(mut self) -> Result<(), ControlError> {
        self.keep = true;
        Ok(self.file.remove()?)
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if !self.keep {
            // The holder is failing already; whatever stays is cleaned up by the next one.
            let _ = self.file.remove();
        }
    }
}
