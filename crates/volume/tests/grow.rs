//! A volume that grows: old lanes and new ones, missing blocks and changes, and what a map says at any moment of it.

mod rig;

use rig::map::{
    BLOCK_SECTORS, TestSource, identity, kept, map_sectors, open, run_kept, snapshot_id, write_map,
};
use rig::{encrypted_record, key, pattern, read, seal, write};
use sealblk_block::{BlockDevice, MemoryDevice};
use sealblk_volume::map::{Background, ChangesKnown, GrowError};
use sealblk_volume::{SealError, Sealer, VolumeSize};

/// Two blocks and a half; and four and a bit.
const OLD: u64 = 2 * BLOCK_SECTORS + BLOCK_SECTORS / 2;
const NEW: u64 = 4 * BLOCK_SECTORS + 8;

fn size(sectors: u64) -> VolumeSize {
    identity(sectors).size
}

#[test]
fn lanes_keep_their_size_and_new_ones_see_the_new_blocks_as_zeros() {
    let store = MemoryDevice::new(map_sectors(NEW));
    let volume = rig::run(open(MemoryDevice::new(NEW), store, OLD, None)).expect("a volume");
    run_kept(&volume, TestSource::default(), async {
        let old = volume.open_lane().expect("a lane");
        write(&old, OLD - 8, &pattern(1, 8)).await;
        volume.grow(size(NEW)).await.expect("grown");
        volume.grow(size(OLD)).await.expect("nothing to do");
        assert_eq!((volume.geometry().sectors, volume.blocks()), (NEW, 5));
        let new = volume.open_lane().expect("a lane");
        assert!(
            read(&new, OLD, usize::try_from(NEW - OLD).expect("small")).await.iter().all(|&byte| byte == 0)
        );
        write(&new, NEW - 8, &pattern(2, 8)).await;
        write(&old, 0, &pattern(3, 8)).await;
        assert_eq!(read(&old, OLD - 8, 8).await, pattern(1, 8));
        assert_eq!(read(&new, 0, 8).await, pattern(3, 8));
        assert_eq!(read(&new, NEW - 8, 8).await, pattern(2, 8));
    });
}

#[test]
fn missing_blocks_are_restored_after_the_volume_grew_and_new_ones_are_here() {
    let (device, store) = (MemoryDevice::new(NEW), MemoryDevice::new(map_sectors(NEW)));
    rig::run(write_map(&store, OLD, &[0, 2], true));
    let mut source = TestSource::new(7, 3);
    // The snapshot's last block is as short as the volume's was.
    let image = source.image[..usize::try_from(OLD).expect("small") * 512].to_vec();
    source.image = std::rc::Rc::new(image);
    let volume = rig::run(open(device.clone(), store.clone(), OLD, Some(snapshot_id(1)))).expect("a volume");
    run_kept(&volume, source.clone(), async {
        let old = volume.open_lane().expect("a lane");
        volume.grow(size(NEW)).await.expect("grown");
        assert!(!volume.is_restored(2) && volume.is_restored(3) && volume.is_restored(4));
        let new = volume.open_lane().expect("a lane");
        // Into the missing block, behind its old end: its old part is brought first.
        write(&new, OLD, &pattern(2, 8)).await;
        assert_eq!(read(&old, OLD - 1, 1).await, source.block(2)[source.block(2).len() - 512..]);
        write(&new, 3 * BLOCK_SECTORS, &pattern(4, 8)).await;
        volume.close().await.expect("a clean end");
    });
    // The map says so too: block 0 is missing still, and nothing else.
    let again =
        rig::run(open(device, store, NEW, Some(snapshot_id(1)))).expect("the map of the larger volume");
    let here: Vec<bool> = (0..5).map(|block| again.is_restored(block)).collect();
    assert_eq!(here, [false, true, true, true, true]);
    run_kept(&again, source.clone(), async {
        let lane = again.open_lane().expect("a lane");
        assert_eq!(read(&lane, 0, 8).await, source.block(0)[..4096]);
        assert_eq!(read(&lane, OLD, 8).await, pattern(2, 8));
        assert_eq!(read(&lane, 3 * BLOCK_SECTORS, 8).await, pattern(4, 8));
    });
}

#[test]
fn a_map_of_the_volume_before_it_grew_is_made_longer_when_it_is_opened() {
    let (device, store) = (MemoryDevice::new(NEW), MemoryDevice::new(map_sectors(NEW)));
    rig::run(write_map(&store, OLD, &[2], true));
    // The record was stored, and the power went: what was changed is known all the same, and what is new is among it.
    for _ in 0..2 {
        let volume =
            rig::run(open(device.clone(), store.clone(), NEW, Some(snapshot_id(1)))).expect("a longer map");
        assert!(volume.is_restored(0) && !volume.is_restored(2) && volume.is_restored(4));
        let known = ChangesKnown::Exact { since: snapshot_id(1), blocks: 3 };
        assert_eq!(volume.changes_known(), known);
        run_kept(&volume, TestSource::new(7, 2), async { volume.close().await.expect("a clean end") });
    }
    let smaller = rig::run(open(device, store, OLD, Some(snapshot_id(1))));
    assert!(smaller.is_err(), "never of a larger volume than the record says");
}

#[test]
fn changes_stay_known_and_what_is_new_is_among_them() {
    let (device, store) = (MemoryDevice::new(NEW), MemoryDevice::new(map_sectors(NEW)));
    rig::run(write_map(&store, OLD, &[0], true));
    let volume = rig::run(open(device.clone(), store.clone(), OLD, Some(snapshot_id(1)))).expect("a volume");
    run_kept(&volume, TestSource::new(7, 2), async {
        volume.grow(size(NEW)).await.expect("grown");
        volume.close().await.expect("a clean end");
    });
    let again = rig::run(open(device, store, NEW, Some(snapshot_id(1)))).expect("a volume");
    assert_eq!(again.changes_known(), ChangesKnown::Exact { since: snapshot_id(1), blocks: 3 });
}

#[test]
fn a_volume_does_not_grow_under_a_snapshot_in_progress() {
    let store = MemoryDevice::new(map_sectors(NEW));
    let volume = rig::run(open(MemoryDevice::new(NEW), store, OLD, None)).expect("a volume");
    rig::run(kept(&volume, TestSource::default(), Background::Idle, async {
        let spool = MemoryDevice::new(OLD);
        let snapshot = volume.begin_snapshot(spool, None).await.expect("begun");
        let refused = volume.grow(size(NEW)).await.expect_err("one size at a time");
        assert!(matches!(refused, GrowError::SnapshotInProgress), "{refused}");
        assert_eq!(snapshot.blocks(), 3);
        drop(snapshot);
        volume.grow(size(NEW)).await.expect("grown");
        volume.begin_snapshot(MemoryDevice::new(OLD), None).await.expect_err("a spool made before it grew");
        assert_eq!(volume.begin_snapshot(MemoryDevice::new(NEW), None).await.expect("begun").blocks(), 5);
    }));
}

#[test]
fn a_record_is_sealed_again_with_its_own_key_and_only_as_it_was() {
    let bytes = 1 << 20;
    let larger = VolumeSize::from_bytes(2 * bytes).expect("a size");
    let unsealed = encrypted_record(bytes);
    assert_eq!(unsealed.resized(larger, None).expect("no seal yet").size_bytes, larger);
    let sealed = seal(&unsealed, &key(1), &MemoryDevice::new(bytes / 512)).expect("sealed");
    let sealer = |seed| Sealer::new(&key(seed)).expect("locked memory");
    let grown = sealed.resized(larger, Some(&sealer(1))).expect("sealed again");
    rig::open_encrypted(&grown, &key(1), MemoryDevice::new(2 * bytes / 512)).expect("the seal holds");
    assert!(matches!(sealed.resized(larger, None), Err(SealError::KeyNeeded)));
    assert!(matches!(sealed.resized(larger, Some(&sealer(2))), Err(SealError::WrongKey)));
    let mut tampered = sealed.clone();
    tampered.discard = !tampered.discard;
    assert!(matches!(tampered.resized(larger, Some(&sealer(1))), Err(SealError::Tampered)));
}
