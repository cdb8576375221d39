//! A volume that is attached for one piece of work: served on its Unix socket while the work is done by a client of its
//! own, detached afterwards.

use std::io;
use std::thread;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::attach::Attachment;
use crate::error::ControlError;
use crate::offline;

/// Where the work tells how many of how many bytes are done.
pub(super) type Told = UnboundedSender<(u64, u64)>;

/// Serves until `work`, which is given the volume's NBD URI, is done on a thread of its own; then flushes, wipes the key and
/// retires the grant.
pub(super) fn while_served(
    attachment: Attachment<'_>,
    progress: &mut dyn FnMut(u64, u64),
    work: impl FnOnce(&str, &Told) -> Result<(), ControlError> + Send + 'static,
) -> Result<(), ControlError> {
    let uri = attachment.uris().first().cloned().unwrap_or_default();
    let (tell, mut told) = unbounded_channel();
    let started = thread::Builder::new().name("image".to_owned()).spawn(move || work(&uri, &tell));
    let worker = started.map_err(|source| ControlError::Start { what: "the work on an image", source })?;
    // The sender is dropped when the work is done, however it ends.
    let over = async {
        while let Some((done, total)) = told.recv().await {
            progress(done, total);
        }
    };
    let served = offline::run(attachment.serve(&mut (), over)).flatten();
    let panicked =
        |_| ControlError::Start { what: "the work on an image", source: io::Error::other("it panicked") };
    let worked = worker.join().map_err(panicked).flatten();
    // What the store said explains more than that the connection to it was lost.
    served.map(drop).and(worked)
}
