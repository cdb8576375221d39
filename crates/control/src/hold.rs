//! A volume held for oneself: its lock, and what has to be cleaned up first if the last holder was killed.

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use sealblk_kms::{Kms, KmsErrorKind};
use sealblk_record::LockFile;
use sealblk_volume::{VolumeDirectory, VolumeId};

use crate::attachment::{AttachmentRecord, GrantRecord};
use crate::backing;
use crate::error::ControlError;
use crate::pool::Pool;
use crate::runtime::remove_dead;
use crate::snapshot::SnapshotOperationError;

/// A volume that nobody else attaches, deletes or works on while this lives.
pub(crate) struct HeldVolume {
    pub(crate) id: VolumeId,
    pub(crate) directory: VolumeDirectory,
    _lock: LockFile,
    backing: Option<File>,
}

impl HeldVolume {
    /// Holds the volume's bytes too, wherever they are.
    pub(crate) fn claim_backing(&mut self, path: &Path) -> Result<(), ControlError> {
        self.backing = Some(backing::claim(path)?);
        Ok(())
    }
}

impl Pool {
    /// Takes the lock of an existing volume, or says who has it. A killed holder's lock went with it.
    pub(crate) fn hold(&self, id: VolumeId) -> Result<HeldVolume, ControlError> {
        self.require(id)?;
        let directory = self.directory(id);
        let Some(lock) = LockFile::try_exclusive(directory.lock_path())? else {
            return Err(self.in_use(id));
        };
        // Between the caller's look and the lock the volume may have been deleted: the lock then is on a
        // directory that has another name.
        self.require(id)?;
        Ok(HeldVolume { id, directory, _lock: lock, backing: None })
    }

    /// Why the volume cannot be held, as far as its holder has said so.
    fn in_use(&self, id: VolumeId) -> ControlError {
        let holder = AttachmentRecord::read(&self.directory(id)).ok().flatten();
        let pid = holder.as_ref().map(|holder| holder.pid);
        // One that was killed has left its word, and somebody else has the volume now.
        let saving = holder.filter(|holder| is_there(holder.pid)).and_then(|holder| holder.snapshot);
        match saving.zip(pid) {
            Some((snapshot, pid)) => SnapshotOperationError::Saving { volume: id, snapshot, pid }.into(),
            None => ControlError::VolumeInUse { id, pid },
        }
    }

    /// The process that serves the volume, as far as it has said so.
    pub(crate) fn holder(&self, id: VolumeId) -> Option<u32> {
        AttachmentRecord::read(&self.directory(id)).ok().flatten().map(|record| record.pid)
    }

    /// Retires the grant and removes the sockets of a holder that was killed.
    ///
    /// The record of the attachment goes last, so that an error here leaves all that is needed to try again.
    pub(crate) fn clean_up_after_predecessor(&self, held: &HeldVolume) -> Result<(), ControlError> {
        let Some(stale) = AttachmentRecord::read(&held.directory)? else { return Ok(()) };
        for grant in stale.grant.iter().chain(&stale.restore_grant) {
            self.retire(grant)?;
        }
        for path in &stale.sockets {
            // One that another server has taken since is not the dead one's any more, and whatever stays is
            // looked at again when somebody wants to listen there.
            let _ = remove_dead(path);
        }
        AttachmentRecord::remove(&held.directory)
    }

    /// Retires a grant that may be gone already.
    pub(crate) fn retire(&self, grant: &GrantRecord) -> Result<(), ControlError> {
        retire(&*self.kms, grant)
    }
}

/// Whether there is such a process, whosever.
fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Retires a grant that may be gone already.
pub(crate) fn retire(kms: &dyn Kms, grant: &GrantRecord) -> Result<(), ControlError> {
    match kms.retire_grant(&grant.kms_key_id, &grant.grant_id) {
        Err(error) if error.kind != KmsErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
