//! A small NBD client that keeps a number of requests in flight and checks every reply: the load of
//! `sealblk bench`. One blocking thread; a batch of replies is received, and a batch of requests sent, at once.
//!
//! Every 4 KiB block that it writes begins with a stamp of the block's own offset, and every read must begin
//! with the right one: a server that is fast because it answers with something else is no measurement.
//! Not a client for anything else: one connection, simple replies, no flags.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sealblk_nbd::wire::{
    Fields, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    client_flag, command, info, option, option_reply,
};

/// The unit that carries a stamp.
const STAMPED_BYTES: usize = 4096;
/// What is received at once: large enough for a batch, small enough to stay in the second-level cache.
const INBOX_BYTES: usize = 256 << 10;
/// Payloads from here on are sent from where they are; copying smaller ones saves a system call each.
const GATHERED_BYTES: usize = 32 << 10;
/// A server that says nothing for so long will never.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest depth: a slot's number is the low byte of its cookies.
const MAX_DEPTH: usize = 256;

/// What to ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Work {
    /// Write; else read.
    pub(crate) writes: bool,
    /// At random blocks; else one after the other.
    pub(crate) random: bool,
    /// Bytes of each request: a multiple of 4096.
    pub(crate) block_bytes: usize,
    /// Requests in flight, 1 to 256.
    pub(crate) depth: usize,
}

/// When to stop asking.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// After so long.
    Time(Duration),
    /// After so many requests.
    Requests(u64),
}

/// What happened.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// From the first request to the last reply.
    pub(crate) elapsed: Duration,
    /// How long each request took; with one request in flight only.
    pub(crate) latencies: Vec<Duration>,
}

/// Why a load came to no end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The socket failed, or was silent for too long.
    #[error("talking to the server")]
    Socket(#[from] io::Error),
    /// Not what the protocol says.
    #[error("the server's {0} is not what the protocol says")]
    Protocol(&'static str),
    /// The server answered with an error.
    #[error("the server answered a request at byte {offset} with error {error}")]
    Answer {
        /// The request's first byte.
        offset: u64,
        /// The NBD error number.
        error: u32,
    },
    /// Other bytes than were written.
    #[error("a read at byte {offset} returned other data than was written there")]
    Data {
        /// The request's first byte.
        offset: u64,
    },
    /// Somebody wants it to stop.
    #[error("interrupted")]
    Interrupted,
}

/// A connection to a server, past its negotiation.
pub(crate) struct Client<'a> {
    stream: UnixStream,
    inbox: Inbox,
    outbox: Vec<u8>,
    size_bytes: u64,
    /// State of the random offsets: xorshift64.
    random: u64,
    /// How many requests were ever sent.
    serial: u64,
    interrupted: &'a AtomicBool,
}

/// A request that may be in flight, with the data that it writes.
struct Slot {
    cookie: u64,
    offset: u64,
    sent: Instant,
    payload: Vec<u8>,
}

impl<'a> Client<'a> {
    /// Connects and chooses the server's only export. `interrupted` ends a load early, with an error.
    pub(crate) fn connect(socket: &Path, interrupted: &'a AtomicBool) -> Result<Self, LoadError> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self {
            stream,
            inbox: Inbox::new(),
            outbox: Vec::new(),
            size_bytes: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            serial: 0,
            interrupted,
        };
        client.negotiate()?;
        Ok(client)
    }

    /// Writes every block of the export once, which stamps it.
    pub(crate) fn fill(&mut self) -> Result<Measured, LoadError> {
        let work = Work { writes: true, random: false, block_bytes: 128 << 10, depth: 8 };
        let requests = self.size_bytes / 131_072;
        self.run(work, Limit::Requests(requests))
    }

    /// Does `work` until `limit`, then waits for what is in flight.
    ///
    /// Reads only where the export was filled. Leaves the connection ready for the next load, unless it fails.
    pub(crate) fn run(&mut self, work: Work, limit: Limit) -> Result<Measured, LoadError> {
        assert!((1..=MAX_DEPTH).contains(&work.depth) && work.block_bytes.is_multiple_of(STAMPED_BYTES));
        let mut walk = Walk { work, blocks: self.size_bytes / work.block_bytes as u64, next: 0 };
        let payload = if work.writes { noise(work.block_bytes) } else { Vec::new() };
        let began = Instant::now();
        let mut slots: Vec<Slot> = (0..work.depth)
            .map(|_| Slot { cookie: 0, offset: 0, sent: began, payload: payload.clone() })
            .collect();
        let mut measured = Measured { requests: 0, elapsed: Duration::ZERO, latencies: Vec::new() };
        let (mut issued, mut now) = (0, began);
        let goes_on = |issued: u64, now: Instant| match limit {
            Limit::Time(time) => now.duration_since(began) < time,
            Limit::Requests(requests) => issued < requests,
        };
        for (number, slot) in slots.iter_mut().enumerate() {
            if goes_on(issued, now) {
                self.issue(&mut walk, slot, number)?;
                issued += 1;
            }
        }
        while measured.requests < issued {
            let number = self.reply(work, &mut slots)?;
            now = Instant::now();
            let slot = slots.get_mut(number).ok_or(LoadError::Protocol("reply"))?;
            measured.requests += 1;
            if work.depth == 1 {
                measured.latencies.push(now.duration_since(slot.sent));
            }
            if goes_on(issued, now) {
                self.issue(&mut walk, slot, number)?;
                issued += 1;
            }
        }
        measured.elapsed = now.duration_since(began);
        Ok(measured)
    }

    /// Queues the next request in `slot`.
    fn issue(&mut self, walk: &mut Walk, slot: &mut Slot, number: usize) -> Result<(), LoadError> {
        self.serial += 1;
        slot.cookie = self.serial << 8 | number as u64;
        slot.offset = walk.step(&mut self.random);
        for (block, bytes) in slot.payload.chunks_exact_mut(STAMPED_BYTES).enumerate() {
            let offset = slot.offset + (block * STAMPED_BYTES) as u64;
            bytes[..8].copy_from_slice(&stamp(offset));
        }
        slot.sent = Instant::now();
        let kind = if walk.work.writes { command::WRITE } else { command::READ };
        let length = u32::try_from(walk.work.block_bytes).expect("a request has at most 32 MiB");
        let header = [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &0_u16.to_be_bytes(),
            &kind.to_be_bytes(),
            &slot.cookie.to_be_bytes(),
            &slot.offset.to_be_bytes(),
            &length.to_be_bytes(),
        ];
        header.iter().for_each(|field| self.outbox.extend_from_slice(field));
        if slot.payload.len() < GATHERED_BYTES {
            self.outbox.extend_from_slice(&slot.payload);
            Ok(())
        } else {
            send(&self.stream, &mut self.outbox, &slot.payload)
        }
    }

    /// Takes the next reply and judges it; the number of its slot.
    fn reply(&mut self, work: Work, slots: &mut [Slot]) -> Result<usize, LoadError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(LoadError::Interrupted);
        }
        let mut fields = Fields::new(self.receive(SIMPLE_REPLY_BYTES)?);
        let (magic, error, cookie) = (fields.u32(), fields.u32(), fields.u64());
        let cookie = cookie.ok_or(LoadError::Protocol("reply"))?;
        let number = usize::from(cookie.to_le_bytes()[0]);
        // Every cookie is used once, and a slot has one at a time: an answer to anything else is found out.
        let slot = slots.get_mut(number).filter(|slot| slot.cookie == cookie);
        let slot = slot.filter(|_| magic == Some(SIMPLE_REPLY_MAGIC)).ok_or(LoadError::Protocol("reply"))?;
        slot.cookie = 0;
        let offset = slot.offset;
        match error {
            Some(0) => {}
            other => return Err(LoadError::Answer { offset, error: other.unwrap_or_default() }),
        }
        if !work.writes {
            if self.receive(8)? != stamp(offset) {
                return Err(LoadError::Data { offset });
            }
            self.skip(work.block_bytes - 8)?;
        }
        Ok(number)
    }

    /// The next `count` bytes, a few. What is queued is sent before anything is waited for.
    fn receive(&mut self, count: usize) -> Result<&[u8], LoadError> {
        while self.inbox.unread().len() < count {
            send(&self.stream, &mut self.outbox, &[])?;
            self.inbox.fill(&mut self.stream)?;
        }
        Ok(self.inbox.take(count))
    }

    /// Passes over `count` bytes of data.
    fn skip(&mut self, mut count: usize) -> Result<(), LoadError> {
        loop {
            let here = count.min(self.inbox.unread().len());
            self.inbox.take(here);
            count -= here;
            if count == 0 {
                return Ok(());
            }
            self.inbox.fill(&mut self.stream)?;
        }
    }

    /// The fixed newstyle negotiation (doc/proto.md): greeting, GO for the empty name, its facts.
    fn negotiate(&mut self) -> Result<(), LoadError> {
        let mut greeting = Fields::new(self.receive(18)?);
        if (greeting.u64(), greeting.u64()) != (Some(MAGIC), Some(OPTION_MAGIC)) {
            return Err(LoadError::Protocol("greeting"));
        }
        let flags = client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES;
        // The option's data: an empty name and no wish for further facts.
        let go = [
            &flags.to_be_bytes()[..],
            &OPTION_MAGIC.to_be_bytes(),
            &option::GO.to_be_bytes(),
            &6_u32.to_be_bytes(),
            &[0; 6],
        ];
        self.outbox.extend(go.concat());
        loop {
            let mut header = Fields::new(self.receive(20)?);
            let (magic, asked) = (header.u64(), header.u32());
            let (kind, length) = (header.u32(), header.u32().unwrap_or_default());
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let rightly = magic == Some(OPTION_REPLY_MAGIC) && asked == Some(option::GO);
            if !rightly || length > STAMPED_BYTES {
                return Err(LoadError::Protocol("answer to GO"));
            }
            let mut data = Fields::new(self.receive(length)?);
            match kind {
                Some(option_reply::ACK) => return Ok(()),
                Some(option_reply::INFO) if data.u16() == Some(info::EXPORT) => {
                    self.size_bytes = data.u64().ok_or(LoadError::Protocol("answer to GO"))?;
                }
                Some(option_reply::INFO) => {}
                _ => return Err(LoadError::Protocol("answer to GO")),
            }
        }
    }
}

/// Sends what is queued and `payload` behind it, and empties the queue.
fn send(mut stream: &UnixStream, queue: &mut Vec<u8>, payload: &[u8]) -> Result<(), LoadError> {
    let (mut head, mut rest) = (queue.as_slice(), payload);
    while !head.is_empty() || !rest.is_empty() {
        let sent = match stream.write_vectored(&[IoSlice::new(head), IoSlice::new(rest)]) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        let of_head = sent.min(head.len());
        head = head.split_at(of_head).1;
        rest = rest.split_at(sent - of_head).1;
    }
    queue.clear();
    Ok(())
}

/// Where requests go.
struct Walk {
    work: Work,
    blocks: u64,
    next: u64,
}

impl Walk {
    /// The next request's first byte.
    fn step(&mut self, random: &mut u64) -> u64 {
        let block = if self.work.random {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            *random % self.blocks
        } else {
            let block = self.next;
            self.next = (block + 1) % self.blocks;
            block
        };
        block * self.work.block_bytes as u64
    }
}

/// What the block at `offset` begins with: never eight zeros, which is what an unwritten block has.
fn stamp(offset: u64) -> [u8; 8] {
    (offset ^ 0x5eb1_0c5e_b10c_5eb1).to_le_bytes()
}

/// Bytes that nothing can compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56).to_le_bytes()[0]
    });
    words.by_ref().take(len).collect()
}

/// Bytes received and not looked at yet.
struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn new() -> Self {
        Self { bytes: vec![0; INBOX_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn take(&mut self, count: usize) -> &[u8] {
        let taken = self.start..self.start + count;
        self.start = taken.end;
        &self.bytes[taken]
    }

    /// Receives what there is, at least a byte.
    fn fill(&mut self, stream: &mut UnixStream) -> Result<(), LoadError> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            match stream.read(&mut self.bytes[self.end..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn walk(random: bool) -> Walk {
        let work = Work { writes: false, random, block_bytes: 4096, depth: 1 };
        Walk { work, blocks: 16, next: 0 }
    }

    #[test]
    fn a_sequence_visits_every_block_and_begins_again() {
        let mut walk = walk(false);
        let offsets: Vec<u64> = (0..17).map(|_| walk.step(&mut 1)).collect();
        assert_eq!(offsets[..3], [0, 4096, 8192]);
        assert_eq!(offsets[15..], [15 * 4096, 0]);
    }

    #[test]
    fn random_requests_reach_every_block_and_no_further() {
        let mut walk = walk(true);
        let mut random = 0x9e37_79b9_7f4a_7c15;
        let blocks: BTreeSet<u64> = (0..1000).map(|_| walk.step(&mut random) / 4096).collect();
        assert_eq!(blocks, (0..16).collect());
    }

    /// A client past its negotiation, and the server's end of its socket.
    fn connected(interrupted: &AtomicBool) -> (Client<'_>, UnixStream) {
        let (stream, server) = UnixStream::pair().expect("a pair of sockets");
        let (inbox, outbox) = (Inbox::new(), Vec::new());
        let client = Client { stream, inbox, outbox, size_bytes: 1 << 20, random: 1, serial: 0, interrupted };
        (client, server)
    }

    /// Answers one 4 KiB read at byte 0 with this magic number, error, cookie (made from the right one) and data.
    fn answered(
        magic: u32,
        error: u32,
        cookie: fn(u64) -> u64,
        data: [u8; 8],
    ) -> Result<Measured, LoadError> {
        let interrupted = AtomicBool::new(false);
        let (mut client, mut server) = connected(&interrupted);
        let server = std::thread::spawn(move || {
            let mut header = [0; 28];
            server.read_exact(&mut header).expect("a request");
            let asked = u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"));
            let head = [&magic.to_be_bytes()[..], &error.to_be_bytes(), &cookie(asked).to_be_bytes()];
            let mut reply = head.concat();
            reply.extend_from_slice(&data);
            reply.resize(16 + 4096, 0);
            // The client may have hung up on what it read so far.
            let _ = server.write_all(&reply);
        });
        let work = Work { writes: false, random: false, block_bytes: 4096, depth: 1 };
        let outcome = client.run(work, Limit::Requests(1));
        drop(client);
        server.join().expect("the server's end");
        outcome
    }

    #[test]
    fn only_the_right_reply_counts() {
        let right = answered(SIMPLE_REPLY_MAGIC, 0, |cookie| cookie, stamp(0)).expect("a right reply");
        assert_eq!((right.requests, right.latencies.len()), (1, 1));
        let of_data = answered(SIMPLE_REPLY_MAGIC, 0, |cookie| cookie, stamp(4096));
        assert!(matches!(of_data, Err(LoadError::Data { offset: 0 })), "{of_data:?}");
        let unwritten = answered(SIMPLE_REPLY_MAGIC, 0, |cookie| cookie, [0; 8]);
        assert!(matches!(unwritten, Err(LoadError::Data { offset: 0 })), "{unwritten:?}");
        let failed = answered(SIMPLE_REPLY_MAGIC, 5, |cookie| cookie, stamp(0));
        assert!(matches!(failed, Err(LoadError::Answer { offset: 0, error: 5 })), "{failed:?}");
        let to_another = answered(SIMPLE_REPLY_MAGIC, 0, |cookie| cookie ^ 0x100, stamp(0));
        assert!(matches!(to_another, Err(LoadError::Protocol("reply"))), "{to_another:?}");
        let no_reply = answered(REQUEST_MAGIC, 0, |cookie| cookie, stamp(0));
        assert!(matches!(no_reply, Err(LoadError::Protocol("reply"))), "{no_reply:?}");
    }

    #[test]
    fn a_server_that_hangs_up_is_an_error() {
        let interrupted = AtomicBool::new(false);
        let (mut client, server) = connected(&interrupted);
        drop(server);
        let work = Work { writes: true, random: true, block_bytes: 4096, depth: 4 };
        let outcome = client.run(work, Limit::Time(Duration::from_secs(60)));
        assert!(matches!(outcome, Err(LoadError::Socket(_))), "{outcome:?}");
    }
}
