//! The block stream: blocks of a volume or a snapshot from the process that has them to the one that wants them, over
//! a connected Unix socket.
//!
//! Two pairs speak it. `snapshot create` (client) reads a volume's frozen content from the process that serves the volume;
//! the process that serves (client) reads the blocks of a snapshot from its restore helper. Either side may
//! be taken over by somebody hostile: what it sends is checked, bounded and never waited for without end.
//!
//! Integers are little-endian. Each side first sends a hello and then reads the other's:
//!
//! | offset | bytes | hello |
//! |---|---|---|
//! | 0 | 8 | `SBLKBLKS` |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | bytes of a block: 524288 |
//! | 16 | 8 | server: size in bytes of what its blocks are of, above 0; client: 0 |
//! | 24 | 4 | server: how many requests may be unanswered, above 0; client: 0 |
//! | 28 | 4 | 0 |
//!
//! Then the client sends requests, several at once if it likes; each is answered once, in any order:
//!
//! | offset | bytes | request |
//! |---|---|---|
//! | 0 | 4 | number, of no other unanswered request |
//! | 4 | 4 | 1: next; 2: read; 3: release; 4: complete |
//! | 8 | 8 | next, read, release: a block |
//! | 16 | 8 | release: how many blocks, at most 1024; else 0 |
//!
//! | offset | bytes | reply |
//! |---|---|---|
//! | 0 | 4 | number of the request |
//! | 4 | 4 | 0: done; 1: a run; 2: none; 3: data; 4: zeros; 5: error; 6: over, the reply to no request, with the number 0 |
//! | 8 | 8 | run: its first block |
//! | 16 | 8 | run: the first block behind it |
//! | 24 | 4 | how many bytes follow: data: as many as the block has; error, over: a message in UTF-8, at most 1024; else 0 |
//! | 28 | 4 | run: 1 if the blocks are still to be taken from the snapshot that the volume was made from; error: its kind; else 0 |
//!
//! **next** asks for the first run at or after a block that is to be looked at; what lies between is known to the client.
//! **read** asks for a block. **release** says that blocks will not be asked for again. **complete**, the last request, says that the
//! client has made of them what it wanted; a client that goes away without it has given up. **over** is the last
//! that a server says: it has given up, and why.

mod client;
mod server;
mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::ops::{Deref, Range};

pub(crate) use client::{BlockStream, StreamedBlock};
pub(crate) use server::{Ended, Patience, serve};

/// The most blocks in one release, and in one run that a server looks for.
pub(crate) const MOST_BLOCKS: u64 = 1024;

/// Blocks that are to be looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Which; not empty.
    pub(crate) blocks: Range<u64>,
    /// They are not here: they hold what the snapshot that the volume was made from holds. They can be read all the same.
    pub(crate) in_origin: bool,
}

/// A block on its way to a client.
pub(crate) enum ServedBlock<B> {
    /// Zeros throughout.
    Zero,
    /// Its bytes: exactly as many as it has.
    Data(B),
}

/// What a server has to give. Its futures run on the thread that serves; several at once.
pub(crate) trait ServeBlocks: 'static {
    /// The bytes of a block.
    type Data: Deref<Target = [u8]>;

    /// Size in bytes of what the blocks are of; the last may be shorter than the others.
    fn size_bytes(&self) -> u64;

    /// The first run at or after `from`, which lies inside.
    async fn next(&self, from: u64) -> io::Result<Option<Run>>;

    /// Block `index`, which lies inside.
    async fn read(&self, index: u64) -> io::Result<ServedBlock<Self::Data>>;

    /// The client will not ask for these again; they lie inside.
    async fn release(&self, blocks: Range<u64>) -> io::Result<()>;

    /// The client has what it wanted. Nothing else is being asked for.
    async fn complete(&self) -> io::Result<()>;
}
