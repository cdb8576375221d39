//! What can be done to a volume whether it is attached or not: in this process if nobody has it, else by the process that
//! serves it.

use std::path::Path;
use std::time::{Duration, Instant};

use sealblk_volume::VolumeId;

use crate::attachment::{AttachmentRecord, AttachmentState};
use crate::error::ControlError;
use crate::pool::Pool;

/// How long a volume may take to come or go.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Pool {
    /// Does something to the volume `id`: `here`, which takes the volume's lock, unless somebody has that (`VolumeInUse`); or `there`,
    /// through the control socket of who serves it, which has nothing to say (`None`) if that has gone meanwhile. A
    /// volume that comes or goes is waited for; one that is worked on offline is in use.
    pub(crate) fn wherever_it_is<T>(
        &self,
        id: VolumeId,
        here: impl Fn() -> Result<T, ControlError>,
        there: impl Fn(&Path) -> Option<Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pid = match here() {
                Err(ControlError::VolumeInUse { pid, .. }) => pid,
                other => return other,
            };
            if let Some(holder) = AttachmentRecord::read(&self.directory(id))? {
                match (holder.state, &holder.control_socket) {
                    (AttachmentState::Busy, _) => return Err(ControlError::VolumeInUse { id, pid }),
                    (AttachmentState::Attached, Some(socket)) => {
                        if let Some(done) = there(socket) {
                            return done;
                        }
                    }
                    _ => {}
                }
            }
            // It attaches, or detaches: neither takes long.
            if Instant::now() >= deadline {
                return Err(ControlError::VolumeInUse { id, pid });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}
