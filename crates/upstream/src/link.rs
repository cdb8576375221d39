//! An established connection at work: requests out, replies in, many at a time.
//!
//! [`Link::send`] and [`Link::receive`] run side by side on one thread and share a table of what is under way.
//! Neither decides about a lost connection: they return, and the table still has every job, to be made again
//! elsewhere ([`Link::unfinished`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use sealblk_block::Buffer;
use sealblk_nbd::wire::{self, command};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use crate::coverage::Coverage;
use crate::export::Export;
use crate::job::{Failure, Job, Work};
use crate::reply::{Body, ChunkKind, ESHUTDOWN, Head, LinkError, read, read_error, read_head, read_vec};
use crate::request::Request;
use crate::session::{ConnectionId, Session};

/// Requests that wait are sent together, up to about this many bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// A payload up to this length is copied behind its header: cheaper than a system call of its own.
const COPIED_PAYLOAD_BYTES: usize = 32 * 1024;

/// One connection of one epoch.
pub(crate) struct Link<'s> {
    session: &'s Session,
    id: ConnectionId,
    epoch: u64,
    /// As this connection negotiated it.
    export: Export,
    table: RefCell<Table>,
    /// The table became empty.
    idle: Notify,
    /// A request was answered.
    progress: Cell<bool>,
}

/// What is under way.
#[derive(Default)]
struct Table {
    next: u64,
    /// By number, in the order in which they were begun.
    jobs: BTreeMap<u64, Running>,
    /// Requests without an answer, by cookie.
    parts: HashMap<u64, Part>,
}

struct Running {
    job: Job,
    unanswered: usize,
    outcome: Result<(), Failure>,
    extents: Vec<(u32, u32)>,
    /// Of a READ's buffer, which may get lost on its way with the connection.
    capacity: usize,
    len: usize,
}

/// One request of a job; jobs longer than the server's limit have several.
struct Part {
    job: u64,
    offset: u64,
    bytes: u32,
    /// Where its bytes are in the job's buffer.
    at: usize,
    coverage: Coverage,
    status: bool,
    failure: Option<Failure>,
}

/// Where a WRITE's bytes are: a buffer, and which of its bytes.
type Payload = (Arc<Buffer>, Range<usize>);

/// What a job's answer has to look like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Status,
    Other,
}

fn kind(work: &Work) -> Kind {
    match work {
        Work::Read { .. } => Kind::Read,
        Work::Status { .. } => Kind::Status,
        _ => Kind::Other,
    }
}

impl<'s> Link<'s> {
    pub(crate) fn new(session: &'s Session, id: ConnectionId, epoch: u64, export: Export) -> Self {
        let table = RefCell::default();
        Self { session, id, epoch, export, table, idle: Notify::new(), progress: Cell::new(false) }
    }

    /// Whether any request was answered.
    pub(crate) fn made_progress(&self) -> bool {
        self.progress.get()
    }

    /// The jobs that are not done, in the order in which they were begun.
    pub(crate) fn unfinished(self) -> impl Iterator<Item = Job> {
        self.table.into_inner().jobs.into_values().map(|running| {
            let mut job = running.job;
            if let Work::Read { buffer, .. } = &mut job.work
                && buffer.capacity() < running.capacity
            {
                *buffer = Buffer::new(running.capacity);
                buffer.set_len(running.len);
            }
            job
        })
    }

    /// Sends `waiting`, then what comes from `jobs`; when no more can come, waits for what is under way,
    /// flushes what this connection has not flushed, and takes leave.
    pub(crate) async fn send(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        waiting: &mut VecDeque<Job>,
        jobs: &mut mpsc::UnboundedReceiver<Job>,
    ) -> Result<(), LinkError> {
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        loop {
            let next = match waiting.pop_front() {
                Some(job) => Some(job),
                None => jobs.recv().await,
            };
            let Some(job) = next else { return self.take_leave(stream).await };
            self.push(stream, &mut batch, job).await?;
            while batch.len() < BATCH_BYTES
                && let Some(job) = waiting.pop_front().or_else(|| jobs.try_recv().ok())
            {
                self.push(stream, &mut batch, job).await?;
            }
            stream.write_all(&batch).await?;
            stream.flush().await?;
            batch.clear();
        }
    }

    async fn take_leave(&self, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), LinkError> {
        self.idle().await;
        let mark = self.session.mark();
        let is_dirty = self.session.dirty_before(mark).iter().any(|(id, _)| *id == self.id);
        let mut batch = Vec::new();
        if is_dirty && self.export.flushes() {
            let (flush, done) = Job::new(Work::Flush { mark }, None);
            self.push(stream, &mut batch, flush).await?;
            stream.write_all(&batch).await?;
            stream.flush().await?;
            batch.clear();
            self.idle().await;
            if done.await.is_ok_and(|done| done.outcome.is_err()) {
                self.session.latch();
            }
        }
        let leave = Request { command: command::DISCONNECT, flags: 0, cookie: 0, offset: 0, length: 0 };
        leave.encode(&mut batch);
        stream.write_all(&batch).await?;
        // All that matters is done: a server that closes at once is as good as any.
        let _ = stream.shutdown().await;
        Ok(())
    }

    async fn idle(&self) {
        while !self.table.borrow().jobs.is_empty() {
            self.idle.notified().await;
        }
    }

    /// Puts the requests of `job` into the batch; sends it when a payload does not fit.
    async fn push(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        batch: &mut Vec<u8>,
        job: Job,
    ) -> Result<(), LinkError> {
        for (request, payload) in self.begin(job) {
            request.encode(batch);
            let Some((data, range)) = payload else { continue };
            let payload = data.get(range).unwrap_or(&[]);
            if payload.len() <= COPIED_PAYLOAD_BYTES {
                batch.extend_from_slice(payload);
            } else {
                stream.write_all(batch).await?;
                batch.clear();
                stream.write_all(payload).await?;
            }
        }
        Ok(())
    }

    /// Enters `job` into the table: its requests, each with where its payload is.
    fn begin(&self, job: Job) -> Vec<(Request, Option<Payload>)> {
        let (command, offset, bytes) = match &job.work {
            Work::Read { offset, buffer } => (command::READ, *offset, buffer.len()),
            Work::Write { offset, data, .. } => (command::WRITE, *offset, data.len()),
            Work::Zero { offset, bytes, .. } => (command::WRITE_ZEROES, *offset, effect(*bytes)),
            Work::Trim { offset, bytes, .. } => (command::TRIM, *offset, effect(*bytes)),
            Work::Flush { .. } => (command::FLUSH, 0, 0),
            Work::Status { .. } if self.export.allocation_context.is_none() => {
                // This connection's server tells nothing: no extents, which is an answer.
                job.finish(Ok(()), Vec::new());
                return Vec::new();
            }
            Work::Status { offset, bytes, .. } => (command::BLOCK_STATUS, *offset, effect(*bytes)),
        };
        let carries_data = matches!(job.work, Work::Read { .. } | Work::Write { .. });
        let limit = effect(self.export.max_payload_bytes);
        let limit = if carries_data { limit } else { usize::MAX };
        let flags = job.work.flags();
        let data = if let Work::Write { data, .. } = &job.work { Some(Arc::clone(data)) } else { None };
        let (capacity, len) = match &job.work {
            Work::Read { buffer, .. } => (buffer.capacity(), buffer.len()),
            _ => (0, 0),
        };

        let mut table = self.table.borrow_mut();
        let number = table.take_number();
        let mut requests = Vec::with_capacity(bytes.div_ceil(limit).max(1));
        let mut at = 0;
        loop {
            let length = limit.min(bytes - at);
            let part_offset = offset + at as u64;
            let part_bytes = u32::try_from(length).expect("a request's length fits, and so does a payload's");
            let cookie = table.take_number();
            table.parts.insert(cookie, Part::new(number, part_offset, part_bytes, at));
            let request = Request { command, flags, cookie, offset: part_offset, length: part_bytes };
            requests.push((request, data.as_ref().map(|data| (Arc::clone(data), at..at + length))));
            at += length;
            if at >= bytes {
                break;
            }
        }
        let unanswered = requests.len();
        table
            .jobs
            .insert(number, Running { job, unanswered, outcome: Ok(()), extents: Vec::new(), capacity, len });
        requests
    }

    /// Takes replies until the connection is over.
    pub(crate) async fn receive(&self, stream: &mut (impl AsyncRead + Unpin)) -> Result<(), LinkError> {
        loop {
            let head = read_head(stream, self.export.structured).await?;
            let is_last = match head.body {
                Body::Simple { error } => {
                    self.receive_simple(stream, head.cookie, error).await?;
                    true
                }
                Body::Chunk { kind, last, length } => {
                    self.receive_chunk(stream, head, kind, length).await?;
                    last
                }
            };
            if is_last {
                self.end_part(head.cookie)?;
            }
        }
    }

    async fn receive_simple(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        cookie: u64,
        error: u32,
    ) -> Result<(), LinkError> {
        let (kind, bytes) = self.with_part(cookie, |part, work| (kind(work), part.bytes))?;
        match (kind, error) {
            (Kind::Read, _) if self.export.structured => {
                Err(LinkError::Malformed("it answers READ with a simple reply, though chunks were agreed on"))
            }
            (_, ESHUTDOWN) => Err(LinkError::ShuttingDown),
            (Kind::Status, 0) => Err(LinkError::Malformed("it answers BLOCK_STATUS with a simple reply")),
            (Kind::Read, 0) => self.receive_data(stream, cookie, 0, bytes).await,
            (Kind::Other, 0) => Ok(()),
            (_, error) => self.with_part(cookie, |part, _| part.fail(error)),
        }
    }

    async fn receive_chunk(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        head: Head,
        chunk: ChunkKind,
        length: u32,
    ) -> Result<(), LinkError> {
        const MISPLACED: LinkError = LinkError::Malformed("a chunk's type does not fit its request");
        let cookie = head.cookie;
        let kind = self.with_part(cookie, |_, work| kind(work))?;
        match (chunk, kind) {
            (ChunkKind::None, Kind::Status) => self.require_failed_or_told(cookie),
            (ChunkKind::None, _) => Ok(()),
            (ChunkKind::Error, _) => match read_error(stream, length).await? {
                ESHUTDOWN => Err(LinkError::ShuttingDown),
                error => self.with_part(cookie, |part, _| part.fail(error)),
            },
            (ChunkKind::Data, Kind::Read) => {
                let offset = u64::from_be_bytes(read(stream).await?);
                let start = self.with_part(cookie, |part, _| part.start_of(offset))??;
                self.receive_data(stream, cookie, start, length - 8).await
            }
            (ChunkKind::Hole, Kind::Read) => {
                let offset = u64::from_be_bytes(read(stream).await?);
                let bytes = u32::from_be_bytes(read(stream).await?);
                let start = self.with_part(cookie, |part, _| part.start_of(offset))??;
                let range = self.with_part(cookie, |part, _| part.cover(start, bytes))??;
                self.with_buffer(cookie, |buffer| buffer.get_mut(range).map(|bytes| bytes.fill(0)))
            }
            (ChunkKind::Status, Kind::Status) => self.receive_status(stream, cookie, length).await,
            _ => Err(MISPLACED),
        }
    }

    /// Reads `bytes` bytes to where they belong: `start` bytes into the request.
    async fn receive_data(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        cookie: u64,
        start: u32,
        bytes: u32,
    ) -> Result<(), LinkError> {
        let range = self.with_part(cookie, |part, _| part.cover(start, bytes))??;
        // Out of the table while the bytes come; lost with the connection, it is made anew.
        let mut buffer = Buffer::new(0);
        self.with_buffer(cookie, |own| std::mem::swap(own, &mut buffer))?;
        let room =
            buffer.get_mut(range).ok_or(LinkError::Malformed("a READ brings more than was asked for"))?;
        stream.read_exact(room).await?;
        self.with_buffer(cookie, |own| *own = buffer)
    }

    async fn receive_status(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        cookie: u64,
        length: u32,
    ) -> Result<(), LinkError> {
        let body = read_vec(stream, length).await?;
        let mut fields = wire::Fields::new(&body);
        if fields.u32() != self.export.allocation_context {
            return Err(LinkError::Malformed("it tells of a metadata context that was not chosen"));
        }
        let mut extents = Vec::with_capacity(fields.len() / 8);
        while let (Some(bytes), Some(flags)) = (fields.u32(), fields.u32()) {
            if bytes == 0 {
                return Err(LinkError::Malformed("it tells of an extent without a byte"));
            }
            extents.push((bytes, flags));
        }
        let told = self.with_part(cookie, |part, _| std::mem::replace(&mut part.status, true))?;
        if told {
            return Err(LinkError::Malformed("it tells the extents of a request twice"));
        }
        let mut table = self.table.borrow_mut();
        if let Some(running) = table.running(cookie) {
            running.extents = extents;
        }
        Ok(())
    }

    fn require_failed_or_told(&self, cookie: u64) -> Result<(), LinkError> {
        let ended = self.with_part(cookie, |part, _| part.failure.is_some() || part.status)?;
        if ended { Ok(()) } else { Err(LinkError::Malformed("it answers BLOCK_STATUS without an extent")) }
    }

    /// The last chunk of a reply, or the only one, has come.
    fn end_part(&self, cookie: u64) -> Result<(), LinkError> {
        let mut table = self.table.borrow_mut();
        let Some(part) = table.parts.remove(&cookie) else { return Err(UNKNOWN) };
        let Some(running) = table.jobs.get_mut(&part.job) else { return Err(UNKNOWN) };
        let complete = match kind(&running.job.work) {
            Kind::Read => part.coverage.is_whole(part.bytes),
            Kind::Status => part.status,
            Kind::Other => true,
        };
        running.unanswered -= 1;
        match part.failure {
            Some(failure) if running.outcome.is_ok() => running.outcome = Err(failure),
            Some(_) => {}
            None if complete => {}
            None => return Err(LinkError::Malformed("it answers a request only in part")),
        }
        if running.unanswered > 0 {
            return Ok(());
        }
        if !self.counts(running) {
            // Still in the table: it is made again.
            return Err(LinkError::Stale);
        }
        let running = table.jobs.remove(&part.job).expect("it was just there");
        let is_idle = table.jobs.is_empty();
        drop(table);
        self.progress.set(true);
        running.job.finish(running.outcome, running.extents);
        if is_idle {
            self.idle.notify_one();
        }
        Ok(())
    }

    /// Tells the session of a finished job; `false`: its answer came too late to count.
    fn counts(&self, running: &Running) -> bool {
        match (&running.job.work, &running.outcome) {
            (Work::Flush { mark }, Ok(())) => self.session.flushed(self.epoch, self.id, *mark),
            (work, Ok(())) if self.export.flushes() => {
                self.session.acknowledge(self.epoch, self.id, work.change())
            }
            _ => self.session.acknowledge(self.epoch, self.id, None),
        }
    }

    fn with_part<T>(&self, cookie: u64, look: impl FnOnce(&mut Part, &Work) -> T) -> Result<T, LinkError> {
        let table = &mut *self.table.borrow_mut();
        let part = table.parts.get_mut(&cookie).ok_or(UNKNOWN)?;
        let running = table.jobs.get(&part.job).ok_or(UNKNOWN)?;
        Ok(look(part, &running.job.work))
    }

    fn with_buffer<T>(&self, cookie: u64, fill: impl FnOnce(&mut Buffer) -> T) -> Result<(), LinkError> {
        let mut table = self.table.borrow_mut();
        let running = table.running(cookie).ok_or(UNKNOWN)?;
        if let Work::Read { buffer, .. } = &mut running.job.work {
            fill(buffer);
        }
        Ok(())
    }
}

const UNKNOWN: LinkError =
    LinkError::Malformed("it answers a request that was not made, or answers it twice");

/// A length of bytes in memory, or of an effect.
fn effect(bytes: u32) -> usize {
    usize::try_from(bytes).expect("this program runs where a usize has 32 bits at least")
}

impl Table {
    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn running(&mut self, cookie: u64) -> Option<&mut Running> {
        let part = self.parts.get(&cookie)?;
        self.jobs.get_mut(&part.job)
    }
}

impl Part {
    fn new(job: u64, offset: u64, bytes: u32, at: usize) -> Self {
        Self { job, offset, bytes, at, coverage: Coverage::default(), status: false, failure: None }
    }

    fn fail(&mut self, error: u32) {
        self.failure.get_or_insert(Failure::Answered(error));
    }

    /// How far into the request the byte at `offset` of the export is.
    fn start_of(&self, offset: u64) -> Result<u32, LinkError> {
        let start = offset.checked_sub(self.offset).and_then(|start| u32::try_from(start).ok());
        start.ok_or(LinkError::Malformed("a chunk of a READ is from elsewhere"))
    }

    /// Notes that `bytes` bytes from `start` on have come; where they are in the job's buffer.
    fn cover(&mut self, start: u32, bytes: u32) -> Result<Range<usize>, LinkError> {
        const ELSEWHERE: LinkError = LinkError::Malformed("a chunk of a READ reaches beyond it");
        let end = start.checked_add(bytes).filter(|end| *end <= self.bytes).ok_or(ELSEWHERE)?;
        self.coverage
            .add(start, end)
            .map_err(|_| LinkError::Malformed("a READ's chunks overlap, are empty, or too many"))?;
        Ok(self.at + effect(start)..self.at + effect(end))
    }
}
