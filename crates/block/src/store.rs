//! A path that can hold a volume's bytes, opened: a regular file or a block device, and nothing else.
//!
//! Used by [`crate::FileDevice`] and by [`crate::blank`]; knows sizes, kinds and the alignment of direct
//! I/O, does no I/O itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::error::Operation;
use crate::sector::SECTOR_BYTES;

/// `f_type` of tmpfs (`<linux/magic.h>`): its files are memory, so that no access to them blocks.
const TMPFS_MAGIC: i128 = 0x0102_1994;

/// Alignment of direct I/O where the kernel does not say (before 6.1, or network file systems).
const ASSUMED_DIRECT_UNIT: u32 = 4096;

/// Why a path cannot serve as a backing store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel's answer to an attempt on it: absent, not permitted, broken.
    #[error("{}: {operation} failed", path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// What was being done.
        operation: Operation,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A block device that is mounted or used by somebody else exclusively.
    #[error("{} is in use (mounted, or part of another device)", path.display())]
    InUse {
        /// The path as given.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is a {kind}; only a regular file or a block device can hold a volume", path.display())]
    WrongKind {
        /// The path as given.
        path: PathBuf,
        /// What it is, in words.
        kind: &'static str,
    },
    /// Smaller than what is to be found in it.
    #[error("{} has {found_bytes} bytes, but {expected_bytes} are expected: it was truncated", path.display())]
    Truncated {
        /// The path as given.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The size that it should have at least.
        expected_bytes: u64,
    },
    /// Its size, or the size asked for, is not a multiple of what can be read and written.
    #[error("{}: {bytes} bytes are not a whole number of {unit_bytes}-byte blocks", path.display())]
    NotWholeUnits {
        /// The path as given.
        path: PathBuf,
        /// The size.
        bytes: u64,
        /// The unit that should divide it.
        unit_bytes: u32,
    },
}

/// What a path turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A regular file. `in_memory`: on tmpfs.
    File { in_memory: bool },
    /// A block device. `fast_zero`: it zeroes ranges without being sent zeros.
    BlockDevice { fast_zero: bool },
}

/// How to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// An open store.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) file: File,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
    /// What a block device reads and writes at once; 512 for files.
    pub(crate) logical_block_bytes: u32,
}

impl Store {
    /// Opens `path`. `exclusive`: refuse a block device that anybody else holds exclusively.
    pub(crate) fn open(path: &Path, access: Access, exclusive: bool) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io { path: path.to_owned(), operation: Operation::Open, source };
        // Looked at before it is opened: opening a fifo waits for its other end.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if let Some(kind) = refused(kind) {
            return Err(StoreError::WrongKind { path: path.to_owned(), kind });
        }
        let exclusive = if exclusive && kind.is_block_device() { OFlags::EXCL } else { OFlags::empty() };
        let flags = (OFlags::NONBLOCK | exclusive).bits().cast_signed();
        let opened =
            OpenOptions::new().read(true).write(access == Access::ReadWrite).custom_flags(flags).open(path);
        let mut file = opened.map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => StoreError::InUse { path: path.to_owned() },
            _ => failed(source),
        })?;
        // And again on what was opened: the path may have changed hands meanwhile.
        let kind = file.metadata().map_err(failed)?.file_type();
        if let Some(kind) = refused(kind) {
            return Err(StoreError::WrongKind { path: path.to_owned(), kind });
        }
        let (kind, logical_block_bytes) = if kind.is_block_device() {
            let logical = rustix::fs::ioctl_blksszget(&file).map_err(|errno| failed(errno.into()))?;
            (Kind::BlockDevice { fast_zero: zeroes_fast(&file).unwrap_or(false) }, logical)
        } else {
            let file_system = rustix::fs::fstatfs(&file).map_err(|errno| failed(errno.into()))?;
            (Kind::File { in_memory: i128::from(file_system.f_type) == TMPFS_MAGIC }, SECTOR_BYTES as u32)
        };
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        clear_nonblock(&file).map_err(failed)?;
        Ok(Self { file, kind, bytes, logical_block_bytes })
    }

    /// Turns the page cache off for this descriptor and says what offsets and lengths must be multiples of.
    pub(crate) fn set_direct(&self) -> io::Result<u32> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        rustix::fs::fcntl_setfl(&self.file, flags | OFlags::DIRECT)?;
        if let Kind::BlockDevice { .. } = self.kind {
            return Ok(self.logical_block_bytes);
        }
        let stat = rustix::fs::statx(&self.file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        let told = stat.map_or(0, |stat| {
            let known = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
            if known { stat.stx_dio_offset_align } else { 0 }
        });
        Ok(if told.is_power_of_two() { told.max(SECTOR_BYTES as u32) } else { ASSUMED_DIRECT_UNIT })
    }
}

/// The name of a kind of file that cannot be a store.
fn refused(kind: std::fs::FileType) -> Option<&'static str> {
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("directory")
    } else if kind.is_fifo() {
        Some("named pipe")
    } else if kind.is_char_device() {
        Some("character device")
    } else if kind.is_socket() {
        Some("socket")
    } else {
        Some("special file")
    }
}

/// O_NONBLOCK only kept the opening from waiting; on some devices it changes what reads return.
fn clear_nonblock(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - OFlags::NONBLOCK)?)
}

/// Whether a block device has a command for zeroing, from sysfs; a partition's is its disk's.
fn zeroes_fast(file: &File) -> Option<bool> {
    let device = rustix::fs::fstat(file).ok()?.st_rdev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let directory = format!("/sys/dev/block/{major}:{minor}");
    let limit = ["queue", "../queue"].iter().find_map(|queue| {
        std::fs::read_to_string(format!("{directory}/{queue}/write_zeroes_max_bytes")).ok()
    })?;
    Some(limit.trim() != "0")
}
