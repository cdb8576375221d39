//! The plug is pulled on a volume that is being restored, tracked and frozen, its map included: no old block over a
//! newer write, nothing that was flushed lost, and no change that the map does not know of.
//!
//! Data and map are two halves of one device here, so that they lose power at the same moment. A failing case is
//! printed with the seed that decides which sectors survive.

mod rig;

use std::collections::BTreeSet;

use proptest::prelude::*;
use rig::map::{BLOCK_SECTORS, TestSource, block_range, kept, map_sectors, open, snapshot_id, write_map};
use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Geometry, Lba, SECTOR_BYTES,
    SectorRange, ZeroMode,
};
use sealblk_testkit::crash_device::Plug;
use sealblk_testkit::{CrashDevice, Model};
use sealblk_volume::map::{BLOCK_BYTES, Background, ChangesKnown, MappedDevice};

/// Three blocks, of which the snapshot has the first two, and a short one.
const SECTORS: u64 = 3 * BLOCK_SECTORS + 8;
const MISSING: [u64; 2] = [0, 1];

/// Part of a device, from a sector on.
#[derive(Clone)]
struct Part<D> {
    device: D,
    start: u64,
    sectors: u64,
}

struct PartLane<L> {
    lane: L,
    start: u64,
}

impl<D: BlockDevice> BlockDevice for Part<D> {
    type Lane = PartLane<D::Lane>;

    fn geometry(&self) -> Geometry {
        Geometry { sectors: self.sectors, ..self.device.geometry() }
    }

    fn open_lane(&self) -> Result<Self::Lane, BlockError> {
        Ok(PartLane { lane: self.device.open_lane()?, start: self.start })
    }
}

impl<L> PartLane<L> {
    fn at(&self, at: Lba) -> Lba {
        Lba(at.0 + self.start)
    }

    fn range(&self, range: SectorRange) -> SectorRange {
        SectorRange { start: self.at(range.start), count: range.count }
    }
}

impl<L: BlockLane> BlockLane for PartLane<L> {
    async fn read(&self, at: Lba, buffer: Buffer) -> Completion {
        self.lane.read(self.at(at), buffer).await
    }

    async fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> Completion {
        self.lane.write(self.at(at), buffer, durability).await
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.lane.zero(self.range(range), mode, durability).await
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.lane.discard(self.range(range), durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.lane.flush().await
    }

    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.lane.extents(self.range(range), extents).await
    }
}

type Device = MappedDevice<Part<CrashDevice>, Part<CrashDevice>>;

fn halves(device: &CrashDevice) -> (Part<CrashDevice>, Part<CrashDevice>) {
    let data = Part { device: device.clone(), start: 0, sectors: SECTORS };
    (data, Part { device: device.clone(), start: SECTORS, sectors: map_sectors(SECTORS) })
}

fn opened(device: &CrashDevice) -> Device {
    let (data, store) = halves(device);
    rig::run(open(data, store, SECTORS, Some(snapshot_id(1)))).expect("opens after any crash")
}

#[derive(Clone, Debug)]
enum Op {
    Read(SectorRange),
    Write(SectorRange, u64, Durability),
    Zero(SectorRange, Durability),
    Discard(SectorRange),
    Flush,
    /// A snapshot begins; its content is compared when it ends.
    Begin,
    /// The snapshot in progress is completed, or abandoned.
    End(bool),
    /// A clean end and a new attachment.
    Reattach,
}

fn range() -> impl Strategy<Value = SectorRange> {
    let part = (0..SECTORS, 1_u64..24)
        .prop_map(|(start, count)| SectorRange { start: Lba(start), count: count.min(SECTORS - start) });
    let edge = (1_u64..4, 1_u64..16).prop_map(|(block, reach)| {
        let start = block * BLOCK_SECTORS - reach;
        SectorRange { start: Lba(start), count: (2 * reach).min(SECTORS - start) }
    });
    let whole = (0_u64..3).prop_map(block_range);
    let more = (0_u64..2, 0_u64..8).prop_map(|(block, reach)| SectorRange {
        start: Lba(block * BLOCK_SECTORS + reach),
        count: BLOCK_SECTORS + reach,
    });
    prop_oneof![4 => part, 2 => edge, 3 => whole, 1 => more]
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![3 => Just(Durability::Volatile), 1 => Just(Durability::Durable)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => range().prop_map(Op::Read),
        6 => (range(), any::<u64>(), durability()).prop_map(|(range, seed, how)| Op::Write(range, seed, how)),
        2 => (range(), durability()).prop_map(|(range, how)| Op::Zero(range, how)),
        2 => range().prop_map(Op::Discard),
        2 => Just(Op::Flush),
        1 => Just(Op::Begin),
        1 => any::<bool>().prop_map(Op::End),
        1 => Just(Op::Reattach),
    ]
}

fn plug() -> impl Strategy<Value = Plug> {
    prop_oneof![
        (1_u64..40).prop_map(Plug::AtChange),
        (1_u64..12).prop_map(Plug::AtFlush),
        (1_u64..12).prop_map(Plug::AfterFlush),
    ]
}

/// What a test knows from outside.
struct Outside {
    model: Model,
    source: TestSource,
    /// The content of the last completed snapshot, block by block, if there was one in this history.
    base: Option<Vec<u8>>,
    snapshots: u8,
}

fn bytes(range: SectorRange) -> (usize, usize) {
    let small = |bytes: u64| usize::try_from(bytes).expect("small");
    (small(range.start.byte_offset()), small(range.bytes()))
}

async fn image_of<D: BlockDevice>(device: &D) -> Result<Vec<u8>, BlockError> {
    let lane = device.open_lane()?;
    let (_, length) = bytes(SectorRange { start: Lba(0), count: SECTORS });
    let (result, buffer) = lane.read(Lba(0), Buffer::new(length)).await;
    result.map(|()| buffer.to_vec())
}

/// Does `op` on a lane and on the model.
async fn apply<L: BlockLane>(lane: &L, model: &mut Model, op: &Op) -> Result<(), BlockError> {
    match *op {
        Op::Read(range) => {
            let (offset, length) = bytes(range);
            let (result, seen) = lane.read(range.start, rig::buffer(&vec![0xAA; length])).await;
            if result.is_ok() {
                model.check(offset, &seen).expect("the model allows what is read");
            }
            result
        }
        Op::Write(range, seed, durability) => {
            let (offset, length) = bytes(range);
            let data = rig::pattern(seed, length / SECTOR_BYTES);
            let result = lane.write(range.start, rig::buffer(&data), durability).await.0;
            model.write(offset, &data, result.is_ok() && durability == Durability::Durable);
            result
        }
        Op::Zero(range, durability) => {
            let (offset, length) = bytes(range);
            let result = lane.zero(range, ZeroMode::MayUnmap, durability).await;
            model.zero(offset, length, result.is_ok() && durability == Durability::Durable);
            result
        }
        Op::Discard(range) => {
            let (offset, length) = bytes(range);
            model.discard(offset, length);
            lane.discard(range, Durability::Volatile).await
        }
        Op::Flush => {
            lane.flush().await?;
            model.flush();
            Ok(())
        }
        Op::Begin | Op::End(_) | Op::Reattach => unreachable!("done by the caller"),
    }
}

impl Outside {
    /// The snapshot that the next can be built upon: the last one, or the one that the volume was made from.
    fn base_id(&self) -> Option<sealblk_volume::SnapshotId> {
        Some(snapshot_id(if self.snapshots == 0 { 1 } else { 100 + self.snapshots }))
    }

    /// What `device` says of changes since the last snapshot is true of what it shows.
    async fn check_changes(&self, device: &Device, image: &[u8]) {
        let ChangesKnown::Exact { .. } = device.changes_known() else { return };
        let Some(base) = &self.base else { return };
        let spool = MemoryPart::new(SECTORS);
        let snapshot = device.begin_snapshot(spool.0, self.base_id()).await.expect("begins");
        let reader = snapshot.open_reader().expect("a reader");
        let mut named = BTreeSet::new();
        let mut at = reader.next(0).await.expect("next");
        while let Some(block) = at {
            named.insert(block);
            at = reader.next(block + 1).await.expect("next");
        }
        for (block, (now, then)) in (0..).zip(image.chunks(BLOCK_BYTES).zip(base.chunks(BLOCK_BYTES))) {
            assert!(
                now == then || named.contains(&block),
                "block {block} changed, and the map does not know"
            );
        }
    }

    /// Runs `ops` on one attachment, until the power is gone or all are done; what is left to do.
    async fn attached(&mut self, device: &Device, crash: &CrashDevice, ops: &mut std::slice::Iter<'_, Op>) {
        let lane = device.open_lane().expect("lane");
        let mut live = None;
        for op in ops {
            let result = match op {
                Op::Begin if live.is_none() => {
                    // The model's choice between two things is made by looking.
                    let Ok(image) = image_of(device).await else { return };
                    self.model.check(0, &image).expect("the model allows what is read");
                    let spool = MemoryPart::new(SECTORS);
                    live =
                        Some((device.begin_snapshot(spool.0, self.base_id()).await.expect("begins"), image));
                    Ok(())
                }
                Op::Begin => Ok(()),
                Op::End(complete) => match live.take() {
                    None => Ok(()),
                    Some((snapshot, frozen)) => {
                        let read = self.compare(&snapshot, &frozen).await;
                        if read.is_ok() && *complete {
                            self.snapshots += 1;
                            snapshot.complete(snapshot_id(100 + self.snapshots)).expect("complete");
                            self.base = Some(frozen);
                        }
                        read
                    }
                },
                Op::Reattach => {
                    drop(live.take());
                    drop(lane);
                    if device.close().await.is_ok() {
                        self.model.flush();
                    }
                    return;
                }
                op => apply(&lane, &mut self.model, op).await,
            };
            if let Err(error) = result {
                assert!(crash.is_off(), "{op:?} failed without a crash: {error}");
                return;
            }
        }
    }

    /// A snapshot shows the frozen content, whatever happened since; with a base, where it differs from it.
    async fn compare(
        &self,
        snapshot: &sealblk_volume::map::LiveSnapshot<Part<CrashDevice>, Part<CrashDevice>>,
        frozen: &[u8],
    ) -> Result<(), BlockError> {
        let reader = snapshot.open_reader()?;
        let mut next = reader.next(0).await?;
        for (block, expected) in (0..).zip(frozen.chunks(BLOCK_BYTES)) {
            if next != Some(block) {
                let zeros = vec![0; expected.len()];
                let then = match snapshot.base() {
                    None => Some(&zeros[..]),
                    // Restored from, not made here: only where nobody has written is that known.
                    Some(_) => {
                        self.base.as_deref().and_then(|base| base.chunks(BLOCK_BYTES).nth(block as usize))
                    }
                };
                assert!(then.is_none_or(|then| then == expected), "block {block} is not named");
                continue;
            }
            next = reader.next(block + 1).await?;
            let (result, seen) = reader.read(block, Buffer::new(expected.len())).await;
            result?;
            assert!(seen[..] == *expected, "block {block} is not what it was at the instant");
        }
        Ok(())
    }
}

/// A spool: its content is of no use after a crash, so it has its own power.
struct MemoryPart(Part<CrashDevice>);

impl MemoryPart {
    fn new(sectors: u64) -> Self {
        Self(Part { device: CrashDevice::new(sectors, 0, Plug::Stays), start: 0, sectors })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_crash_lays_an_old_block_over_a_newer_write_or_loses_a_change(
        lives in prop::collection::vec((prop::collection::vec(op(), 1..30), plug()), 1..4),
        seed in any::<u64>(), in_background in any::<bool>(),
    ) {
        let background = if in_background { Background::Restore } else { Background::Idle };
        let source = TestSource::new(seed, 2);
        let mut crash = CrashDevice::new(SECTORS + map_sectors(SECTORS), seed, Plug::Stays);
        rig::run(async { write_map(&halves(&crash).1, SECTORS, &MISSING, true).await });
        let mut model = Model::new(usize::try_from(SECTORS).expect("small") * SECTOR_BYTES);
        model.write(0, &source.image, true);
        let mut base = source.image.to_vec();
        base.resize(model.bytes(), 0);
        let mut outside = Outside { model, source, base: Some(base), snapshots: 0 };
        for (ops, plug) in &lives {
            crash = crash.restart(*plug);
            let mut ops = ops.iter();
            while ops.len() > 0 && !crash.is_off() {
                // Opening reads only; a keeper that cannot begin is a crash.
                let device = opened(&crash);
                rig::run(kept(&device, outside.source.clone(), background, outside.attached(&device, &crash, &mut ops)));
            }
            // The machine comes up again, and somebody looks at all of it, on a copy: looking restores.
            crash = crash.restart(Plug::Stays);
            let copy = crash.restart(Plug::Stays);
            let device = opened(&copy);
            rig::run(kept(&device, outside.source.clone(), Background::Idle, async {
                let image = image_of(&device).await.expect("reads");
                outside.model.recover(&image).expect("everything flushed is there, and nothing older over it");
                outside.check_changes(&device, &image).await;
            }));
        }
    }
}
