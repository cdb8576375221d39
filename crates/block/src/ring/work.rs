//! What one operation asks of the kernel, as a submission entry, and what the kernel's answer means for it.
//!
//! Safe code: building an entry is harmless; pushing it is what [`super`] has to answer for.

use std::io;

use io_uring::{opcode, squeue, types};

use crate::buffer::Buffer;

/// The registered file: the ring knows exactly one.
const FILE: types::Fixed = types::Fixed(0);

/// `RWF_DSYNC` of `<linux/fs.h>`: the write is durable when it completes.
const RWF_DSYNC: i32 = 0x2;

/// The longest transfer of one entry, in bytes: below the kernel's limit (`MAX_RW_COUNT`) and a multiple
/// of every unit.
const MAX_TRANSFER_BYTES: usize = 1 << 30;

/// What an operation asks of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// Fill the buffer from byte `done` on; `aside`: in a thread of the kernel's from the start.
    Read { offset: u64, done: usize, aside: bool },
    /// Write the buffer from byte `done` on.
    Write { offset: u64, done: usize, manner: Manner },
    /// `fdatasync`.
    Sync,
    /// `fallocate` with these mode bits.
    Allocate { offset: u64, len: u64, mode: i32 },
}

/// How a write is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Manner {
    /// As the kernel likes.
    Plain,
    /// In a thread of the kernel's from the start.
    Aside,
    /// It is durable when it completes.
    Durable,
}

/// The flags of an entry that is done here, or aside.
fn flags(aside: bool) -> squeue::Flags {
    if aside { squeue::Flags::ASYNC } else { squeue::Flags::empty() }
}

impl Work {
    /// Whether it goes to the disk when the kernel gets it, and at the pace that the disk likes. What a thread of the
    /// kernel's copies does not.
    pub(super) fn is_paced(self) -> bool {
        match self {
            Self::Read { aside, .. } => !aside,
            Self::Write { manner, .. } => manner != Manner::Aside,
            Self::Sync | Self::Allocate { .. } => false,
        }
    }

    /// Whether its failure may be the failure of a sync.
    pub(super) fn syncs(self) -> bool {
        matches!(self, Self::Sync | Self::Write { manner: Manner::Durable, .. })
    }

    /// The submission entry for what is left to do. The kernel will use the buffer's memory.
    pub(super) fn entry(self, buffer: &mut Option<Buffer>) -> squeue::Entry {
        match self {
            Self::Read { offset, done, aside } => {
                let rest = rest_of(buffer, done);
                let read = opcode::Read::new(FILE, rest.as_mut_ptr(), rest.len() as u32);
                read.offset(offset + done as u64).build().flags(flags(aside))
            }
            Self::Write { offset, done, manner } => {
                let rest = rest_of(buffer, done);
                let sync = if manner == Manner::Durable { RWF_DSYNC } else { 0 };
                let write = opcode::Write::new(FILE, rest.as_ptr(), rest.len() as u32);
                let entry = write.offset(offset + done as u64).rw_flags(sync).build();
                entry.flags(flags(manner == Manner::Aside))
            }
            Self::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Self::Allocate { offset, len, mode } => {
                opcode::Fallocate::new(FILE, len).offset(offset).mode(mode).build()
            }
        }
    }

    /// What a completion's result means; `len` is the buffer's.
    pub(super) fn progress(&mut self, result: i32, len: usize, unit_bytes: usize) -> Progress {
        let moved = match usize::try_from(result) {
            Ok(moved) => moved,
            Err(_) if result == -rustix::io::Errno::INTR.raw_os_error() => return Progress::Again,
            Err(_) => return Progress::Finished(Err(io::Error::from_raw_os_error(-result))),
        };
        let (done, none_moved) = match self {
            Self::Read { done, .. } => (done, io::ErrorKind::UnexpectedEof),
            Self::Write { done, .. } => (done, io::ErrorKind::WriteZero),
            Self::Sync | Self::Allocate { .. } => return Progress::Finished(Ok(())),
        };
        if *done + moved >= len {
            return Progress::Finished(Ok(()));
        }
        // O_DIRECT must go on at a whole unit; the bytes of a partial one are moved once more.
        let resume_at = (*done + moved) / unit_bytes * unit_bytes;
        if resume_at <= *done {
            return Progress::Finished(Err(none_moved.into()));
        }
        *done = resume_at;
        Progress::Again
    }
}

/// The bytes of a transfer that the next entry moves.
fn rest_of(buffer: &mut Option<Buffer>, done: usize) -> &mut [u8] {
    let rest = &mut buffer.as_mut().expect("a transfer has a buffer")[done..];
    let len = rest.len().min(MAX_TRANSFER_BYTES);
    &mut rest[..len]
}

/// What follows from a completion.
pub(super) enum Progress {
    /// The operation has this outcome.
    Finished(io::Result<()>),
    /// The work was moved on; push it again.
    Again,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(done: usize) -> Work {
        Work::Read { offset: 0, done, aside: false }
    }

    #[test]
    fn a_short_transfer_goes_on_at_the_last_whole_unit() {
        let mut work = read(0);
        assert!(matches!(work.progress(9000, 16384, 4096), Progress::Again));
        assert_eq!(work, read(8192));
        assert!(matches!(work.progress(8192, 16384, 4096), Progress::Finished(Ok(()))));
    }

    #[test]
    fn a_transfer_that_does_not_get_on_is_an_error_and_not_a_loop() {
        for (mut work, kind) in [
            (read(4096), io::ErrorKind::UnexpectedEof),
            (Work::Write { offset: 0, done: 4096, manner: Manner::Plain }, io::ErrorKind::WriteZero),
        ] {
            for moved in [0, 4095] {
                let Progress::Finished(Err(error)) = work.progress(moved, 16384, 4096) else {
                    panic!("{work:?}")
                };
                assert_eq!(error.kind(), kind);
            }
        }
    }

    #[test]
    fn an_interrupted_transfer_is_repeated_and_an_error_is_kept() {
        let mut work = read(512);
        assert!(matches!(work.progress(-4, 1024, 512), Progress::Again));
        assert_eq!(work, read(512));
        let Progress::Finished(Err(error)) = work.progress(-5, 1024, 512) else { panic!("{work:?}") };
        assert_eq!(error.raw_os_error(), Some(5));
    }
}
