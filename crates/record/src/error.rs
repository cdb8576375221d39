//! Why a record could not be read, written, removed or locked.

use std::io;
use std::path::{Path, PathBuf};

/// Why a record could not be read, written, removed or locked. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is no such record.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The record.
        path: PathBuf,
    },
    /// The operating system refused a step.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was attempted, to be read before the path: "open", "rename a new record to".
        step: &'static str,
        /// The record, lock file or directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The content is not a whole record, or not what its format requires.
    #[error("{} is damaged{}: {reason}{}", path.display(), Position(*line, *column), Previous(previous.as_deref()))]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Line of the damage, from 1; 0 if it is not in one place.
        line: usize,
        /// Column of the damage in bytes; 0 if it is not in one place.
        column: usize,
        /// What is wrong, in words.
        reason: String,
        /// The content before the last store, if it is there and whole. It may be out of date: whether to go
        /// back to it is for a human to decide.
        previous: Option<PathBuf>,
    },
    /// The file is a record of something else, or not one of Sealblk's.
    #[error("{} is not a {expected} record{}", path.display(), Found(found.as_deref()))]
    WrongFormat {
        /// The record.
        path: PathBuf,
        /// The format it names, if it names one.
        found: Option<String>,
        /// The format that was wanted.
        expected: &'static str,
    },
    /// The record was written by a release that this one does not know.
    #[error("{} has version {found}; this release knows up to version {supported}", path.display())]
    UnknownVersion {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest version this release reads, and the one it writes.
        supported: u32,
    },
    /// The record is larger than any can be; it was not read, or not written.
    #[error("{} would be larger than a record can be ({limit} bytes)", path.display())]
    TooLarge {
        /// The record.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The document cannot be represented as a record: a fault of the program, found before anything was
    /// written.
    #[error("{} cannot hold this document: {reason}", path.display())]
    Unstorable {
        /// The record.
        path: PathBuf,
        /// What is wrong, in words.
        reason: String,
    },
}

impl RecordError {
    /// For `map_err`: the error of `step` on `path`.
    pub(crate) fn io<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { step, path: path.to_owned(), source: source.into() }
    }
}

struct Position(usize, usize);

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self(0, _) => Ok(()),
            Self(line, column) => write!(f, " at line {line}, column {column}"),
        }
    }
}

struct Previous<'a>(Option<&'a Path>);

impl std::fmt::Display for Previous<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(path) => write!(f, "; the content before the last change is whole in {}", path.display()),
            None => Ok(()),
        }
    }
}

struct Found<'a>(Option<&'a str>);

impl std::fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(format) => write!(f, " but a {format:?} one"),
            None => f.write_str(": it names no format"),
        }
    }
}
