//! What is a hole, what is data, and what trimming and zeroing do to either.

mod lanes;

use std::os::unix::fs::MetadataExt;

use lanes::{buffer_of, on_a_lane_thread, on_each_store, pattern};
use sealblk_block::{BlockDevice, BlockLane, Durability, Extent, Lba, MemoryDevice, SectorRange, ZeroMode};

const SIZE: u64 = 4 << 20;
const BLOCK: u64 = 128; // Sectors in 64 KiB: whole blocks of any store here.

async fn map(lane: &impl BlockLane, room: usize) -> Vec<(u64, bool)> {
    let (mut all, mut at): (Vec<(u64, bool)>, u64) = (Vec::new(), 0);
    while at < SIZE / 512 {
        let mut extents: Vec<Extent> = Vec::with_capacity(room);
        let range = SectorRange { start: Lba(at), count: SIZE / 512 - at };
        lane.extents(range, &mut extents).await.expect("extents");
        for extent in extents {
            assert_eq!(extent.allocation.hole, extent.allocation.zero);
            at += extent.count;
            match all.last_mut() {
                Some((count, hole)) if *hole == extent.allocation.hole => *count += extent.count,
                _ => all.push((extent.count, extent.allocation.hole)),
            }
        }
    }
    all
}

async fn write_map_trim<D: BlockDevice>(device: &D) {
    let lane = device.open_lane().expect("a lane");
    assert_eq!(map(&lane, 4).await, [(64 * BLOCK, true)]);
    for at in [2, 3, 10] {
        let bytes = buffer_of(&pattern(at, 65536));
        lane.write(Lba(at * BLOCK), bytes, Durability::Volatile).await.0.expect("written");
    }
    let expected =
        [(2 * BLOCK, true), (2 * BLOCK, false), (6 * BLOCK, true), (BLOCK, false), (53 * BLOCK, true)];
    for room in [1, 2, 16] {
        assert_eq!(map(&lane, room).await, expected, "with room for {room}");
    }
    lane.discard(SectorRange { start: Lba(2 * BLOCK), count: BLOCK }, Durability::Volatile)
        .await
        .expect("done");
    let range = SectorRange { start: Lba(10 * BLOCK), count: BLOCK };
    lane.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await.expect("zeroed");
    assert_eq!(map(&lane, 16).await, [(3 * BLOCK, true), (BLOCK, false), (60 * BLOCK, true)]);
}

#[test]
fn holes_and_data_are_told_apart_exactly() {
    on_a_lane_thread(async || write_map_trim(&MemoryDevice::new(SIZE / 512)).await);
    on_each_store(SIZE, |device, _| {
        on_a_lane_thread(async || write_map_trim(&device).await);
    });
}

#[test]
fn zeroing_gives_space_back_or_keeps_it_as_asked() {
    on_each_store(SIZE, |device, path| {
        let allocated = || std::fs::metadata(path).expect("metadata").blocks() * 512;
        on_a_lane_thread(async || {
            let lane = device.open_lane().expect("a lane");
            let all = SectorRange { start: Lba(0), count: SIZE / 512 };
            lane.zero(all, ZeroMode::KeepAllocated, Durability::Durable).await.expect("zeroed");
            assert!(allocated() >= SIZE, "{} bytes", allocated());
            lane.zero(all, ZeroMode::MayUnmap, Durability::Durable).await.expect("zeroed");
            assert!(allocated() < SIZE / 8, "{} bytes", allocated());
        });
    });
}

#[test]
fn the_whole_of_a_huge_sparse_device_is_zeroed_and_mapped_at_once() {
    on_a_lane_thread(async || {
        let sectors = 64 << (40 - 9); // 64 TiB
        let lane = MemoryDevice::new(sectors).open_lane().expect("a lane");
        let last = Lba(sectors - 1);
        lane.write(last, buffer_of(&[1; 512]), Durability::Volatile).await.0.expect("written");
        let all = SectorRange { start: Lba(1), count: sectors - 2 };
        lane.zero(all, ZeroMode::MayUnmap, Durability::Volatile).await.expect("zeroed");
        let mut extents: Vec<Extent> = Vec::with_capacity(4);
        let all = SectorRange { start: Lba(0), count: sectors };
        lane.extents(all, &mut extents).await.expect("extents");
        assert_eq!(extents.iter().map(|extent| extent.count).collect::<Vec<_>>(), [sectors - BLOCK, BLOCK]);
        lane.zero(all, ZeroMode::MayUnmap, Durability::Volatile).await.expect("zeroed");
        extents.clear();
        lane.extents(all, &mut extents).await.expect("extents");
        assert_eq!(extents.iter().map(|extent| extent.count).collect::<Vec<_>>(), [sectors]);
    });
}
