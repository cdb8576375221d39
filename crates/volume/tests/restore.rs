//! A volume made from a snapshot: usable at once, block by block what the snapshot has, and never an old block over a
//! newer write.

mod rig;

use rig::map::{
    BLOCK_SECTORS, TestSource, block_range, kept, map_sectors, open, run_kept, snapshot_id, write_map,
};
use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Durability, Extent, FileDevice, FileOptions, Lba,
    MemoryDevice, Operation, SectorRange, ZeroMode,
};
use sealblk_testkit::FaultDevice;
use sealblk_testkit::fault_device::{Effect, Fault};
use sealblk_volume::map::{BLOCK_BYTES, Background, MapError, MappedDevice};

/// Four blocks, of which the snapshot has the first three.
const SECTORS: u64 = 4 * BLOCK_SECTORS;
const MISSING: [u64; 3] = [0, 1, 2];

type Device = MappedDevice<MemoryDevice, MemoryDevice>;

fn source() -> TestSource {
    TestSource::new(1, 3)
}

/// A new volume, and what it is stored in.
fn restoring() -> (Device, MemoryDevice, MemoryDevice) {
    let (data, store) = (MemoryDevice::new(SECTORS), MemoryDevice::new(map_sectors(SECTORS)));
    let device = rig::run(async {
        write_map(&store, SECTORS, &MISSING, true).await;
        open(data.clone(), store.clone(), SECTORS, Some(snapshot_id(1))).await.expect("opens")
    });
    (device, data, store)
}

fn reopened(data: &MemoryDevice, store: &MemoryDevice) -> Device {
    rig::run(open(data.clone(), store.clone(), SECTORS, Some(snapshot_id(1)))).expect("opens")
}

#[test]
fn a_block_is_fetched_on_first_access_and_only_then() {
    let (device, data, _) = restoring();
    let source = source();
    run_kept(&device, source.clone(), async {
        let lane = device.open_lane().expect("lane");
        assert_eq!(rig::read(&lane, BLOCK_SECTORS + 3, 2).await, source.block(1)[3 * 512..5 * 512]);
        assert_eq!(*source.fetched.borrow(), [1]);
        rig::read(&lane, BLOCK_SECTORS, 8).await;
        assert!(rig::read(&lane, 3 * BLOCK_SECTORS, 8).await.iter().all(|&byte| byte == 0), "behind the end");
        assert_eq!(*source.fetched.borrow(), [1]);
        let progress = device.restore_progress().expect("it is being restored");
        assert_eq!((progress.restored_blocks, progress.total_blocks), (1, 3));
        assert_eq!(rig::read_all(&data).await[BLOCK_BYTES..2 * BLOCK_BYTES], *source.block(1));
    });
}

#[test]
fn a_write_into_a_missing_block_keeps_what_is_around_it() {
    let (device, _, _) = restoring();
    let source = source();
    run_kept(&device, source.clone(), async {
        let lane = device.open_lane().expect("lane");
        rig::write(&lane, 10, &[7; 1024]).await;
        let shown = rig::read(&lane, 0, 1024).await;
        assert_eq!(shown[..5120], source.block(0)[..5120]);
        assert_eq!(shown[5120..6144], [7; 1024]);
        assert_eq!(shown[6144..], source.block(0)[6144..]);
    });
}

#[test]
fn a_write_or_zero_of_a_whole_block_fetches_nothing() {
    let (device, _, _) = restoring();
    let source = source();
    run_kept(&device, source.clone(), async {
        let lane = device.open_lane().expect("lane");
        rig::write(&lane, 0, &vec![7; BLOCK_BYTES]).await;
        lane.zero(block_range(1), ZeroMode::MayUnmap, Durability::Volatile).await.expect("zero");
        let whole_and_half = SectorRange { start: Lba(2 * BLOCK_SECTORS), count: BLOCK_SECTORS + 8 };
        lane.discard(whole_and_half, Durability::Volatile).await.expect("discard");
        assert!(source.fetched.borrow().is_empty());
        let shown = rig::read_all(&device).await;
        assert!(shown[..BLOCK_BYTES].iter().all(|&byte| byte == 7));
        assert!(shown[BLOCK_BYTES..].iter().all(|&byte| byte == 0));
        assert!(source.fetched.borrow().is_empty());
    });
}

#[test]
fn a_whole_write_that_fails_leaves_the_snapshots_content() {
    let data = FaultDevice::new(MemoryDevice::new(SECTORS));
    let store = MemoryDevice::new(map_sectors(SECTORS));
    let source = source();
    rig::run(async {
        write_map(&store, SECTORS, &MISSING, true).await;
        let device = open(data.clone(), store, SECTORS, Some(snapshot_id(1))).await.expect("opens");
        kept(&device, source.clone(), Background::Idle, async {
            let lane = device.open_lane().expect("lane");
            data.add(Fault { operation: Operation::Write, nth: Some(1), effect: Effect::NoSpace });
            let full = lane.write(Lba(0), rig::buffer(&vec![7; BLOCK_BYTES]), Durability::Volatile).await.0;
            assert!(matches!(full, Err(BlockError::NoSpace { .. })), "{full:?}");
            assert_eq!(rig::read(&lane, 0, 1024).await, source.block(0));
        })
        .await;
    });
}

#[test]
fn without_the_snapshot_missing_blocks_fail_and_others_work() {
    let (device, _, _) = restoring();
    let source = source();
    run_kept(&device, source.clone(), async {
        let lane = device.open_lane().expect("lane");
        rig::read(&lane, 0, 1).await;
        source.unreachable.set(true);
        let (result, _) = lane.read(Lba(BLOCK_SECTORS), rig::buffer(&[0; 512])).await;
        let error = result.expect_err("it is out of reach");
        assert!(
            matches!(&error, BlockError::Io { operation: Operation::Read, source, .. }
            if source.kind() == std::io::ErrorKind::TimedOut),
            "{error:?}"
        );
        rig::write(&lane, 5, &[1; 512]).await;
        rig::write(&lane, 3 * BLOCK_SECTORS, &[1; 512]).await;
        lane.flush().await.expect("flush");
        source.unreachable.set(false);
        assert_eq!(rig::read(&lane, BLOCK_SECTORS, 1024).await, source.block(1), "asked again");
    });
}

#[test]
fn the_background_restores_the_rest_and_the_map_says_so() {
    let (device, data, store) = restoring();
    let source = source();
    rig::run(kept(&device, source.clone(), Background::Restore, async {
        device.restored().await.expect("restored");
        let progress = device.restore_progress().expect("it was being restored");
        assert_eq!((progress.restored_blocks, progress.total_blocks), (3, 3));
    }));
    assert_eq!(rig::run(rig::read_all(&data))[..3 * BLOCK_BYTES], **source.image);
    let again = reopened(&data, &store);
    assert_eq!(again.restore_progress(), None, "there is nothing to restore any more");
    source.fetched.borrow_mut().clear();
    run_kept(&again, source.clone(), async { rig::read_all(&again).await });
    assert!(source.fetched.borrow().is_empty());
}

#[test]
fn a_failed_background_restore_is_told_to_who_waits_for_it() {
    let (device, _, _) = restoring();
    let source = source();
    source.unreachable.set(true);
    let told = rig::run(kept(&device, source, Background::Restore, device.restored()));
    assert_eq!(told.expect_err("out of reach").kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn restored_blocks_are_not_fetched_again_after_a_flush() {
    let (device, data, store) = restoring();
    run_kept(&device, source(), async {
        let lane = device.open_lane().expect("lane");
        rig::read(&lane, 0, 1).await;
        rig::write(&lane, BLOCK_SECTORS, &vec![7; BLOCK_BYTES]).await;
        lane.flush().await.expect("flush");
    });
    let again = reopened(&data, &store);
    let progress = again.restore_progress().expect("one block is missing");
    assert_eq!((progress.restored_blocks, progress.total_blocks), (2, 3));
    assert!(again.is_restored(0) && again.is_restored(1) && !again.is_restored(2));
    assert_eq!(
        again.restored_run(SectorRange { start: Lba(8), count: SECTORS - 8 }),
        (2 * BLOCK_SECTORS - 8, true)
    );
    assert_eq!(again.restored_run(SectorRange { start: Lba(2 * BLOCK_SECTORS), count: 8 }), (8, false));
}

#[test]
fn what_came_here_before_the_keeper_began_is_in_the_map_too() {
    let (data, store) = (MemoryDevice::new(SECTORS), MemoryDevice::new(map_sectors(SECTORS)));
    rig::run(async {
        write_map(&store, SECTORS, &MISSING, false).await;
        let device = open(data.clone(), store.clone(), SECTORS, Some(snapshot_id(1))).await.expect("opens");
        let lane = device.open_lane().expect("lane");
        rig::write(&lane, 0, &vec![7; BLOCK_BYTES]).await;
        kept(&device, source(), Background::Idle, async { lane.flush().await.expect("flush") }).await;
    });
    assert!(reopened(&data, &store).is_restored(0));
}

#[test]
fn a_missing_block_is_data_to_who_asks_for_extents() {
    let (device, _, _) = restoring();
    run_kept(&device, source(), async {
        let lane = device.open_lane().expect("lane");
        lane.zero(block_range(1), ZeroMode::MayUnmap, Durability::Volatile).await.expect("zero");
        let mut extents: Vec<Extent> = Vec::with_capacity(8);
        lane.extents(SectorRange { start: Lba(8), count: SECTORS - 8 }, &mut extents).await.expect("extents");
        let shown: Vec<(u64, bool)> =
            extents.iter().map(|extent| (extent.count, extent.allocation.zero)).collect();
        let block = BLOCK_SECTORS;
        assert_eq!(shown, [(block - 8, false), (block, true), (block, false), (block, true)]);
    });
}

#[test]
fn readers_and_writers_of_a_block_that_is_being_fetched_wait_for_one_fetch() {
    let (device, _, _) = restoring();
    let source = source();
    source.held.borrow_mut().insert(0);
    run_kept(&device, source.clone(), async {
        let lane = device.open_lane().expect("lane");
        let other = device.open_lane().expect("lane");
        let release = async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            source.held.borrow_mut().clear();
        };
        let whole = vec![9; BLOCK_BYTES];
        tokio::join!(
            rig::read(&lane, 0, 8),
            rig::write(&other, 4, &[7; 512]),
            rig::write(&lane, 0, &whole),
            release,
        );
        assert_eq!(*source.fetched.borrow(), [0]);
        let shown = rig::read(&lane, 0, 1024).await;
        assert!(shown.iter().all(|&byte| byte == 9 || byte == 7));
    });
}

#[test]
fn an_attempt_that_began_before_a_request_is_not_that_requests_failure() {
    let (device, _, _) = restoring();
    let source = source();
    source.held.borrow_mut().insert(1);
    source.unreachable.set(true);
    run_kept(&device, source.clone(), async {
        let lane = device.open_lane().expect("lane");
        let first = async {
            let (result, _) = lane.read(Lba(BLOCK_SECTORS), rig::buffer(&[0; 512])).await;
            source.unreachable.set(false);
            result
        };
        let later = async {
            while source.fetched.borrow().is_empty() {
                tokio::task::yield_now().await;
            }
            let read = rig::read(&lane, BLOCK_SECTORS, 8);
            let release = async { source.held.borrow_mut().clear() };
            tokio::join!(biased; read, release).0
        };
        let (first, later) = tokio::join!(first, later);
        first.expect_err("it was out of reach");
        assert_eq!(later, source.block(1)[..8 * 512]);
        assert_eq!(*source.fetched.borrow(), [1, 1]);
    });
}

#[test]
fn without_a_keeper_nobody_waits() {
    let (device, _, _) = restoring();
    run_kept(&device, source(), async {});
    rig::run(async {
        let lane = device.open_lane().expect("lane");
        let (result, _) = lane.read(Lba(0), rig::buffer(&[0; 512])).await;
        result.expect_err("nobody fetches");
        // Nor can anybody say durably that something changes.
        let whole = rig::buffer(&vec![7; BLOCK_BYTES]);
        lane.write(Lba(0), whole, Durability::Volatile).await.0.expect_err("nobody notes it");
    });
}

#[test]
fn whoever_waits_for_a_keeper_that_will_not_come_is_told_so() {
    // A process without a descriptor for the keeper's runtime waited for ever at its end.
    let (device, ..) = restoring();
    rig::run(async {
        let lane = device.open_lane().expect("lane");
        let (read, (), closed) = tokio::join!(
            lane.read(Lba(0), Buffer::new(512)),
            async { device.give_up_keeping() },
            device.close()
        );
        assert!(matches!(read.0, Err(BlockError::Io { operation: Operation::Read, .. })), "{:?}", read.0);
        assert!(matches!(closed, Err(BlockError::Io { operation: Operation::Flush, .. })), "{closed:?}");
    });
}

#[test]
fn a_map_that_does_not_belong_to_the_record_is_refused() {
    let (_, data, store) = restoring();
    let open_with =
        |origin| rig::run(open(data.clone(), store.clone(), SECTORS, origin)).expect_err("refused");
    assert!(matches!(open_with(None), MapError::OtherOrigin { .. }));
    assert!(matches!(open_with(Some(snapshot_id(2))), MapError::OtherOrigin { .. }));
    let blank = MemoryDevice::new(map_sectors(SECTORS));
    let lost = rig::run(open(data.clone(), blank, SECTORS, Some(snapshot_id(1)))).expect_err("refused");
    assert!(matches!(lost, MapError::Lost));
    let short = MemoryDevice::new(map_sectors(SECTORS) - 1);
    let damaged = rig::run(open(data, short, SECTORS, None)).expect_err("refused");
    assert!(matches!(damaged, MapError::Damaged { .. }));
}

#[test]
fn any_flipped_bit_of_a_restoring_map_is_found() {
    let (_, data, store) = restoring();
    // The header, the page of missing blocks; the page of changed ones only costs work.
    for (sector, refused) in [(0, true), (8, true), (16, false)] {
        let stored = rig::run(rig::read_all(&store));
        for bit in (0..4096).step_by(97) {
            let damaged = MemoryDevice::new(map_sectors(SECTORS));
            let mut bytes = stored.clone();
            bytes[sector * 512 + bit / 8] ^= 1 << (bit % 8);
            rig::run(async { rig::write(&damaged.open_lane().expect("lane"), 0, &bytes).await });
            let opened = rig::run(open(data.clone(), damaged, SECTORS, Some(snapshot_id(1))));
            assert_eq!(opened.is_err(), refused, "sector {sector}, bit {bit}");
        }
    }
}

#[test]
fn a_restore_goes_through_real_files_and_rings() {
    let temporary = tempfile::tempdir().expect("a directory");
    let file = |name: &str, sectors: u64| {
        let path = temporary.path().join(name);
        std::fs::File::create(&path).expect("create").set_len(sectors * 512).expect("size");
        FileDevice::open(&path, &FileOptions::default()).expect("opens")
    };
    let (data, store) = (file("data", SECTORS), file("map", map_sectors(SECTORS)));
    let source = source();
    rig::run(async {
        write_map(&store, SECTORS, &MISSING, true).await;
        let device = open(data.clone(), store.clone(), SECTORS, Some(snapshot_id(1))).await.expect("opens");
        kept(&device, source.clone(), Background::Restore, async {
            let lane = device.open_lane().expect("lane");
            rig::write(&lane, 0, &[7; 512]).await;
            device.restored().await.expect("restored");
            let shown = rig::read_all(&device).await;
            assert_eq!(shown[..512], [7; 512]);
            assert_eq!(shown[512..3 * BLOCK_BYTES], source.image[512..]);
            drop(lane);
            device.close().await.expect("closes");
        })
        .await;
        let again = open(data.clone(), store.clone(), SECTORS, Some(snapshot_id(1))).await.expect("opens");
        assert_eq!(again.restore_progress(), None);
    });
}
