//! Snapshots of an attached volume, in the process that serves it: each freezes the volume and serves its blocks to the
//! process that asked, on a thread of its own. What that process makes of them is not known here.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk_volume::map::FreezeError;
use sealblk_volume::{SnapshotId, VolumeDirectory, VolumeId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::block_stream::{self, Patience};
use crate::error::ControlError;
use crate::keep::StoredVolume;
use crate::offline;
use crate::snapshot::{FrozenVolume, SnapshotOperationError, Spool};

/// Threads at a time; all but one of them wait for their turn or are about to end.
const MOST_THREADS: usize = 4;
/// How long a snapshot waits for the one before: for the end of one whose maker has just gone.
const TURN_TIME: Duration = Duration::from_secs(3);

/// A snapshot that was begun, and came to nothing because of who made it; the volume is served as before.
#[derive(Debug)]
pub struct SnapshotGivenUp {
    /// Which it was to be.
    pub snapshot_id: SnapshotId,
    /// What its maker did not do.
    pub reason: io::Error,
}

/// Who hears of it; called on a thread of its own.
pub type SnapshotEvents = Box<dyn Fn(&SnapshotGivenUp) + Send + Sync>;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct FreezeRequest {
    /// The snapshot to be.
    pub(crate) snapshot_id: SnapshotId,
    /// What it could build upon.
    pub(crate) onto: Vec<SnapshotId>,
}

/// What is answered, on one line; behind `Frozen` the connection is a block stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum FreezeAnswer {
    /// The volume is frozen.
    Frozen {
        /// The one of `onto` since which the blocks that are served have changed; `None`: all that hold data are.
        #[serde(rename = "Base")]
        base: Option<SnapshotId>,
    },
    /// Another snapshot is in progress.
    InProgress {},
    /// It cannot be frozen.
    Error(String),
}

/// What is frozen.
pub(crate) struct Freezable {
    pub(crate) id: VolumeId,
    pub(crate) directory: VolumeDirectory,
    pub(crate) stored: StoredVolume,
    /// For how long who makes a snapshot may take nothing: until it has, writes of clients are put aside.
    pub(crate) stall: Duration,
    /// Who hears of those that did.
    pub(crate) events: SnapshotEvents,
}

/// The snapshots of a volume for as long as it is served; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Freezing(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// `None`: there is nothing to freeze, and clients find their connections closed.
    volume: Option<Freezable>,
    threads: Mutex<Threads>,
    turn: Turn,
    ending: watch::Sender<bool>,
}

#[derive(Default)]
struct Threads {
    ended: bool,
    running: Vec<JoinHandle<()>>,
}

impl Freezing {
    pub(crate) fn new(volume: Freezable) -> Self {
        Self(Arc::new(Shared { volume: Some(volume), ..Shared::default() }))
    }

    /// Begins a snapshot for `client`, on a thread of its own, and answers from there.
    pub(crate) fn begin(&self, mut client: UnixStream, request: FreezeRequest) {
        let mut threads = self.threads();
        threads.running.retain(|thread| !thread.is_finished());
        if threads.ended || threads.running.len() >= MOST_THREADS {
            return answer(&mut client, &FreezeAnswer::InProgress {});
        }
        let shared = Arc::clone(&self.0);
        let run = move || shared.run(client, &request);
        // A thread that cannot be had: the client finds its connection closed.
        if let Ok(thread) = std::thread::Builder::new().name("snapshot".to_owned()).spawn(run) {
            threads.running.push(thread);
        }
    }

    /// Ends what is in progress, and begins nothing more. Whoever makes a snapshot is told by the end of its connection.
    pub(crate) fn end(&self) {
        let running = {
            let mut threads = self.threads();
            threads.ended = true;
            std::mem::take(&mut threads.running)
        };
        self.0.ending.send_replace(true);
        for thread in running {
            // It has nothing to say: a panic in it was reported when it happened.
            let _ = thread.join();
        }
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.0.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn run(&self, mut client: UnixStream, request: &FreezeRequest) {
        let Some(_turn) = self.turn.take(TURN_TIME) else {
            return answer(&mut client, &FreezeAnswer::InProgress {});
        };
        let mut ending = self.ending.subscribe();
        let work = async {
            tokio::select! {
                // An error is a sender that is gone, and so the end as well.
                _ = ending.wait_for(|ending| *ending) => {}
                () = self.serve(client, request) => {}
            }
        };
        // Without a runtime the client finds its connection closed.
        let _ = offline::run(work);
    }

    async fn serve(&self, mut client: UnixStream, request: &FreezeRequest) {
        let Some(Freezable { id, directory, stored, stall, events }) = &self.volume else { return };
        let of = (*id, directory);
        let begun = FrozenVolume::begin(of, stored, request.snapshot_id, &request.onto, Spool::Unnamed).await;
        let frozen = match begun {
            Ok(frozen) => frozen,
            Err(error) => return answer(&mut client, &refusal(&error)),
        };
        answer(&mut client, &FreezeAnswer::Frozen { base: frozen.base() });
        let stream = client.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(client));
        if let Ok(stream) = stream {
            // However it ended, the client knows, if it is there; here nothing depends on it.
            let served = block_stream::serve(stream, frozen, Patience::Bounded(*stall)).await;
            if let Err(reason) = served {
                events(&SnapshotGivenUp { snapshot_id: request.snapshot_id, reason });
            }
        }
    }
}

fn refusal(error: &ControlError) -> FreezeAnswer {
    match error {
        ControlError::SnapshotOperation(SnapshotOperationError::Freeze {
            source: FreezeError::InProgress,
            ..
        }) => FreezeAnswer::InProgress {},
        error => FreezeAnswer::Error(error.with_causes()),
    }
}

/// Answers; a client that has gone away has no use for it.
fn answer(client: &mut UnixStream, answer: &FreezeAnswer) {
    if let Ok(mut line) = serde_json::to_vec(answer) {
        line.push(b'\n');
        let _ = client.write_all(&line);
    }
}

/// One at a time.
#[derive(Default)]
struct Turn {
    taken: Mutex<bool>,
    given_back: Condvar,
}

struct Taken<'a>(&'a Turn);

impl Turn {
    /// `None`: another has it for longer than `patience`.
    fn take(&self, patience: Duration) -> Option<Taken<'_>> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.given_back.wait_timeout_while(taken, patience, |taken| *taken);
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *taken {
            return None;
        }
        *taken = true;
        Some(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.given_back.notify_one();
    }
}
