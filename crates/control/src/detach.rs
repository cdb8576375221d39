//! DetachVolume: ask the serving process to end, and wait until it has.

use std::time::{Duration, Instant};

use sealblk_record::wait_until_free;
use sealblk_volume::VolumeId;

use crate::attachment::{AttachmentRecord, AttachmentState};
use crate::conversation::{Answer, ask_to_detach};
use crate::error::ControlError;
use crate::pool::Pool;

/// How long to wait for a holder that has not said yet where it can be reached.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Pool {
    /// Detaches a volume: returns when what was in flight is done, everything is flushed, the key wiped and the
    /// grant retired. A second call meanwhile waits likewise.
    ///
    /// `NotAttached` if nobody serves it; what a killed server left is cleaned up all the same.
    pub fn detach_volume(&self, id: VolumeId, timeout: Duration) -> Result<(), ControlError> {
        self.require(id)?;
        let deadline = Instant::now() + timeout;
        let directory = self.directory(id);
        if wait_until_free(directory.lock_path(), Duration::ZERO)? {
            let held = self.hold(id)?;
            self.clean_up_after_predecessor(&held)?;
            return Err(ControlError::NotAttached { id });
        }
        let mut asked = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !asked && let Some(holder) = AttachmentRecord::read(&directory)? {
                if holder.state == AttachmentState::Busy {
                    return Err(ControlError::VolumeInUse { id, pid: Some(holder.pid) });
                }
                asked = ask(id, &holder, left)?;
            }
            // Once it has answered, all that is left to wait for is the lock.
            if wait_until_free(directory.lock_path(), if asked { left } else { LOOK_AGAIN.min(left) })? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ControlError::StillInUse { id, pid: self.holder(id), after: timeout });
            }
        }
    }
}

/// Whether the holder has detached; `false`: it could not be asked, because it has just ended, or has not begun to
/// listen.
fn ask(id: VolumeId, holder: &AttachmentRecord, left: Duration) -> Result<bool, ControlError> {
    let Some(socket) = &holder.control_socket else { return Ok(false) };
    match ask_to_detach(socket, left) {
        Ok(Some(Answer::Error(message) | Answer::Refused { message, .. })) => {
            Err(ControlError::DetachFailed { id, message })
        }
        Ok(Some(Answer::State(_))) => Ok(true),
        // Killed, or in its last moments, or out of time: the lock tells.
        Ok(None) | Err(_) => Ok(false),
    }
}
