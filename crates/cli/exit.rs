//! How a command ends: the one match from errors to exit codes, and the report on stderr.

use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sealblk_control::{ControlError, ErrorClass};
use sealblk_kms::helper::HelperError;
use sealblk_kms::{KmsError, PassphraseError};

use crate::args::OutputMode;
use crate::bench::BenchError;
use crate::output;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// An operation on the pool failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Of several things some were not done; each was told.
    #[error("{failed} of {of} failed")]
    NotAll {
        /// How many.
        failed: usize,
        /// Of how many.
        of: usize,
        /// The one with the highest exit code.
        #[source]
        worst: Box<Failure>,
    },
    /// The parent of a key helper is gone, or sent no request.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// There is no passphrase for the key store.
    #[error(transparent)]
    Passphrase(PassphraseError),
    /// The audit log is not as it was written.
    #[error("the audit log is not intact: {count} findings")]
    AuditFindings {
        /// How many.
        count: u64,
    },
    /// Snapshots are not as they were made; what is wrong was told.
    #[error("snapshots are not as they were made: {count} flaws")]
    Flaws {
        /// How many.
        count: usize,
    },
    /// The audit log has no such record.
    #[error("the audit log has no record {0}")]
    NoSuchRecord(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file of the command line's own.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done, up to the file's name.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A measurement came to no end.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Standard output is full or gone.
    #[error("cannot write the result")]
    Output(#[from] io::Error),
}

impl From<KmsError> for Failure {
    fn from(error: KmsError) -> Self {
        Self::Control(error.into())
    }
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub(crate) fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { doing, path: path.to_owned(), source }
    }

    /// Writes the error to stderr; the exit code that goes with it.
    pub(crate) fn report(&self, mode: OutputMode) -> ExitCode {
        output::report(mode, self.code(), self);
        ExitCode::from(self.exit_code())
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Control(error) => error.code(),
            Self::NotAll { worst, .. } => worst.code(),
            Self::Usage(_) => "InvalidParameterValue",
            Self::Passphrase(_) => "AccessDeniedException",
            Self::AuditFindings { .. } => "AuditLogNotIntact",
            Self::Flaws { .. } => "SnapshotDamaged",
            Self::NoSuchRecord(_) => "NotFoundException",
            Self::File { .. } | Self::Output(_) | Self::Helper(_) | Self::Bench(_) => "InternalError",
        }
    }

    /// docs/CLI.md, "Exit codes". Scripts depend on these numbers.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotAll { worst, .. } => worst.exit_code(),
            Self::File { .. } | Self::Output(_) | Self::Helper(_) | Self::Bench(_) => 1,
            Self::Usage(_) => 2,
            Self::Passphrase(_) => 5,
            Self::AuditFindings { .. } | Self::Flaws { .. } => 1,
            Self::NoSuchRecord(_) => 3,
            Self::Control(error) => match error.class() {
                ErrorClass::Failed => 1,
                ErrorClass::Usage => 2,
                ErrorClass::NotFound => 3,
                ErrorClass::State => 4,
                ErrorClass::Denied => 5,
                ErrorClass::Unreachable => 6,
            },
        }
    }
}

/// Ends a command line that clap refused, or that asked for help.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    if error.use_stderr() && wants_json() {
        output::report(OutputMode::Json, "InvalidParameter", &Complaint(error));
    } else {
        // Help to stdout, a complaint to stderr, in colour on a terminal. Nothing can be done if neither is there.
        let _ = error.print();
    }
    ExitCode::from(code)
}

/// Whether a command line that could not be understood asked for JSON all the same.
fn wants_json() -> bool {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    arguments.iter().any(|argument| argument == "--output=json")
        || arguments.windows(2).any(|pair| pair == [OsStr::new("--output"), OsStr::new("json")])
}

/// clap's message as one line, without its hints.
#[derive(Debug)]
struct Complaint<'a>(&'a clap::Error);

impl std::fmt::Display for Complaint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.to_string();
        let first = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
        let line = first.collect::<Vec<_>>().join(" ");
        f.write_str(line.strip_prefix("error: ").unwrap_or(&line))
    }
}

impl Error for Complaint<'_> {}
