//! Something that is being done once for everybody who waits for it.

use std::io;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use sealblk_block::{BlockError, Lba, Operation};
use tokio::sync::Notify;

/// Why a job failed, for each who waited: an error that can be told more than once.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// The store is full.
    NoSpace,
    /// An earlier flush failed.
    Latched,
    /// Anything else: what kind, and what happened, with its causes.
    Other(io::ErrorKind, Arc<str>),
}

/// A job's outcome, once it has one.
#[derive(Debug, Default)]
pub(crate) struct Job {
    outcome: OnceLock<Result<(), Trouble>>,
    ended: Notify,
}

impl Job {
    /// Tells everybody who waits, now or later. Only the first outcome counts.
    pub(crate) fn end(&self, outcome: Result<(), Trouble>) {
        // A second outcome is that of a job that was given up and ended after all: nobody waits for it.
        let _ = self.outcome.set(outcome);
        self.ended.notify_waiters();
    }

    /// The outcome.
    pub(crate) async fn wait(&self) -> Result<(), Trouble> {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable(); // From here on the end is noticed, so look only now.
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            ended.await;
        }
    }
}

impl Trouble {
    /// What was to be done needs a keeper, and there is none.
    pub(crate) fn unkept() -> Self {
        Self::Other(io::ErrorKind::BrokenPipe, "nobody keeps the block map any more".into())
    }

    /// As the answer to a request.
    pub(crate) fn answer(self, operation: Operation, at: Lba) -> BlockError {
        match self {
            Self::NoSpace => BlockError::NoSpace { operation, at },
            Self::Latched => BlockError::Latched { operation },
            Self::Other(..) => BlockError::Io { operation, at, source: self.into() },
        }
    }
}

impl From<Trouble> for io::Error {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NoSpace => Self::new(io::ErrorKind::StorageFull, "no space left in the backing store"),
            Trouble::Latched => Self::other("an earlier flush failed"),
            Trouble::Other(kind, message) => Self::new(kind, message.to_string()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Other(error.kind(), with_causes(&error).into())
    }
}

impl From<BlockError> for Trouble {
    fn from(error: BlockError) -> Self {
        match &error {
            BlockError::NoSpace { .. } => Self::NoSpace,
            BlockError::Latched { .. } => Self::Latched,
            BlockError::Io { source, .. } => Self::Other(source.kind(), with_causes(&error).into()),
            BlockError::ReadOnly { .. } | BlockError::Unsupported { .. } => {
                Self::Other(io::ErrorKind::Other, with_causes(&error).into())
            }
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
