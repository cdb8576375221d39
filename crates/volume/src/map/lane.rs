//! One thread's way to a `MappedDevice`: what the block map makes of each request.
//!
//! In order, for a request that changes something: (1) blocks that are missing are brought, or claimed if the request
//! covers them; (2) the write gate; (3) blocks that a snapshot wants are saved; (4) the blocks are noted as changed;
//! (5) the device; (6) claims end; (7) if it was to be durable and the map does not say so yet, a commit. On
//! a volume without snapshots (2) is all there is, and (5).

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use sealblk_block::{
    Allocation, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Lba, Operation, SectorRange,
    ZeroMode,
};

use super::block::{covered, sectors_of, touched};
use super::desk::Work;
use super::device::{Plan, Shared};
use super::gate::{LaneGate, Writing};
use super::job::Trouble;
use super::restore::{Restore, Turn};

/// One thread's way to a [`super::MappedDevice`].
pub struct MappedLane<L> {
    /// Dropped first: what follows may rely on nothing of it being in flight any more.
    device: L,
    gate: LaneGate<Plan>,
    orphans: Orphans,
    map: Arc<Shared>,
    /// The volume's size when the lane was opened. A lane does not see the volume grow.
    sectors: u64,
}

/// Claims of requests that were abandoned on their way to the device.
struct Orphans {
    restore: Option<Arc<Restore>>,
    blocks: RefCell<Vec<u64>>,
}

impl Drop for Orphans {
    fn drop(&mut self) {
        for block in self.blocks.take() {
            if let Some(restore) = &self.restore {
                restore.end_claim(block, false, Ok(()));
            }
        }
    }
}

/// Blocks that a request replaces, claimed in ascending order.
struct Claims<'a> {
    restore: &'a Restore,
    orphans: &'a Orphans,
    blocks: Vec<u64>,
    issued: bool,
}

impl Claims<'_> {
    fn end(mut self, here: bool) {
        for block in std::mem::take(&mut self.blocks) {
            self.restore.end_claim(block, here, Ok(()));
        }
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let blocks = std::mem::take(&mut self.blocks);
        if self.issued {
            self.orphans.blocks.borrow_mut().extend(blocks);
        } else {
            blocks.into_iter().for_each(|block| self.restore.end_claim(block, false, Ok(())));
        }
    }
}

/// A change that may go to the device.
struct Admitted<'a> {
    writing: Writing<'a, Plan>,
    claims: Option<Claims<'a>>,
}

impl Admitted<'_> {
    fn issue(&mut self) {
        self.writing.issue();
        if let Some(claims) = &mut self.claims {
            claims.issued = true;
        }
    }

    /// The device has done it, or has failed to.
    fn finish(self, done: bool) {
        if let Some(claims) = self.claims {
            claims.end(done);
        }
        self.writing.finish();
    }
}

impl<L: BlockLane> MappedLane<L> {
    pub(crate) fn new(device: L, map: Arc<Shared>) -> Self {
        let orphans = Orphans { restore: map.restore.clone(), blocks: RefCell::default() };
        let sectors = map.sectors();
        Self { device, gate: map.gate.lane(), orphans, map, sectors }
    }

    fn assert_inside(&self, range: SectorRange) {
        let end = range.start.0.checked_add(range.count);
        assert!(end.is_some_and(|end| end <= self.sectors), "a request lies within the volume");
    }

    /// The volume's missing blocks, if it may have any in `range`.
    fn missing_in(&self, range: SectorRange) -> Option<&Restore> {
        self.map.restore.as_deref().filter(|restore| restore.any_missing(touched(range)))
    }

    /// Lets a change of `range` go to the device. `replaces`: the request leaves nothing of what blocks that it
    /// covers held before.
    async fn admit(&self, range: SectorRange, replaces: bool) -> Result<Admitted<'_>, Trouble> {
        let blocks = touched(range);
        loop {
            let claims = match self.missing_in(range) {
                Some(restore) => Some(self.bring_or_claim(restore, range, replaces).await?),
                None => None,
            };
            let writing = self.gate.enter().await;
            let plan = writing.plan();
            if let Some(freeze) = plan.freeze.as_ref().filter(|freeze| freeze.wants(blocks.clone())) {
                let claimed = claims.as_ref().map_or(&[][..], |claims| &claims.blocks[..]);
                if claimed.iter().any(|&block| freeze.wants(block..block + 1)) {
                    // A snapshot began after the claim, and wants what the claim was to spare.
                    continue;
                }
                freeze.save(blocks.clone()).await;
            }
            if let Some(changed) = &plan.changed {
                changed.set_range(blocks);
                if self.map.vouched() {
                    self.map.desk.ask(Work::ForgetChanges).await?;
                }
            }
            return Ok(Admitted { writing, claims });
        }
    }

    /// Has blocks of `range` brought that are missing; claims those that need not be. Claims come last and in
    /// ascending order, and nothing is waited for but lower claims by who holds none above: no two wait for each other.
    async fn bring_or_claim<'a>(
        &'a self,
        restore: &'a Restore,
        range: SectorRange,
        replaces: bool,
    ) -> Result<Claims<'a>, Trouble> {
        let replaced = if replaces { covered(range, self.sectors) } else { 0..0 };
        let plan = self.map.gate.plan();
        let frozen = |block: u64| plan.freeze.as_ref().is_some_and(|freeze| freeze.wants(block..block + 1));
        // Once a block may be claimed it stays so: a snapshot that runs never wants more than it did.
        let claimable = |block: u64| replaced.contains(&block) && !frozen(block);
        let missing = |block: &u64| restore.is_missing(*block);
        for block in touched(range).filter(missing) {
            if !claimable(block) {
                restore.need(block).await?;
            }
        }
        let mut claims = Claims { restore, orphans: &self.orphans, blocks: Vec::new(), issued: false };
        for block in replaced.filter(missing) {
            loop {
                match restore.take_turn(block, true) {
                    Turn::Here => break,
                    Turn::Mine => {
                        claims.blocks.push(block);
                        break;
                    }
                    // Brought or not, it is looked at again; unless nobody will ever end that claim.
                    Turn::Theirs(claim) => {
                        let outcome = claim.wait().await;
                        if restore.is_claimed_by(block, &claim) {
                            outcome?;
                        }
                    }
                }
            }
        }
        Ok(claims)
    }

    /// How durable a change of `range` can be made by the device alone; `None`: it takes a commit.
    fn on_device(
        &self,
        range: SectorRange,
        admitted: &Admitted<'_>,
        wanted: Durability,
    ) -> Option<Durability> {
        let claims = admitted.claims.as_ref().is_some_and(|claims| !claims.blocks.is_empty());
        let unsettled = || self.map.restore.as_ref().is_some_and(|all| all.any_unsettled(touched(range)));
        if wanted == Durability::Durable && (claims || unsettled()) { None } else { Some(wanted) }
    }

    /// Zeroes `range`, of which missing blocks are claimed; or discards it, which is the same where blocks
    /// were missing: what their place on the device holds nobody knows.
    async fn clear(
        &self,
        range: SectorRange,
        mode: Option<ZeroMode>,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let operation = if mode.is_some() { Operation::Zero } else { Operation::Discard };
        let admitted = self.admit(range, true).await;
        let mut admitted = admitted.map_err(|trouble| trouble.answer(operation, range.start))?;
        let on_device = self.on_device(range, &admitted, durability);
        let below = on_device.unwrap_or(Durability::Volatile);
        let claims = admitted.claims.as_ref().is_some_and(|claims| !claims.blocks.is_empty());
        admitted.issue();
        let result = match mode.or(claims.then_some(ZeroMode::MayUnmap)) {
            Some(mode) => self.device.zero(range, mode, below).await,
            None => self.device.discard(range, below).await,
        };
        admitted.finish(result.is_ok());
        result?;
        if on_device.is_none() { self.flush().await } else { Ok(()) }
    }

    /// The parts of `range` that may be discarded without waiting for anything: not of blocks that a snapshot
    /// wants, and of missing blocks only where all of one is in the range.
    fn discardable(&self, range: SectorRange) -> Vec<SectorRange> {
        let sectors = self.sectors;
        let plan = self.map.gate.plan();
        let whole = covered(range, sectors);
        let keeps = |block: u64| {
            let missing = || self.map.restore.as_ref().is_some_and(|all| all.is_missing(block));
            let frozen = plan.freeze.as_ref().is_some_and(|freeze| freeze.wants(block..block + 1));
            frozen || !whole.contains(&block) && missing()
        };
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in touched(range).filter(|&block| !keeps(block)) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        let clip = |run| intersection(sectors_of(run, sectors), range);
        runs.into_iter().map(clip).collect()
    }

    fn is_special(&self, range: SectorRange) -> bool {
        // The lane's own plan may be an old one; then `admit` finds out.
        let frozen = |plan: &Plan| plan.freeze.as_ref().is_some_and(|freeze| freeze.wants(touched(range)));
        self.gate.known_plan(frozen) || self.missing_in(range).is_some()
    }
}

/// What is in both.
fn intersection(one: SectorRange, other: SectorRange) -> SectorRange {
    let start = one.start.max(other.start);
    let end = one.end().min(other.end());
    SectorRange { start, count: end.0.saturating_sub(start.0) }
}

impl<L: BlockLane> BlockLane for MappedLane<L> {
    async fn read(&self, at: Lba, buffer: Buffer) -> Completion {
        let range = SectorRange::of_bytes(at, buffer.len());
        self.assert_inside(range);
        if let Some(restore) = self.missing_in(range) {
            for block in touched(range) {
                if let Err(trouble) = restore.need(block).await {
                    return (Err(trouble.answer(Operation::Read, at)), buffer);
                }
            }
        }
        self.device.read(at, buffer).await
    }

    async fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> Completion {
        let range = SectorRange::of_bytes(at, buffer.len());
        self.assert_inside(range);
        if self.map.read_only {
            return (Err(BlockError::ReadOnly { operation: Operation::Write }), buffer);
        }
        let mut admitted = match self.admit(range, true).await {
            Ok(admitted) => admitted,
            Err(trouble) => return (Err(trouble.answer(Operation::Write, at)), buffer),
        };
        let on_device = self.on_device(range, &admitted, durability);
        admitted.issue();
        let below = on_device.unwrap_or(Durability::Volatile);
        let (result, buffer) = self.device.write(at, buffer, below).await;
        admitted.finish(result.is_ok());
        if result.is_ok() && on_device.is_none() {
            return (self.flush().await, buffer);
        }
        (result, buffer)
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.assert_inside(range);
        if self.map.read_only {
            return Err(BlockError::ReadOnly { operation: Operation::Zero });
        }
        self.clear(range, Some(mode), durability).await
    }

    /// What is on its way, or wanted by a snapshot, is left as it is.
    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.assert_inside(range);
        if self.map.read_only {
            return Err(BlockError::ReadOnly { operation: Operation::Discard });
        }
        if !self.is_special(range) {
            return self.clear(range, None, durability).await;
        }
        for part in self.discardable(range) {
            self.clear(part, None, durability).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if self.map.restore.as_ref().is_some_and(|restore| restore.is_unsettled()) {
            let committed = self.map.desk.ask(Work::Commit).await;
            return committed.map_err(|trouble| trouble.answer(Operation::Flush, Lba(0)));
        }
        self.device.flush().await
    }

    /// A missing block is data: which of its sectors are zero is not known here.
    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.assert_inside(range);
        let Some(restore) = self.missing_in(range) else {
            return self.device.extents(range, extents).await;
        };
        let end = range.end();
        let mut at = range.start;
        while at < end && extents.len() < extents.capacity() {
            let rest = SectorRange { start: at, count: end.0 - at.0 };
            let block = touched(rest).start;
            let missing = restore.is_missing(block);
            let run = sectors_of(block..restore.end_of_run(block), self.sectors);
            let run = intersection(run, rest);
            if missing {
                extents
                    .push(Extent { count: run.count, allocation: Allocation { hole: false, zero: false } });
                at = run.end();
                continue;
            }
            let known = extents.len();
            self.device.extents(run, extents).await?;
            at = Lba(at.0 + extents[known..].iter().map(|extent| extent.count).sum::<u64>());
            if at < run.end() {
                return Ok(());
            }
        }
        Ok(())
    }
}
