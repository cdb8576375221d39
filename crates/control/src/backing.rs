//! What a volume's bytes are to be kept in when the caller names it: a new file, or a file or block device that
//! is there already, and then blank or erased by permission.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use sealblk_block::blank::{self, Content};
use sealblk_block::{BlockError, StoreError};
use sealblk_upstream::{ExportUri, UpstreamError, UriError};
use sealblk_volume::{CreateDataError, VolumeId, VolumeSize};

use crate::error::ErrorClass;
use crate::place::BackingPlace;

/// Why a backing cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// It holds something.
    #[error("{place} is not blank: {what} at byte {at}; with --erase it is overwritten with zeros")]
    NotBlank {
        /// The file, device or export.
        place: BackingPlace,
        /// What was found, in words.
        what: String,
        /// Where.
        at: u64,
    },
    /// It belongs to a volume.
    #[error("{place} holds the data of {by}")]
    Taken {
        /// The file, device or export.
        place: BackingPlace,
        /// The volume.
        by: VolumeId,
    },
    /// It was there when the volume was created.
    #[error("{}, where the volume's data is kept, is gone", path.display())]
    Gone {
        /// The file or device.
        path: PathBuf,
    },
    /// Another pool has it attached.
    #[error("{} is in use by another pool", path.display())]
    InUse {
        /// The file or device.
        path: PathBuf,
    },
    /// It is smaller than the volume, and cannot grow.
    #[error("{place} has {found_bytes} bytes; the volume needs {needed_bytes}")]
    TooSmall {
        /// The file, device or export.
        place: BackingPlace,
        /// Its size.
        found_bytes: u64,
        /// The volume's.
        needed_bytes: u64,
    },
    /// A volume that grows would get it.
    #[error("{place} holds data at byte {at}, behind the volume's end: the volume does not grow over it")]
    DataBehindEnd {
        /// The file, device or export.
        place: BackingPlace,
        /// Where.
        at: u64,
    },
    /// The file system takes no file of this size.
    #[error("{} cannot have {needed_bytes} bytes: no space for it on this file system", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The volume's size.
        needed_bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The pool's own data file could not be made.
    #[error(transparent)]
    Create(#[from] CreateDataError),
    /// It is no file and no block device, is in use, or fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not the URI of an export.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The export cannot be reached or used.
    #[error("cannot use {uri} as a backing")]
    Export {
        /// Where it is.
        uri: Box<ExportUri>,
        /// Why not.
        #[source]
        source: UpstreamError,
    },
    /// The export failed while it was inspected or erased.
    #[error("{uri} failed")]
    ExportIo {
        /// Where it is.
        uri: Box<ExportUri>,
        /// What failed.
        #[source]
        source: BlockError,
    },
    /// The kernel refused.
    #[error("cannot use {} as a backing", path.display())]
    Io {
        /// The file or device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl BackingError {
    pub(crate) fn verdict(&self) -> (&'static str, ErrorClass) {
        match self {
            Self::NotBlank { .. }
            | Self::DataBehindEnd { .. }
            | Self::InUse { .. }
            | Self::Store(StoreError::InUse { .. }) => ("IncorrectState", ErrorClass::State),
            Self::Taken { .. } => ("VolumeInUse", ErrorClass::State),
            Self::TooSmall { .. } | Self::Uri(_) | Self::Store(StoreError::WrongKind { .. }) => {
                ("InvalidParameterValue", ErrorClass::Usage)
            }
            Self::Export { source, .. } if source.is_unreachable() => {
                ("DependencyTimeoutException", ErrorClass::Unreachable)
            }
            Self::NoSpace { .. } | Self::Create(CreateDataError::NoSpace { .. }) => {
                ("InsufficientVolumeCapacity", ErrorClass::Failed)
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ("InvalidParameterValue", ErrorClass::NotFound)
            }
            Self::Create(_)
            | Self::Store(_)
            | Self::Gone { .. }
            | Self::Export { .. }
            | Self::ExportIo { .. }
            | Self::Io { .. } => ("InternalError", ErrorClass::Failed),
        }
    }
}

/// A backing made ready; put back as it was when dropped, unless kept.
pub(crate) struct PreparedBacking {
    path: PathBuf,
    undo: Undo,
}

/// What has to be done to a backing whose volume did not come into being.
enum Undo {
    Nothing,
    RemoveFile,
    ShrinkTo(u64),
}

impl PreparedBacking {
    /// The volume exists.
    pub(crate) fn keep(&mut self) {
        self.undo = Undo::Nothing;
    }
}

impl Drop for PreparedBacking {
    fn drop(&mut self) {
        // There is an error to tell already. Whatever stays is blank, and taken by the next try.
        let _ = match self.undo {
            Undo::Nothing => Ok(()),
            Undo::RemoveFile => fs::remove_file(&self.path),
            Undo::ShrinkTo(bytes) => {
                OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(bytes))
            }
        };
    }
}

/// The backing's path without links and dots, so that it means the same to every process. The file itself
/// need not exist, its directory must.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, BackingError> {
    let failed = |source| BackingError::Io { path: path.to_owned(), source };
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(failed)?.join(name))
        }
        other => other.map_err(failed),
    }
}

/// Makes `path` (from [`resolve`]) hold at least `size` zero bytes, creating it as a sparse file if it is not there.
pub(crate) fn prepare(
    path: &Path,
    size: VolumeSize,
    erase: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PreparedBacking, BackingError> {
    let failed = |source| BackingError::Io { path: path.to_owned(), source };
    let prepared = |undo| PreparedBacking { path: path.to_owned(), undo };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            let prepared = prepared(Undo::RemoveFile);
            grow(&file, path, size)?;
            return Ok(prepared);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.file_type().is_block_device() {
        refuse_smaller(path, size)?;
    }
    make_blank(path, erase, progress)?;
    if !metadata.is_file() || metadata.len() >= size.bytes() {
        return Ok(prepared(Undo::Nothing));
    }
    let prepared = prepared(Undo::ShrinkTo(metadata.len()));
    grow(&OpenOptions::new().write(true).open(path).map_err(failed)?, path, size)?;
    Ok(prepared)
}

/// A block device does not grow.
fn refuse_smaller(device: &Path, size: VolumeSize) -> Result<(), BackingError> {
    let found = File::open(device).and_then(|mut opened| opened.seek(SeekFrom::End(0)));
    let path = device.to_owned();
    match found {
        Ok(found_bytes) if found_bytes < size.bytes() => {
            Err(BackingError::TooSmall { place: path.into(), found_bytes, needed_bytes: size.bytes() })
        }
        Ok(_) => Ok(()),
        Err(source) => Err(BackingError::Io { path, source }),
    }
}

/// Refuses what is not blank, or erases it.
fn make_blank(path: &Path, erase: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<(), BackingError> {
    match blank::inspect(path, progress)? {
        Content::Blank => Ok(()),
        Content::Found { .. } if erase => Ok(blank::erase(path, progress)?),
        Content::Found { what, at } => Err(BackingError::NotBlank { place: path.into(), what, at }),
    }
}

/// Makes a file as long as the volume, and that durable with its name.
fn grow(file: &File, path: &Path, size: VolumeSize) -> Result<(), BackingError> {
    let named = |source: io::Error| match source.kind() {
        io::ErrorKind::FileTooLarge | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            BackingError::NoSpace { path: path.to_owned(), needed_bytes: size.bytes(), source }
        }
        _ => BackingError::Io { path: path.to_owned(), source },
    };
    file.set_len(size.bytes()).and_then(|()| file.sync_all()).map_err(named)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(named)
}

/// Gives the backing of a volume that grows the room for `size`, durably; a file is made longer, a block device has it
/// or has not. Never shorter.
pub(crate) fn lengthen(path: &Path, size: VolumeSize) -> Result<(), BackingError> {
    let failed = |source| BackingError::Io { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.file_type().is_block_device() {
        return refuse_smaller(path, size);
    }
    if metadata.len() >= size.bytes() {
        return Ok(());
    }
    grow(&OpenOptions::new().write(true).open(path).map_err(failed)?, path, size)
}

/// Keeps other pools from attaching the same file or device for as long as the returned file is open. It is for no
/// I/O. (That a block device is not mounted either is the business of [`sealblk_block::FileDevice`].)
pub(crate) fn claim(path: &Path) -> Result<File, BackingError> {
    let failed = |source| BackingError::Io { path: path.to_owned(), source };
    // Not to be kept waiting by a named pipe that somebody put there.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BackingError::Gone { path: path.to_owned() },
        _ => failed(error),
    })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(BackingError::InUse { path: path.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Whether two paths lead to the same file or the same block device. One that does not exist is the same as none.
pub(crate) fn is_same(a: &Path, b: &Path) -> Result<bool, BackingError> {
    if a == b {
        return Ok(true);
    }
    Ok(match (identity(a)?, identity(b)?) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    })
}

/// What a file or device is, whatever its name.
#[derive(PartialEq, Eq)]
enum Identity {
    File { device: u64, inode: u64 },
    BlockDevice { number: u64 },
}

fn identity(path: &Path) -> Result<Option<Identity>, BackingError> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() => {
            Ok(Some(Identity::BlockDevice { number: found.rdev() }))
        }
        Ok(found) => Ok(Some(Identity::File { device: found.dev(), inode: found.ino() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BackingError::Io { path: path.to_owned(), source }),
    }
}
