//! A restoration while it runs, and its end: once every block is here, durably, what it was for goes, step by step, so that
//! killed anywhere the next holder of the volume finishes it.
//!
//! (1) The snapshot's cipher is wiped, and the helper ends. (2) The record forgets the snapshot's key. (3) The snapshot is
//! released. (4) The record says that nothing is being restored; the generation of it that is kept has no
//! such key either. (5) The grant on the snapshot's key is retired.

use std::collections::HashSet;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk_volume::{SnapshotId, VolumeRecord};
use tokio::sync::oneshot;

use super::error::RestoreError;
use super::helper;
use super::opening::Restoration;
use crate::error::ControlError;
use crate::keep::StoredVolume;
use crate::offline;
use crate::pool::change_record;

/// After the snapshot could not be released: until that is tried again.
const PAUSE: Duration = Duration::from_secs(30);
/// How many different troubles are told; a damaged snapshot may have very many.
const TOLD: usize = 100;

/// What is worth telling a person about a restoration.
#[derive(Debug)]
pub enum RestoreEvent {
    /// A block could not be brought; it is tried again.
    Trouble(io::Error),
    /// Every block is here, and the snapshot is not needed any more.
    Complete(SnapshotId),
    /// Every block is here, but what is left to be done is not done yet.
    Unfinished(ControlError),
}

/// Who hears of it; called on a thread of its own.
pub type RestoreEvents = Box<dyn Fn(&RestoreEvent) + Send>;

/// A restoration that runs beside a volume that is served, in a thread of its own. Dropped, the thread ends.
pub(crate) struct RunningRestoration {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Restoration>>,
}

impl RunningRestoration {
    /// Sees to the end of the restoration of `stored`, whose keeper brings the blocks.
    pub(crate) fn start(
        restoration: Restoration,
        stored: StoredVolume,
        events: RestoreEvents,
    ) -> Result<Self, ControlError> {
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let mut restoration = restoration;
            let seen = offline::run(async {
                tokio::select! {
                    () = see_to_the_end(&mut restoration, &stored, &events) => {}
                    // Whatever it says, the other end is gone.
                    _ = stopped => {}
                }
            });
            if let Err(error) = seen {
                events(&RestoreEvent::Unfinished(error));
            }
            restoration
        };
        let started = std::thread::Builder::new().name("restore".to_owned()).spawn(run);
        let thread = started.map_err(|source| ControlError::Start { what: "the restoration", source })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Ends it where it is; what is left is the next attachment's. The snapshot's key is wiped.
    pub(crate) fn end(mut self) -> Result<(), ControlError> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let panicked =
            |_| ControlError::Start { what: "the restoration", source: io::Error::other("it panicked") };
        thread.join().map_err(panicked)?.abandon()
    }
}

impl Drop for RunningRestoration {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // There is an error to tell already; a panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

async fn see_to_the_end(restoration: &mut Restoration, stored: &StoredVolume, events: &RestoreEvents) {
    let mut told = HashSet::new();
    while let Err(error) = stored.restored().await {
        if told.len() < TOLD && told.insert(error.to_string()) {
            events(&RestoreEvent::Trouble(error));
        }
    }
    let mut complained = false;
    loop {
        match restoration.finish().await {
            Ok(()) => return events(&RestoreEvent::Complete(restoration.task.snapshot_id)),
            Err(error) if !complained => events(&RestoreEvent::Unfinished(error)),
            Err(_) => {}
        }
        complained = true;
        tokio::time::sleep(PAUSE).await;
    }
}

impl Restoration {
    /// What is to be done once every block is here, durably; again after an error. In a local task set.
    pub(crate) async fn finish(&mut self) -> Result<(), ControlError> {
        if let Some(source) = &self.source {
            source.wipe();
        }
        self.slot.end();
        change_record(&self.directory, without_source)?;
        // By a helper: this process may hold keys.
        let released = helper::release(&self.program, &self.task, &self.slot).await;
        let id = self.task.volume_id;
        released.map_err(|source| RestoreError::NotReleased { id, source })?;
        change_record(&self.directory, |record| Ok(VolumeRecord { restoring: None, ..record }))?;
        self.grant.retire()
    }

    /// Ends it where it is. The keeper that used it has ended.
    pub(crate) fn abandon(mut self) -> Result<(), ControlError> {
        if let Some(source) = &self.source {
            source.wipe();
        }
        self.slot.end();
        self.grant.retire()
    }
}

fn without_source(mut record: VolumeRecord) -> Result<VolumeRecord, ControlError> {
    if let Some(restoring) = &mut record.restoring {
        restoring.encrypt_anew = None;
    }
    Ok(record)
}
