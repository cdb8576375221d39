//! What is on a store before a volume is made of it, and how to make it blank (design §4.3 needs zeros).
//!
//! Called by `volume create` on an existing file or block device: [`inspect`] reads and names what it finds,
//! [`erase`] makes everything zero. Both block, report progress, and open a block device exclusively: one
//! that is mounted, or part of another device, is refused by the kernel. [`inspect_device`] and [`erase_device`] do the
//! same to a store that is reached otherwise.

mod device;
mod signature;

pub use device::{erase_device, inspect_device};

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::error::Operation;
use crate::store::{Access, Kind, Store, StoreError};

/// Bytes handled between two reports of progress.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes zeroed by one call to the kernel, so that progress shows.
const ZERO_BYTES: u64 = 1 << 30;

/// What [`inspect`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Every byte is zero.
    Blank,
    /// Something is there.
    Found {
        /// Its name, `ext4 file system` for example; `data` if no signature is known.
        what: String,
        /// The byte offset of the signature, or of the first byte that is not zero.
        at: u64,
    },
}

/// Reads the regular file or block device at `path` until something other than zeros is found, holes
/// skipped. `progress` hears the bytes looked at and the size.
pub fn inspect(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Content, StoreError> {
    let store = Store::open(path, Access::Read, true)?;
    let failed = |source| StoreError::Io { path: path.to_owned(), operation: Operation::Read, source };
    if let Some((what, at)) = signature::identify(&store.file, store.bytes).map_err(failed)? {
        return Ok(Content::Found { what: what.to_owned(), at });
    }
    let first = first_nonzero(&store, progress).map_err(failed)?;
    Ok(first.map_or(Content::Blank, |at| Content::Found { what: "data".to_owned(), at }))
}

/// Makes every byte of the regular file or block device at `path` zero, durably, and gives its space back
/// where the store can. `progress` hears the bytes done and the size.
pub fn erase(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
    let store = Store::open(path, Access::ReadWrite, true)?;
    let failed = |source| StoreError::Io { path: path.to_owned(), operation: Operation::Zero, source };
    let mut at = 0;
    progress(0, store.bytes);
    while at < store.bytes {
        let len = ZERO_BYTES.min(store.bytes - at);
        zero(&store, at, len, &mut |done| progress(at + done, store.bytes)).map_err(failed)?;
        at += len;
        progress(at, store.bytes);
    }
    store.file.sync_all().map_err(failed)
}

/// The offset of the first byte that is not zero.
fn first_nonzero(store: &Store, progress: &mut dyn FnMut(u64, u64)) -> io::Result<Option<u64>> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < store.bytes {
        progress(at, store.bytes);
        at = next_data(store, at)?;
        let len = store.bytes.saturating_sub(at).min(PIECE_BYTES as u64) as usize;
        let piece = &mut piece[..len];
        store.file.read_exact_at(piece, at)?;
        if let Some(first) = piece.iter().position(|&byte| byte != 0) {
            return Ok(Some(at + first as u64));
        }
        at += len as u64;
    }
    progress(store.bytes, store.bytes);
    Ok(None)
}

/// Where data may begin at or after `at`: at `at` where the store cannot tell.
fn next_data(store: &Store, at: u64) -> io::Result<u64> {
    if let Kind::BlockDevice { .. } = store.kind {
        return Ok(at);
    }
    match rustix::fs::seek(&store.file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data),
        Err(Errno::NXIO) => Ok(store.bytes),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
        Err(errno) => Err(errno.into()),
    }
}

/// Zeroes a range by the cheapest way that guarantees zeros: unmapping, a command, or writing them.
fn zero(store: &Store, at: u64, len: u64, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero_range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    for way in [punch, zero_range] {
        match rustix::fs::fallocate(&store.file, way, at, len) {
            Ok(()) => return Ok(()),
            // EINVAL: a block device whose size is not whole logical blocks at its end.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    write_zeros(&store.file, at, len, progress)
}

fn write_zeros(file: &File, at: u64, len: u64, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let zeros = vec![0; PIECE_BYTES];
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(PIECE_BYTES as u64) as usize;
        file.write_all_at(&zeros[..piece], at + done)?;
        done += piece as u64;
        progress(done);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
