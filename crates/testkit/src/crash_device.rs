//! A device whose plug can be pulled: what was flushed survives, what was not survives by chance.
//!
//! It keeps two images: what reads see, and what is durable; and, for every sector written since the last
//! flush, all the contents that it had in between. When the power goes, each such sector is left with its
//! durable content or any later one, chosen by a seed, sector by sector: a disk that writes back in any
//! order and tears writes at sectors. [`CrashDevice::restart`] is the machine coming up again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sealblk_block::{
    Allocation, BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Geometry, Lba,
    Operation, SECTOR_BYTES, SectorRange, ZeroMode,
};

type Sector = [u8; SECTOR_BYTES];

/// When the power goes by itself. Operations count from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plug {
    /// Only by [`CrashDevice::pull_the_plug`].
    Stays,
    /// During the nth change (write, zero or discard): its sectors are torn like all others.
    AtChange(u64),
    /// During the nth flush: it fails, and what it was to flush survives by chance.
    AtFlush(u64),
    /// Right after the nth flush was acknowledged.
    AfterFlush(u64),
}

/// A device in memory that loses power; clones share it. See the module's header.
#[derive(Clone, Debug)]
pub struct CrashDevice {
    state: Arc<Mutex<State>>,
    sectors: u64,
}

/// One thread's way to a [`CrashDevice`].
#[derive(Debug)]
pub struct CrashLane {
    device: CrashDevice,
}

#[derive(Debug)]
struct State {
    durable: Vec<Sector>,
    /// What sectors held since the last flush, oldest first; the last is what reads see.
    pending: BTreeMap<u64, Vec<Sector>>,
    plug: Plug,
    random: u64,
    powered: bool,
    changes: u64,
    flushes: u64,
}

impl CrashDevice {
    /// A device of `sectors` zero sectors. `seed` decides what survives a crash.
    pub fn new(sectors: u64, seed: u64, plug: Plug) -> Self {
        Self::with_content(
            vec![[0; SECTOR_BYTES]; usize::try_from(sectors).expect("fits memory")],
            seed,
            plug,
        )
    }

    fn with_content(durable: Vec<Sector>, random: u64, plug: Plug) -> Self {
        let sectors = durable.len() as u64;
        let pending = BTreeMap::new();
        let state = State { durable, pending, plug, random, powered: true, changes: 0, flushes: 0 };
        Self { state: Arc::new(Mutex::new(state)), sectors }
    }

    /// The power goes now: every later operation fails.
    pub fn pull_the_plug(&self) {
        self.state().lose_power();
    }

    /// Whether the power is gone.
    pub fn is_off(&self) -> bool {
        !self.state().powered
    }

    /// Changes (writes, zeros, discards) that began, and flushes that began: where a plug could be pulled.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.changes, state.flushes)
    }

    /// What is durable, byte by byte: after a crash, what survived.
    pub fn durable_bytes(&self) -> Vec<u8> {
        self.state().durable.as_flattened().to_vec()
    }

    /// The machine comes up again with what survived, in a new device; pulls the plug here if it was not.
    pub fn restart(&self, plug: Plug) -> Self {
        let mut state = self.state();
        state.lose_power();
        Self::with_content(state.durable.clone(), state.random, plug)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A failed assertion in one test thread must not hide behind a poisoned lock in another.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assert_inside(&self, range: SectorRange) {
        assert!(range.start.0.checked_add(range.count).is_some_and(|end| end <= self.sectors));
    }

    /// One change: `content` of every sector in `range`, by its place in the range.
    fn change(
        &self,
        operation: Operation,
        range: SectorRange,
        durability: Durability,
        content: impl Fn(u64) -> Sector,
    ) -> Result<(), BlockError> {
        self.assert_inside(range);
        let mut state = self.state();
        state.check_power(operation, range.start)?;
        state.changes += 1;
        for place in 0..range.count {
            state.pending.entry(range.start.0 + place).or_default().push(content(place));
        }
        if state.plug == Plug::AtChange(state.changes) {
            state.lose_power();
        }
        state.check_power(operation, range.start)?;
        if durability == Durability::Durable {
            let of_range = range.start.0..range.end().0;
            let sectors: Vec<u64> = state.pending.range(of_range).map(|(&sector, _)| sector).collect();
            sectors.into_iter().for_each(|sector| state.settle(sector));
        }
        Ok(())
    }
}

impl State {
    fn check_power(&self, operation: Operation, at: Lba) -> Result<(), BlockError> {
        if self.powered {
            return Ok(());
        }
        Err(BlockError::Io { operation, at, source: std::io::Error::other("the power is gone") })
    }

    /// Makes the newest content of a sector durable.
    fn settle(&mut self, sector: u64) {
        if let Some(newest) = self.pending.remove(&sector).and_then(|mut contents| contents.pop()) {
            self.durable[sector as usize] = newest;
        }
    }

    fn lose_power(&mut self) {
        self.powered = false;
        for (sector, contents) in std::mem::take(&mut self.pending) {
            // As many outcomes as contents, and one more: nothing since the last flush.
            let chosen = (self.next_random() % (contents.len() as u64 + 1)) as usize;
            if let Some(&survivor) = contents.get(chosen) {
                self.durable[sector as usize] = survivor;
            }
        }
    }

    /// splitmix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn live(&self, sector: u64) -> &Sector {
        self.pending
            .get(&sector)
            .and_then(|contents| contents.last())
            .unwrap_or(&self.durable[sector as usize])
    }
}

impl BlockDevice for CrashDevice {
    type Lane = CrashLane;

    fn geometry(&self) -> Geometry {
        let unit_bytes = SECTOR_BYTES as u32;
        Geometry { sectors: self.sectors, unit_bytes, preferred_bytes: 4096, read_only: false }
    }

    fn open_lane(&self) -> Result<CrashLane, BlockError> {
        Ok(CrashLane { device: self.clone() })
    }
}

impl BlockLane for CrashLane {
    async fn read(&self, at: Lba, mut buffer: Buffer) -> Completion {
        self.device.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        let state = self.device.state();
        if let Err(off) = state.check_power(Operation::Read, at) {
            return (Err(off), buffer);
        }
        for (bytes, sector) in buffer.chunks_exact_mut(SECTOR_BYTES).zip(at.0..) {
            bytes.copy_from_slice(state.live(sector));
        }
        (Ok(()), buffer)
    }

    async fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> Completion {
        let range = SectorRange::of_bytes(at, buffer.len());
        let sectors = buffer.as_chunks::<SECTOR_BYTES>().0;
        let outcome =
            self.device.change(Operation::Write, range, durability, |place| sectors[place as usize]);
        (outcome, buffer)
    }

    async fn zero(
        &self,
        range: SectorRange,
        _mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.device.change(Operation::Zero, range, durability, |_| [0; SECTOR_BYTES])
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.device.change(Operation::Discard, range, durability, |_| [0; SECTOR_BYTES])
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let mut state = self.device.state();
        state.check_power(Operation::Flush, Lba(0))?;
        state.flushes += 1;
        if state.plug == Plug::AtFlush(state.flushes) {
            state.lose_power();
        }
        state.check_power(Operation::Flush, Lba(0))?;
        let sectors: Vec<u64> = state.pending.keys().copied().collect();
        sectors.into_iter().for_each(|sector| state.settle(sector));
        if state.plug == Plug::AfterFlush(state.flushes) {
            state.lose_power();
        }
        Ok(())
    }

    /// A sector of zeros counts as a hole, so that tests see trimmed ranges.
    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.device.assert_inside(range);
        let state = self.device.state();
        state.check_power(Operation::Extents, range.start)?;
        let is_hole = |sector| *state.live(sector) == [0; SECTOR_BYTES];
        let mut at = range.start.0;
        while at < range.end().0 && extents.len() < extents.capacity() {
            let hole = is_hole(at);
            let count = (at..range.end().0).take_while(|&sector| is_hole(sector) == hole).count() as u64;
            extents.push(Extent { count, allocation: Allocation { hole, zero: hole } });
            at += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
