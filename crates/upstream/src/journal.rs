//! What the server has acknowledged and nobody knows to be durable: kept, in order, until a flush covers it.
//!
//! A server that is killed loses what it had not flushed, and NBD has no way to ask the one that comes after
//! it. So changes are kept here and made again after every lost connection. A change that was forced through
//! (FUA) is kept too if older ones are: made again without it, they would put old bytes over its own.

use std::sync::Arc;

use crate::session::ConnectionId;

/// What a change weighs beside its data.
const ENTRY_BYTES: usize = 128;

/// A change, as it is made again.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) offset: u64,
    pub(crate) content: Content,
}

/// What is there after a change.
#[derive(Clone)]
pub(crate) enum Content {
    /// These bytes.
    Data(Arc<[u8]>),
    /// This many zeros (WRITE_ZEROES, with or without NO_HOLE).
    Zeros { bytes: u32, no_hole: bool },
    /// Nothing that matters, for this many bytes (TRIM).
    Trimmed { bytes: u32 },
}

impl std::fmt::Debug for Content {
    /// Lengths only: the bytes are a guest's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(data) => write!(f, "Data({} bytes)", data.len()),
            Self::Zeros { bytes, no_hole } => write!(f, "Zeros({bytes} bytes, no_hole: {no_hole})"),
            Self::Trimmed { bytes } => write!(f, "Trimmed({bytes} bytes)"),
        }
    }
}

impl Change {
    /// How many bytes it changes.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.content {
            Content::Data(data) => data.len() as u64,
            Content::Zeros { bytes, .. } | Content::Trimmed { bytes } => u64::from(*bytes),
        }
    }

    /// The byte after the last one.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes())
    }

    fn weight(&self) -> usize {
        ENTRY_BYTES + if let Content::Data(data) = &self.content { data.len() } else { 0 }
    }
}

/// Acknowledged changes, in the order of their acknowledgements, each with the connection it was made on.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    next: u64,
    entries: Vec<(u64, ConnectionId, Change)>,
    held_bytes: usize,
}

impl Journal {
    /// Keeps `change`. `forced`: it is durable already.
    pub(crate) fn note(&mut self, by: ConnectionId, change: Change, forced: bool) {
        if forced && self.entries.is_empty() {
            return;
        }
        self.held_bytes += change.weight();
        self.entries.push((self.next, by, change));
        self.next += 1;
    }

    /// A mark: what is noted from now on comes after it.
    pub(crate) fn mark(&self) -> u64 {
        self.next
    }

    /// A flush on the connection `by`, asked for when the mark was `mark`, has succeeded.
    pub(crate) fn forget(&mut self, by: ConnectionId, mark: u64) {
        self.entries.retain(|(number, on, _)| *number >= mark || *on != by);
        self.held_bytes = self.entries.iter().map(|(_, _, change)| change.weight()).sum();
    }

    /// Every change is durable.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.held_bytes = 0;
    }

    /// Memory held, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The connections that changes from before `mark` were made on.
    pub(crate) fn dirty_before(&self, mark: u64) -> Vec<ConnectionId> {
        let before = self.entries.iter().take_while(|(number, ..)| *number < mark);
        let mut dirty: Vec<ConnectionId> = before.map(|(_, on, _)| *on).collect();
        dirty.sort_unstable();
        dirty.dedup();
        dirty
    }

    /// All changes, in order; data is shared, not copied.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.entries.iter().map(|(_, _, change)| change.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConnectionId = ConnectionId(1);
    const B: ConnectionId = ConnectionId(2);

    fn write(offset: u64) -> Change {
        Change { offset, content: Content::Data(vec![0; 512].into()) }
    }

    #[test]
    fn a_flush_covers_its_own_connection_up_to_its_mark() {
        let mut journal = Journal::default();
        journal.note(A, write(0), false);
        journal.note(B, write(512), false);
        let mark = journal.mark();
        journal.note(A, write(1024), false);
        assert_eq!(journal.dirty_before(mark), [A, B]);
        journal.forget(A, mark);
        assert_eq!(journal.dirty_before(mark), [B]);
        let left: Vec<u64> = journal.changes().iter().map(|change| change.offset).collect();
        assert_eq!(left, [512, 1024]);
        journal.forget(B, mark);
        assert_eq!(journal.dirty_before(journal.mark()), [A]);
        journal.forget(A, journal.mark());
        assert_eq!(journal.held_bytes(), 0);
    }

    #[test]
    fn a_forced_write_over_a_kept_one_is_kept_too() {
        let mut journal = Journal::default();
        journal.note(A, write(0), true);
        assert!(journal.changes().is_empty(), "durable, and nothing to come before it");
        journal.note(A, write(0), false);
        journal.note(A, write(0), true);
        assert_eq!(journal.changes().len(), 2);
    }
}
