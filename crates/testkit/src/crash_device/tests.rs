//! The crash device keeps its promises, or the tests that use it prove nothing.

use std::collections::BTreeSet;

use sealblk_block::{BlockDevice, BlockError, BlockLane, Buffer, Durability, Lba, SectorRange, ZeroMode};

use super::{CrashDevice, CrashLane, Plug};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn sectors(value: u8, count: usize) -> Buffer {
    let mut buffer = Buffer::new(count * 512);
    buffer.fill(value);
    buffer
}

async fn write(lane: &CrashLane, at: u64, value: u8, durability: Durability) -> Result<(), BlockError> {
    lane.write(Lba(at), sectors(value, 1), durability).await.0
}

/// The first byte of each sector that survived.
fn survivors(device: &CrashDevice) -> Vec<u8> {
    device.durable_bytes().chunks(512).map(|sector| sector[0]).collect()
}

#[test]
fn what_was_flushed_or_written_durably_always_survives() {
    for seed in 0..64 {
        let device = CrashDevice::new(4, seed, Plug::Stays);
        let lane = device.open_lane().expect("a lane");
        block_on(async {
            write(&lane, 0, 1, Durability::Volatile).await.expect("written");
            lane.flush().await.expect("flushed");
            write(&lane, 1, 2, Durability::Volatile).await.expect("written");
            write(&lane, 1, 3, Durability::Durable).await.expect("written");
        });
        device.pull_the_plug();
        assert_eq!(survivors(&device), [1, 3, 0, 0], "seed {seed}");
    }
}

#[test]
fn what_was_not_flushed_survives_in_every_way_and_sector_by_sector() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let device = CrashDevice::new(2, seed, Plug::Stays);
        let lane = device.open_lane().expect("a lane");
        block_on(async {
            lane.write(Lba(0), sectors(1, 2), Durability::Volatile).await.0.expect("written");
            write(&lane, 0, 2, Durability::Volatile).await.expect("written");
        });
        device.pull_the_plug();
        seen.insert(survivors(&device));
    }
    let all: BTreeSet<_> = [0, 1, 2].into_iter().flat_map(|a| [0, 1].map(|b| vec![a, b])).collect();
    assert_eq!(seen, all);
}

#[test]
fn nothing_works_without_power_and_the_restart_has_what_survived() {
    let device = CrashDevice::new(8, 1, Plug::AtChange(2));
    let lane = device.open_lane().expect("a lane");
    block_on(async {
        write(&lane, 0, 7, Durability::Durable).await.expect("written");
        write(&lane, 1, 8, Durability::Durable).await.expect_err("the plug is pulled during it");
        assert!(device.is_off());
        lane.read(Lba(0), sectors(0, 1)).await.0.expect_err("no power");
        lane.flush().await.expect_err("no power");
        let all = SectorRange { start: Lba(0), count: 8 };
        lane.zero(all, ZeroMode::MayUnmap, Durability::Volatile).await.expect_err("no power");
        let again = device.restart(Plug::Stays);
        let lane = again.open_lane().expect("a lane");
        let (outcome, buffer) = lane.read(Lba(0), Buffer::new(512)).await;
        outcome.expect("read");
        assert_eq!(buffer[0], 7);
        assert_eq!(again.durable_bytes(), device.durable_bytes());
    });
}

#[test]
fn the_plug_is_pulled_at_or_after_the_flush_that_was_named() {
    block_on(async {
        let device = CrashDevice::new(1, 1, Plug::AtFlush(2));
        let lane = device.open_lane().expect("a lane");
        lane.flush().await.expect("the first");
        lane.flush().await.expect_err("the second");
        let device = CrashDevice::new(1, 1, Plug::AfterFlush(1));
        let lane = device.open_lane().expect("a lane");
        write(&lane, 0, 9, Durability::Volatile).await.expect("written");
        lane.flush().await.expect("acknowledged");
        assert!(device.is_off());
        assert_eq!((survivors(&device), device.counts()), (vec![9], (1, 1)));
    });
}
