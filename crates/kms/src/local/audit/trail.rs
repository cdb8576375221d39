//! Writing the log: one writer at a time, each record durable before its call returns.
//!
//! A writer that was killed left one of these, which the next one puts right: a line without an anchor (the anchor is
//! brought up to it), part of a line (it is cut off, and a record tells of it), a closed file without a new one. What
//! no crash leaves, such as lines that the anchor knows and the log does not, is not put right but told of by a record
//! too, and the chain goes on from the anchor: `verify` finds it for ever after.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use sealblk_record::LockFile;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::hex;
use super::super::root_key::RootKey;
use super::anchor::{Anchor, Found};
use super::event::Event;
use super::record::{ChainedRecord, Link};
use super::{CURRENT, LINE_BYTES_MAX, closed_name, files};

/// A file that is as long is closed.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Room that must be there before a call begins.
const RESERVE_BYTES: u64 = 64 << 10;

/// The log of a key store, for writing.
pub(in crate::local) struct AuditTrail {
    dir: PathBuf,
    file_bytes_max: u64,
}

/// The end of what is written.
#[derive(Default)]
struct Tail {
    /// Where the next line goes in the current file.
    end: u64,
    /// The last record, if the last whole line is one.
    last: Option<ChainedRecord>,
    /// Whether there is a whole line that is not a record.
    strange: bool,
    /// The last record's line has no end.
    unterminated: bool,
    /// A part of a line, behind `end`.
    torn: Vec<u8>,
}

impl AuditTrail {
    /// The log in the key store's directory.
    pub(in crate::local) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file_bytes_max: FILE_BYTES_MAX }
    }

    /// The same log, closing its files when they are as long as this.
    #[cfg(test)]
    pub(super) fn closing_at(dir: &Path, file_bytes_max: u64) -> Self {
        Self { dir: dir.to_owned(), file_bytes_max }
    }

    /// Where records are written.
    pub(in crate::local) fn path(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }

    /// Sees that a record can be written: before a call does anything, so that a log that cannot be opened, or has no
    /// room, stops it.
    ///
    /// The first call of all makes the anchor here: a log without one is then never one whose first writer was killed.
    pub(in crate::local) fn prepare(&self) -> io::Result<()> {
        if matches!(Anchor::load(&self.dir)?, Found::Absent) && files(&self.dir)?.is_empty() {
            let _lock = self.lock()?;
            if matches!(Anchor::load(&self.dir)?, Found::Absent) && files(&self.dir)?.is_empty() {
                Anchor::at(Link::NONE, None, None)?.store(&self.dir)?;
            }
        }
        let file = self.open()?;
        let end = file.metadata()?.len();
        match fallocate(&file, FallocateFlags::KEEP_SIZE, end, RESERVE_BYTES) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
            // A file system that cannot reserve says so; then the write itself tells.
            _ => Ok(()),
        }
    }

    /// Appends the record of a call, with notes on what was found before it. Durable when it returns. `root` seals.
    pub(in crate::local) fn append(&self, event: &Event, root: Option<&RootKey>) -> io::Result<()> {
        let _lock = self.lock()?;
        let found = Anchor::load(&self.dir)?;
        let mut file = self.open()?;
        let mut tail = Tail::of(&file)?;
        if tail.last.is_none() && tail.end == 0 {
            tail.last = self.last_of_closed()?;
        }
        let anchor = match found {
            Found::Whole(anchor) => Some(anchor),
            Found::Absent | Found::Damaged => None,
        };
        let (mut link, notes) = continuation(&tail, anchor.as_ref(), &file)?;
        if tail.end >= self.file_bytes_max && tail.last.is_some() {
            self.close(&file, &tail, link.sequence)?;
            file = self.open()?;
            tail = Tail { torn: Vec::new(), unterminated: false, end: 0, ..tail };
        }
        let mut lines = if tail.unterminated { b"\n".to_vec() } else { Vec::new() };
        for (name, parameters) in notes {
            link.append(&event.note(name, parameters), &mut lines)?;
        }
        link.append(event, &mut lines)?;
        write_at_end(&file, tail.end, &lines)?;
        Anchor::at(link, anchor.as_ref(), root)?.store(&self.dir)
    }

    /// Waits until nobody else writes or verifies.
    pub(super) fn lock(&self) -> io::Result<LockFile> {
        LockFile::exclusive(self.dir.join("audit.lock")).map_err(io::Error::other)
    }

    fn open(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        // Not in append mode, in which a position is ignored: a part of a line is written over.
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(self.path())
    }

    /// Gives the current file the name of a closed one.
    fn close(&self, file: &File, tail: &Tail, last: u64) -> io::Result<()> {
        if tail.unterminated {
            write_at_end(file, tail.end, b"\n")?;
        } else if !tail.torn.is_empty() {
            write_at_end(file, tail.end, b"")?;
        }
        fs::rename(self.path(), self.dir.join(closed_name(last)))?;
        File::open(&self.dir)?.sync_all()
    }

    /// The last record of the newest closed file.
    fn last_of_closed(&self) -> io::Result<Option<ChainedRecord>> {
        let closed = files(&self.dir)?.into_iter().rfind(|path| !path.ends_with(CURRENT));
        closed.map_or(Ok(None), |path| Ok(Tail::of(&File::open(path)?)?.last))
    }
}

/// Writes `lines` at `end`, cuts off what was behind, and waits until that is stored.
fn write_at_end(file: &File, end: u64, lines: &[u8]) -> io::Result<()> {
    file.write_all_at(lines, end)?;
    let new_end = end + u64::try_from(lines.len()).map_err(io::Error::other)?;
    if file.metadata()?.len() > new_end {
        file.set_len(new_end)?;
    }
    file.sync_data()
}

impl Tail {
    fn of(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let window = u64::try_from(LINE_BYTES_MAX).map_err(io::Error::other)? * 2;
        let start = length.saturating_sub(window);
        let mut bytes = vec![0; usize::try_from(length - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, start)?;
        let (whole, torn) = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => bytes.split_at_checked(newline + 1).unwrap_or_default(),
            None => (&[][..], &bytes[..]),
        };
        if let Some(last) = ChainedRecord::parse(torn) {
            return Ok(Self { end: length, last: Some(last), unterminated: true, ..Self::default() });
        }
        let line = whole.strip_suffix(b"\n").and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next());
        let last = line.and_then(ChainedRecord::parse);
        let end = length - u64::try_from(torn.len()).map_err(io::Error::other)?;
        Ok(Self {
            end,
            strange: line.is_some() && last.is_none(),
            last,
            unterminated: false,
            torn: torn.to_vec(),
        })
    }
}

type Note = (&'static str, Value);

/// Where the chain goes on, and what there is to tell about the place.
fn continuation(tail: &Tail, anchor: Option<&Anchor>, file: &File) -> io::Result<(Link, Vec<Note>)> {
    let mut notes = Vec::new();
    let end = tail.last.as_ref().map(|record| record.link);
    let link = match (end, anchor.map(Anchor::last)) {
        // Killed between a line and its anchor.
        (Some(end), Some(anchor)) if anchor.sequence.checked_add(1) == Some(end.sequence) => end,
        (Some(end), Some(anchor)) if end.sequence > anchor.sequence => {
            let from = anchor.sequence.saturating_add(1);
            notes.push(("AuditLogUnanchored", json!({ "from": from, "to": end.sequence })));
            end
        }
        (end, Some(anchor)) => {
            let present = end.map_or(0, |end| end.sequence);
            if present < anchor.sequence && !tail.strange {
                let from = present.saturating_add(1);
                notes.push(("AuditLogShortened", json!({ "from": from, "to": anchor.sequence })));
            }
            // Also if the last record has the right number and another hash: the anchor is the one to believe.
            anchor
        }
        (Some(end), None) => {
            notes.push(("AuditLogAnchorLost", json!({ "last": end.sequence })));
            end
        }
        (None, None) => Link::NONE,
    };
    if link == Link::NONE && tail.strange {
        let (bytes, sha256) = (tail.end, hex::encode(&digest(file, tail.end)?));
        notes.insert(0, ("AuditLogBegun", json!({ "bytes": bytes, "sha256": sha256 })));
    }
    if !tail.torn.is_empty() {
        let (bytes, sha256) = (tail.torn.len(), hex::encode(&Sha256::digest(&tail.torn)));
        notes.push(("AuditLogRecovered", json!({ "bytes": bytes, "sha256": sha256 })));
    }
    Ok((link, notes))
}

/// The SHA-256 of the first `length` bytes.
fn digest(file: &File, length: u64) -> io::Result<[u8; 32]> {
    let (mut hash, mut chunk, mut at) = (Sha256::new(), vec![0; 64 << 10], 0);
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(usize::MAX);
        let room = chunk.len().min(left);
        let part = chunk.get_mut(..room).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hash.update(&*part);
        at += u64::try_from(room).map_err(io::Error::other)?;
    }
    Ok(hash.finalize().into())
}
