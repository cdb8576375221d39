//! A device that fails: the failure is told as it is, and nothing is made of half a result.

mod rig;

use std::io::ErrorKind;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Durability, Lba, MemoryDevice, Operation, SectorRange, ZeroMode,
};
use sealblk_testkit::FaultDevice;
use sealblk_testkit::fault_device::{Effect, Fault};
use sealblk_volume::{OpenError, Volume};
use sealblk_xts::SectorCipher;

const SECTORS: u64 = 2048;
const WHOLE: SectorRange = SectorRange { start: Lba(0), count: SECTORS };

/// A volume on a device that is well until told otherwise.
fn volume(discard: bool) -> Volume<SectorCipher, FaultDevice<MemoryDevice>> {
    rig::encrypted(FaultDevice::new(MemoryDevice::new(SECTORS)), &rig::key(1), discard)
}

fn break_next(device: &FaultDevice<MemoryDevice>, operation: Operation, after: u64, effect: Effect) {
    let nth = Some(device.count(operation) + after);
    device.add(Fault { operation, nth, effect });
}

#[test]
fn what_a_failed_read_left_in_the_buffer_is_not_decrypted() {
    let volume = volume(true);
    let data = rig::pattern(1, 16);
    let stored = rig::Oracle::new(&rig::key_bytes(1)).encrypt(0, &data);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        rig::write(&lane, 0, &data).await;
        break_next(volume.device(), Operation::Read, 1, Effect::Shorten);
        let (result, buffer) = lane.read(Lba(0), rig::buffer(&[0xAA; 16 * 512])).await;
        assert!(matches!(result, Err(BlockError::Io { .. })), "{result:?}");
        // Half of the sectors came before the failure: as they are stored.
        assert_eq!(buffer[..8 * 512], stored[..8 * 512]);
        assert_eq!(rig::read(&lane, 0, 16).await, data);
    });
}

#[test]
fn a_full_store_is_told_by_writes_and_by_encrypted_zeros() {
    let volume = volume(false);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        break_next(volume.device(), Operation::Write, 1, Effect::NoSpace);
        let full = lane.write(Lba(8), rig::buffer(&[1; 512]), Durability::Volatile).await.0;
        assert!(matches!(full, Err(BlockError::NoSpace { at: Lba(8), .. })), "{full:?}");
        // The third of four pieces: the first two are there, the fourth is not tried.
        let before = volume.device().count(Operation::Write);
        break_next(volume.device(), Operation::Write, 3, Effect::NoSpace);
        let full = lane.zero(WHOLE, ZeroMode::MayUnmap, Durability::Durable).await;
        assert!(matches!(full, Err(BlockError::NoSpace { at: Lba(1024), .. })), "{full:?}");
        assert_eq!(volume.device().count(Operation::Write), before + 3);
        // And the lane goes on.
        lane.zero(WHOLE, ZeroMode::MayUnmap, Durability::Durable).await.expect("zero");
    });
}

#[test]
fn encrypted_zeros_are_durable_only_if_the_flush_was() {
    let volume = volume(false);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        break_next(volume.device(), Operation::Flush, 1, Effect::Fail(ErrorKind::Other));
        lane.zero(WHOLE, ZeroMode::MayUnmap, Durability::Volatile).await.expect("no flush is needed");
        lane.zero(WHOLE, ZeroMode::MayUnmap, Durability::Durable).await.expect_err("the flush failed");
        let latched = lane.flush().await;
        assert!(matches!(latched, Err(BlockError::Latched { .. })), "{latched:?}");
    });
}

#[test]
fn materialize_is_complete_only_if_its_flush_was() {
    let volume = volume(true);
    break_next(volume.device(), Operation::Flush, 1, Effect::Fail(ErrorKind::Other));
    rig::run(volume.materialize(|_| ())).expect_err("the flush failed");
}

#[test]
fn a_device_that_cannot_be_searched_is_not_taken_for_blank() {
    for operation in [Operation::Read, Operation::Extents] {
        let device = FaultDevice::new(MemoryDevice::new(SECTORS));
        rig::run(async { rig::write(&device.open_lane().expect("lane"), 0, &[0; 512]).await });
        break_next(&device, operation, 1, Effect::Fail(ErrorKind::Other));
        let error =
            rig::seal(&rig::encrypted_record(SECTORS * 512), &rig::key(1), &device).expect_err("refused");
        assert!(matches!(error, OpenError::Device(_)), "{operation}: {error:?}");
    }
}
