//! What lanes leave for the keeper to do. Only slow paths come here.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::format::MapIdentity;
use super::freeze::Freeze;
use super::job::{Job, Trouble};

/// Something for the keeper to do.
#[derive(Debug)]
pub(crate) enum Work {
    /// Bring a missing block; the claim is taken.
    Bring(u64),
    /// Save a block before it is changed.
    Save(Arc<Freeze>, u64),
    /// A snapshot is over: let go of where its blocks were put aside, so that the space is given back.
    LetSpoolGo,
    /// Make all that was written durable, then say so in the map.
    Commit(Asked),
    /// Say in the map that it does not know what changed.
    ForgetChanges(Asked),
    /// Say in the map that the volume has grown.
    Grow(MapIdentity, Asked),
    /// Say in the map what changed, and end.
    Close(Asked),
    /// End.
    Stop,
}

/// A job that somebody may wait for. Whoever drops it without ending it has given it up, and says so.
#[derive(Debug, Default)]
pub(crate) struct Asked(Arc<Job>);

impl Asked {
    pub(crate) fn end(self, outcome: Result<(), Trouble>) {
        self.0.end(outcome);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.end(Err(Trouble::unkept()));
    }
}

/// Where work is left; clones are the same desk.
#[derive(Clone, Debug)]
pub(crate) struct Desk(mpsc::UnboundedSender<Work>);

impl Desk {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Work>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        (Self(sender), inbox)
    }

    /// Leaves work; `false`: the keeper has ended, and nobody will do it.
    #[must_use]
    pub(crate) fn put(&self, work: Work) -> bool {
        self.0.send(work).is_ok()
    }

    /// Leaves a job and waits until it is over.
    pub(crate) async fn ask(&self, work: impl FnOnce(Asked) -> Work) -> Result<(), Trouble> {
        let job = Arc::<Job>::default();
        // Work that nobody takes is dropped, which ends the job.
        let _ = self.put(work(Asked(Arc::clone(&job))));
        job.wait().await
    }
}
