//! Random requests of whole sectors, done on a lane and on a model alike.

use proptest::prelude::*;
use sealblk_block::{BlockError, BlockLane, Durability, Lba, SECTOR_BYTES, SectorRange, ZeroMode};
use sealblk_testkit::Model;

use super::{buffer, pattern};

/// The smallest volume, 1 MiB.
pub const SECTORS: u64 = 2048;

/// What a lane is asked for.
#[derive(Clone, Debug)]
pub enum Op {
    Read(SectorRange),
    Write(SectorRange, u64, Durability),
    Zero(SectorRange, ZeroMode, Durability),
    Discard(SectorRange),
    Flush,
}

/// Ranges of whole units, half of them in the first 64 sectors so that they meet; some longer than a piece
/// of encrypted zeros (512 sectors).
fn range(unit: u64) -> impl Strategy<Value = SectorRange> {
    let units = SECTORS / unit;
    let start = prop_oneof![0..64 / unit, 0..units];
    let count = prop_oneof![4 => 1..=32 / unit.min(32), 1 => 1..=units];
    (start, count).prop_map(move |(start, count)| SectorRange {
        start: Lba(start * unit),
        count: count.min(units - start) * unit,
    })
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![3 => Just(Durability::Volatile), 1 => Just(Durability::Durable)]
}

fn mode() -> impl Strategy<Value = ZeroMode> {
    prop_oneof![
        Just(ZeroMode::MayUnmap),
        Just(ZeroMode::KeepAllocated),
        Just(ZeroMode::FastOnly),
        Just(ZeroMode::FastKeepAllocated),
    ]
}

pub fn op(unit: u64) -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => range(unit).prop_map(Op::Read),
        4 => (range(unit), any::<u64>(), durability()).prop_map(|(range, seed, durability)| Op::Write(range, seed, durability)),
        2 => (range(unit), mode(), durability()).prop_map(|(range, mode, durability)| Op::Zero(range, mode, durability)),
        1 => range(unit).prop_map(Op::Discard),
        1 => Just(Op::Flush),
    ]
}

fn offset(range: SectorRange) -> usize {
    usize::try_from(range.start.byte_offset()).expect("a small volume")
}

fn sectors(range: SectorRange) -> usize {
    usize::try_from(range.count).expect("a small volume")
}

/// Does one operation on a lane and on the model. After an error the model allows what a request that was
/// not acknowledged leaves: every sector old or new.
pub async fn apply<L: BlockLane>(lane: &L, model: &mut Model, op: &Op) -> Result<(), BlockError> {
    match *op {
        Op::Read(range) => {
            let (result, seen) =
                lane.read(range.start, buffer(&vec![0xAA; sectors(range) * SECTOR_BYTES])).await;
            if result.is_ok() {
                model.check(offset(range), &seen).expect("the model allows what is read");
            }
            result
        }
        Op::Write(range, seed, durability) => {
            let bytes = pattern(seed, sectors(range));
            let result = lane.write(range.start, buffer(&bytes), durability).await.0;
            model.write(offset(range), &bytes, result.is_ok() && durability == Durability::Durable);
            result
        }
        Op::Zero(range, mode, durability) => {
            let result = lane.zero(range, mode, durability).await;
            if matches!(result, Err(BlockError::Unsupported { .. })) {
                let fast = matches!(mode, ZeroMode::FastOnly | ZeroMode::FastKeepAllocated);
                assert!(fast, "{mode:?} works everywhere");
                return Ok(());
            }
            let durable = result.is_ok() && durability == Durability::Durable;
            model.zero(offset(range), sectors(range) * SECTOR_BYTES, durable);
            result
        }
        Op::Discard(range) => {
            model.discard(offset(range), sectors(range) * SECTOR_BYTES);
            lane.discard(range, Durability::Volatile).await
        }
        Op::Flush => {
            lane.flush().await?;
            model.flush();
            Ok(())
        }
    }
}
