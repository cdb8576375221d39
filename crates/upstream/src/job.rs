//! One operation of a lane, handed to a connection: owned by it until it is answered or given up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sealblk_block::Buffer;
use sealblk_nbd::wire::command_flag;
use tokio::sync::oneshot;

use crate::journal::{Change, Content};
use crate::order::Turn;

/// What is to be done. Ranges are whole units of the export, and inside it.
pub(crate) enum Work {
    Read {
        offset: u64,
        buffer: Buffer,
    },
    Write {
        offset: u64,
        data: Arc<Buffer>,
        fua: bool,
    },
    Zero {
        offset: u64,
        bytes: u32,
        no_hole: bool,
        fast: bool,
        fua: bool,
    },
    Trim {
        offset: u64,
        bytes: u32,
        fua: bool,
    },
    /// Of what was acknowledged before the journal's mark.
    Flush {
        mark: u64,
    },
    Status {
        offset: u64,
        bytes: u32,
        one: bool,
    },
}

impl Work {
    /// What the journal is to keep once this is acknowledged, and whether it was forced through.
    pub(crate) fn change(&self) -> Option<(Change, bool)> {
        let (offset, content, forced) = match self {
            Self::Write { offset, data, fua } => (offset, Content::Data(Arc::from(&data[..])), fua),
            Self::Zero { offset, bytes, no_hole, fua, .. } => {
                (offset, Content::Zeros { bytes: *bytes, no_hole: *no_hole }, fua)
            }
            Self::Trim { offset, bytes, fua } => (offset, Content::Trimmed { bytes: *bytes }, fua),
            Self::Read { .. } | Self::Flush { .. } | Self::Status { .. } => return None,
        };
        Some((Change { offset: *offset, content }, *forced))
    }

    /// The request's flags.
    pub(crate) fn flags(&self) -> u16 {
        let when = |wanted: &bool, flag| if *wanted { flag } else { 0 };
        match self {
            Self::Write { fua, .. } | Self::Trim { fua, .. } => when(fua, command_flag::FUA),
            Self::Zero { no_hole, fast, fua, .. } => {
                when(fua, command_flag::FUA)
                    | when(no_hole, command_flag::NO_HOLE)
                    | when(fast, command_flag::FAST_ZERO)
            }
            Self::Status { one, .. } => when(one, command_flag::REQ_ONE),
            Self::Read { .. } | Self::Flush { .. } => 0,
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read { .. } => "Read",
            Self::Write { .. } => "Write",
            Self::Zero { .. } => "Zero",
            Self::Trim { .. } => "Trim",
            Self::Flush { .. } => "Flush",
            Self::Status { .. } => "Status",
        })
    }
}

/// Why a job failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server's answer: an error number of the protocol.
    #[error("the NBD server answered with {}", error_name(*.0))]
    Answered(u32),
    /// The connection was lost and did not come back in time.
    #[error("the connection to the NBD server was lost and did not come back within {} s ({last})", after.as_secs())]
    Lost {
        /// How long it was tried.
        after: Duration,
        /// What went wrong last.
        last: String,
    },
    /// The connection was lost each time the request was made: the request may be why.
    #[error(
        "the connection to the NBD server was lost each of {attempts} times this request was made ({last})"
    )]
    Repeatedly {
        /// How often.
        attempts: u32,
        /// What went wrong last.
        last: String,
    },
    /// The export is not what it was.
    #[error("{0}")]
    Changed(String),
    /// The connection's thread is gone.
    #[error("the connection's thread has ended")]
    Ended,
}

fn error_name(number: u32) -> String {
    let name = match number {
        1 => "EPERM",
        5 => "EIO",
        12 => "ENOMEM",
        22 => "EINVAL",
        28 => "ENOSPC",
        75 => "EOVERFLOW",
        95 => "ENOTSUP",
        108 => "ESHUTDOWN",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

/// How a job ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) outcome: Result<(), Failure>,
    /// The work, for its buffer.
    pub(crate) work: Work,
    /// Of a `Status`: lengths in bytes and flags, as the server told them.
    pub(crate) extents: Vec<(u32, u32)>,
}

/// A piece of work, and who waits for it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) work: Work,
    /// Connections that were lost under it.
    pub(crate) attempts: u32,
    turn: Option<Turn>,
    done: oneshot::Sender<Done>,
}

impl Job {
    /// A job and what to wait on for it.
    pub(crate) fn new(work: Work, turn: Option<Turn>) -> (Self, oneshot::Receiver<Done>) {
        let (done, wait) = oneshot::channel();
        (Self { work, attempts: 0, turn, done }, wait)
    }

    /// Ends the job.
    pub(crate) fn finish(self, outcome: Result<(), Failure>, extents: Vec<(u32, u32)>) {
        let Self { work, turn, done, .. } = self;
        drop(turn);
        // Nobody waits any more: the job was done all the same.
        let _ = done.send(Done { outcome, work, extents });
    }
}
