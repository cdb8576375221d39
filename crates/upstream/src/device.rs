//! The device: what lanes ask, turned into jobs for a connection, and answers turned back.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sealblk_block::{
    Allocation, BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Geometry, Lba,
    Operation, SECTOR_BYTES, SectorRange, ZeroMode,
};
use sealblk_nbd::wire::{allocation, transmission_flag};
use tokio::sync::mpsc;

use crate::driver::{start_extra, start_primary};
use crate::error::UpstreamError;
use crate::handshake::Target;
use crate::job::{Done, Failure, Job, Work};
use crate::order::Turn;
use crate::session::{Limits, Session};
use crate::tls::TlsClient;
use crate::uri::ExportUri;

/// Ranges without data go to the server in pieces of this many bytes at most: a multiple of every unit.
const EFFECT_BYTES: u64 = 1 << 30;
/// Zeros that are written where the server has no command for them.
const ZEROS_BYTES: u64 = 1 << 20;
const EPERM: u32 = 1;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

/// How an export is used.
#[derive(Clone, Debug)]
pub struct UpstreamOptions {
    /// Whether writes are refused. Without it, an export that cannot be written to is not opened.
    pub read_only: bool,
    /// From connecting to the end of the negotiation.
    pub handshake: Duration,
    /// How long requests wait for a lost connection to come back before they fail. It is tried on after that.
    pub reconnect: Duration,
    /// How many bytes of acknowledged, unflushed writes are kept before they are flushed unasked.
    pub retained_bytes: usize,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            handshake: Duration::from_secs(10),
            reconnect: Duration::from_secs(60),
            retained_bytes: 64 << 20,
        }
    }
}

/// An NBD export as a device. See the crate's documentation for what it guarantees.
pub struct UpstreamDevice {
    session: Arc<Session>,
    jobs: mpsc::UnboundedSender<Job>,
    geometry: Geometry,
    /// Whether a lane has the primary connection to itself.
    seat: Arc<AtomicBool>,
}

/// One thread's way to an [`UpstreamDevice`].
pub struct UpstreamLane {
    session: Arc<Session>,
    jobs: mpsc::UnboundedSender<Job>,
    geometry: Geometry,
    _seat: Option<Seat>,
}

/// The primary connection, taken; free again when dropped.
struct Seat(Arc<AtomicBool>);

impl Seat {
    fn take(seat: &Arc<AtomicBool>) -> Option<Self> {
        (!seat.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(seat)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl UpstreamDevice {
    /// Connects to the export at `uri` and checks that it can be used. Blocks for up to
    /// [`UpstreamOptions::handshake`].
    pub fn open(uri: &ExportUri, options: &UpstreamOptions) -> Result<Self, UpstreamError> {
        let target = Target { uri: uri.clone(), tls: TlsClient::of(uri)? };
        let limits = Limits {
            handshake: options.handshake,
            reconnect: options.reconnect,
            retained_bytes: options.retained_bytes,
        };
        let (session, jobs) = start_primary(target, limits)?;
        if !options.read_only {
            session.export.require_writable()?;
        }
        let geometry = session.export.geometry(options.read_only);
        Ok(Self { session, jobs, geometry, seat: Arc::default() })
    }
}

impl std::fmt::Debug for UpstreamDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamDevice")
            .field("uri", &self.session.target.uri.to_string())
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

impl BlockDevice for UpstreamDevice {
    type Lane = UpstreamLane;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_lane(&self) -> Result<UpstreamLane, BlockError> {
        let (session, geometry) = (Arc::clone(&self.session), self.geometry);
        let seat = Seat::take(&self.seat);
        let alone = seat.is_some() || !session.export.offers(transmission_flag::CAN_MULTI_CONN);
        let jobs = if alone {
            self.jobs.clone()
        } else {
            start_extra(Arc::clone(&session), self.jobs.clone()).map_err(|error| BlockError::Io {
                operation: Operation::Open,
                at: Lba(0),
                source: io::Error::other(error),
            })?
        };
        Ok(UpstreamLane { session, jobs, geometry, _seat: seat })
    }
}

impl UpstreamLane {
    fn offers(&self, flag: u16) -> bool {
        self.session.export.offers(flag)
    }

    /// Whether a request for `durability` must be forced through by the server.
    fn forces(&self, durability: Durability) -> bool {
        let durable = durability == Durability::Durable || !self.session.export.flushes();
        durable && self.offers(transmission_flag::SEND_FUA)
    }

    /// Hands `work` over and waits for its end.
    fn run(&self, work: Work, turn: Option<Turn>) -> impl Future<Output = Option<Done>> + use<> {
        let (job, done) = Job::new(work, turn);
        // Where nobody takes it, it is dropped, and so is the sender that `done` waits for.
        let _ = self.jobs.send(job);
        async { done.await.ok() }
    }

    fn assert_inside(&self, range: SectorRange) {
        let unit_bytes = u64::from(self.geometry.unit_bytes);
        assert!(range.start.0.checked_add(range.count).is_some_and(|end| end <= self.geometry.sectors));
        assert!(
            range.start.byte_offset().is_multiple_of(unit_bytes) && range.bytes().is_multiple_of(unit_bytes)
        );
    }

    fn check_writable(&self, operation: Operation) -> Result<(), BlockError> {
        if self.geometry.read_only {
            return Err(BlockError::ReadOnly { operation });
        }
        if self.session.is_latched() { Err(BlockError::Latched { operation }) } else { Ok(()) }
    }

    /// Waits until `range` may be changed: there is room to keep the change, and nobody else is changing it.
    async fn prepare(&self, operation: Operation, range: SectorRange) -> Result<Turn, BlockError> {
        self.assert_inside(range);
        self.check_writable(operation)?;
        if self.session.is_full() {
            let _one = self.session.making_room.lock().await;
            if self.session.is_full() {
                self.flush_all().await?;
            }
        }
        let bytes = range.start.byte_offset()..range.end().byte_offset();
        Ok(self.session.order.turn(bytes).await)
    }

    /// Makes a change durable that its request did not force through.
    async fn settle(&self, durability: Durability) -> Result<(), BlockError> {
        if durability == Durability::Durable && !self.forces(durability) {
            return self.flush_all().await;
        }
        Ok(())
    }

    /// See [`BlockLane::flush`]. Succeeds once nothing that was acknowledged before is only kept here.
    async fn flush_all(&self) -> Result<(), BlockError> {
        const OPERATION: Operation = Operation::Flush;
        self.check_writable(OPERATION)?;
        if !self.session.export.flushes() {
            return Ok(()); // Every write was forced through.
        }
        let mark = self.session.mark();
        // At least one: the server may have writes that an earlier process left unflushed.
        let mut senders = vec![Some(self.jobs.clone())];
        loop {
            let flushes: Vec<_> = senders
                .into_iter()
                .map(|jobs| {
                    let (flush, done) = Job::new(Work::Flush { mark }, None);
                    jobs.is_some_and(|jobs| jobs.send(flush).is_ok()).then_some(done)
                })
                .collect();
            for flush in flushes {
                match flush {
                    Some(done) => {
                        let outcome = done.await.map_or(Err(Failure::Ended), |done| done.outcome);
                        if let Err(failure) = outcome {
                            self.session.latch();
                            return Err(block_error(OPERATION, Lba(0), failure));
                        }
                    }
                    // Its connection is gone without having flushed: what is kept is made again.
                    None => self.session.lose_present("a connection ended with unflushed writes"),
                }
            }
            let dirty = self.session.dirty_before(mark);
            if dirty.is_empty() {
                return Ok(());
            }
            senders = dirty.into_iter().map(|(_, jobs)| jobs).collect();
            // The primary connection's answer comes after any recovery.
            senders.push(Some(self.jobs.clone()));
        }
    }

    /// Writes zeros as data.
    async fn write_zeros(&self, range: SectorRange) -> Result<(), BlockError> {
        for piece in pieces(range, ZEROS_BYTES) {
            let bytes = usize::try_from(piece.bytes()).expect("a piece fits in memory");
            let turn = self.prepare(Operation::Zero, piece).await?;
            let data = Arc::new(Buffer::new(bytes));
            let fua = self.forces(Durability::Volatile);
            let work = Work::Write { offset: piece.start.byte_offset(), data, fua };
            outcome(self.run(work, Some(turn)).await)
                .map_err(|failure| block_error(Operation::Zero, piece.start, failure))?;
        }
        Ok(())
    }

    /// Zeroes `range` by command; an error names the piece that failed, and is given back as it came.
    async fn zero_by_command(
        &self,
        range: SectorRange,
        mode: Zeroing,
        durability: Durability,
    ) -> Result<(), ZeroError> {
        for piece in pieces(range, EFFECT_BYTES) {
            let turn = self.prepare(Operation::Zero, piece).await.map_err(ZeroError::Other)?;
            let work = Work::Zero {
                offset: piece.start.byte_offset(),
                bytes: u32::try_from(piece.bytes()).expect("a piece's length fits"),
                no_hole: mode.no_hole,
                fast: mode.fast,
                fua: self.forces(durability),
            };
            match outcome(self.run(work, Some(turn)).await) {
                Ok(()) => {}
                Err(Failure::Answered(ENOTSUP)) => {
                    let count = range.end().0 - piece.start.0;
                    return Err(ZeroError::Unsupported { rest: SectorRange { start: piece.start, count } });
                }
                Err(failure) => {
                    return Err(ZeroError::Other(block_error(Operation::Zero, piece.start, failure)));
                }
            }
        }
        Ok(())
    }

    async fn trim(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        for piece in pieces(range, EFFECT_BYTES) {
            let turn = self.prepare(Operation::Discard, piece).await?;
            let work = Work::Trim {
                offset: piece.start.byte_offset(),
                bytes: u32::try_from(piece.bytes()).expect("a piece's length fits"),
                fua: self.forces(durability),
            };
            outcome(self.run(work, Some(turn)).await)
                .map_err(|failure| block_error(Operation::Discard, piece.start, failure))?;
        }
        self.settle(durability).await
    }
}

/// Flags of WRITE_ZEROES.
#[derive(Clone, Copy)]
struct Zeroing {
    no_hole: bool,
    fast: bool,
}

/// Why zeroing by command ended.
enum ZeroError {
    /// The server does not do it; `rest` is not done.
    Unsupported {
        rest: SectorRange,
    },
    Other(BlockError),
}

impl BlockLane for UpstreamLane {
    async fn read(&self, at: Lba, buffer: Buffer) -> Completion {
        self.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        let (capacity, len) = (buffer.capacity(), buffer.len());
        let done = self.run(Work::Read { offset: at.byte_offset(), buffer }, None).await;
        match done {
            Some(Done { outcome, work: Work::Read { buffer, .. }, .. }) => {
                (outcome.map_err(|failure| block_error(Operation::Read, at, failure)), buffer)
            }
            _ => (Err(block_error(Operation::Read, at, Failure::Ended)), replacement(capacity, len)),
        }
    }

    async fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> Completion {
        let turn = match self.prepare(Operation::Write, SectorRange::of_bytes(at, buffer.len())).await {
            Ok(turn) => turn,
            Err(refused) => return (Err(refused), buffer),
        };
        let (capacity, len) = (buffer.capacity(), buffer.len());
        let (offset, fua) = (at.byte_offset(), self.forces(durability));
        let done = self.run(Work::Write { offset, data: Arc::new(buffer), fua }, Some(turn)).await;
        let Some(Done { outcome, work: Work::Write { data, .. }, .. }) = done else {
            return (Err(block_error(Operation::Write, at, Failure::Ended)), replacement(capacity, len));
        };
        // A server that answers before it has everything leaves the buffer with the sender for a while.
        let buffer = Arc::try_unwrap(data).unwrap_or_else(|_| replacement(capacity, len));
        if let Err(failure) = outcome {
            return (Err(block_error(Operation::Write, at, failure)), buffer);
        }
        (self.settle(durability).await, buffer)
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.assert_inside(range);
        self.check_writable(Operation::Zero)?;
        let fast = matches!(mode, ZeroMode::FastOnly | ZeroMode::FastKeepAllocated);
        let no_hole = matches!(mode, ZeroMode::KeepAllocated | ZeroMode::FastKeepAllocated);
        let unsupported = Err(BlockError::Unsupported { operation: Operation::Zero });
        if fast && !self.offers(transmission_flag::SEND_FAST_ZERO | transmission_flag::SEND_WRITE_ZEROES) {
            return unsupported;
        }
        if !self.offers(transmission_flag::SEND_WRITE_ZEROES) {
            self.write_zeros(range).await?;
            return self.settle_zeros(durability).await;
        }
        match self.zero_by_command(range, Zeroing { no_hole, fast }, durability).await {
            Ok(()) => self.settle(durability).await,
            Err(ZeroError::Unsupported { rest }) if fast && rest == range => unsupported,
            // It began: it must be finished, fast or not.
            Err(ZeroError::Unsupported { rest }) => {
                self.write_zeros(rest).await?;
                self.settle_zeros(durability).await
            }
            Err(ZeroError::Other(error)) => Err(error),
        }
    }

    /// A sector must read afterwards as before or as zeros, which WRITE_ZEROES promises and TRIM does not: so
    /// the former is preferred where it is no slower. TRIM's promise is what every known server does.
    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.assert_inside(range);
        self.check_writable(Operation::Discard)?;
        let mut range = range;
        if self.offers(transmission_flag::SEND_FAST_ZERO | transmission_flag::SEND_WRITE_ZEROES) {
            match self.zero_by_command(range, Zeroing { no_hole: false, fast: true }, durability).await {
                Ok(()) => return self.settle(durability).await,
                Err(ZeroError::Unsupported { rest }) => range = rest,
                Err(ZeroError::Other(error)) => return Err(error),
            }
        }
        if self.offers(transmission_flag::SEND_TRIM) {
            return self.trim(range, durability).await;
        }
        self.settle(durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if self.geometry.read_only {
            return Ok(()); // Nothing was written through this device.
        }
        self.flush_all().await
    }

    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.assert_inside(range);
        if range.count == 0 || extents.len() == extents.capacity() {
            return Ok(());
        }
        let count = range.count.min(EFFECT_BYTES / SECTOR_BYTES as u64);
        let asked = SectorRange { start: range.start, count };
        if self.session.export.allocation_context.is_none() {
            extents.push(Extent { count: range.count, allocation: Allocation { hole: false, zero: false } });
            return Ok(());
        }
        let work = Work::Status {
            offset: asked.start.byte_offset(),
            bytes: u32::try_from(asked.bytes()).expect("a piece's length fits"),
            one: extents.capacity() - extents.len() == 1,
        };
        let done = self.run(work, None).await;
        let Some(Done { outcome, extents: told, .. }) = done else {
            return Err(block_error(Operation::Extents, range.start, Failure::Ended));
        };
        outcome.map_err(|failure| block_error(Operation::Extents, range.start, failure))?;
        append(extents, asked.count, &told);
        Ok(())
    }
}

impl UpstreamLane {
    /// After zeros that were written as data, which were forced through only where all writes are.
    async fn settle_zeros(&self, durability: Durability) -> Result<(), BlockError> {
        match durability {
            Durability::Durable => self.flush_all().await,
            Durability::Volatile => Ok(()),
        }
    }
}

fn outcome(done: Option<Done>) -> Result<(), Failure> {
    done.map_or(Err(Failure::Ended), |done| done.outcome)
}

/// In place of a buffer that was lost with a thread.
fn replacement(capacity: usize, len: usize) -> Buffer {
    let mut buffer = Buffer::new(capacity);
    buffer.set_len(len);
    buffer
}

/// `range` in pieces of at most `bytes` each.
fn pieces(range: SectorRange, bytes: u64) -> impl Iterator<Item = SectorRange> {
    let step = bytes / SECTOR_BYTES as u64;
    let mut start = range.start.0;
    std::iter::from_fn(move || {
        let count = step.min(range.end().0 - start);
        let piece = SectorRange { start: Lba(start), count };
        start += count;
        (count > 0).then_some(piece)
    })
}

/// Appends what the server told (lengths in bytes) of `sectors` sectors, in whole sectors: one that a boundary
/// falls into counts as data.
fn append(extents: &mut Vec<Extent>, sectors: u64, told: &[(u32, u32)]) {
    let sector_bytes = SECTOR_BYTES as u64;
    let data = Allocation { hole: false, zero: false };
    let end = sectors * sector_bytes;
    let (mut at, mut covered) = (0_u64, 0_u64);
    let mut push = |covered: &mut u64, to: u64, allocation| {
        if to > *covered && extents.len() < extents.capacity() {
            extents.push(Extent { count: to - *covered, allocation });
            *covered = to;
        }
    };
    for &(bytes, flags) in told {
        at = at.saturating_add(u64::from(bytes)).min(end);
        let allocation =
            Allocation { hole: flags & allocation::HOLE != 0, zero: flags & allocation::ZERO != 0 };
        push(&mut covered, at / sector_bytes, allocation);
        push(&mut covered, at.div_ceil(sector_bytes), data);
    }
    if covered == 0 {
        push(&mut covered, sectors, data);
    }
}

/// What a lane's caller learns.
fn block_error(operation: Operation, at: Lba, failure: Failure) -> BlockError {
    match failure {
        Failure::Answered(ENOSPC) => BlockError::NoSpace { operation, at },
        Failure::Answered(EPERM) => {
            BlockError::Io { operation, at, source: io::Error::new(io::ErrorKind::PermissionDenied, failure) }
        }
        other => BlockError::Io { operation, at, source: io::Error::other(other) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appended(sectors: u64, told: &[(u32, u32)], room: usize) -> Vec<(u64, bool)> {
        let mut extents = Vec::with_capacity(room);
        append(&mut extents, sectors, told);
        extents.iter().map(|extent| (extent.count, extent.allocation.zero)).collect()
    }

    #[test]
    fn extents_end_with_the_request_and_with_the_room() {
        assert_eq!(appended(4, &[(1024, 3), (1024, 0)], 8), [(2, true), (2, false)]);
        assert_eq!(appended(4, &[(1024, 3), (1 << 30, 0)], 8), [(2, true), (2, false)]);
        assert_eq!(appended(4, &[(512, 3)], 8), [(1, true)]);
        assert_eq!(appended(4, &[(512, 3), (512, 0), (512, 3)], 1), [(1, true)]);
        assert_eq!(appended(4, &[], 8), [(4, false)]);
    }

    #[test]
    fn a_sector_that_is_partly_data_is_data() {
        assert_eq!(appended(4, &[(700, 3), (1348, 0)], 8), [(1, true), (1, false), (2, false)]);
        assert_eq!(appended(4, &[(700, 0), (1348, 3)], 8), [(1, false), (1, false), (2, true)]);
        assert_eq!(appended(1, &[(100, 3), (412, 3)], 8), [(1, false)]);
    }

    #[test]
    fn pieces_cover_a_range_once() {
        let range = SectorRange { start: Lba(3), count: 10 };
        let found: Vec<_> = pieces(range, 2048).map(|piece| (piece.start.0, piece.count)).collect();
        assert_eq!(found, [(3, 4), (7, 4), (11, 2)]);
        assert_eq!(pieces(SectorRange { start: Lba(3), count: 0 }, 512).count(), 0);
    }
}
