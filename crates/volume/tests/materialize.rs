//! `materialize`: afterwards a reader that knows nothing of unwritten sectors reads the volume exactly.

mod rig;

use proptest::prelude::*;
use sealblk_block::{BlockDevice, BlockLane, Durability, Lba, MemoryDevice, SectorRange, ZeroMode};
use sealblk_volume::{MaterializeProgress, Materialized};

/// 2.5 MiB: two whole pieces and a part of one.
const SECTORS: u64 = 5 * 1024;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_materialized_volume_reads_the_same_under_xts_mode(
        writes in prop::collection::vec((0..SECTORS / 8, 1_u64..200, any::<u64>()), 0..20),
        unit in prop_oneof![Just(512_u32), Just(4096)],
    ) {
        let device = MemoryDevice::new(SECTORS).with_unit(unit);
        let volume = rig::encrypted(device.clone(), &rig::key(1), true);
        rig::run(async {
            let lane = volume.open_lane().expect("lane");
            for (at, count, seed) in writes {
                let count = count.min(SECTORS / 8 - at);
                rig::write(&lane, at * 8, &rig::pattern(seed, usize::try_from(count * 8).expect("small"))).await;
            }
            let before = rig::read_all(&volume).await;
            let stored = rig::read_all(&device).await;
            let unwritten = stored.chunks_exact(512).filter(|sector| sector.iter().all(|byte| *byte == 0)).count();

            let done = volume.materialize(|_| ()).await.expect("materialize");
            assert_eq!(done, Materialized::Complete { written_bytes: unwritten as u64 * 512 });
            assert_eq!(rig::read_all(&volume).await, before);
            let dm_crypt = rig::Oracle::new(&rig::key_bytes(1)).decrypt(0, &rig::read_all(&device).await);
            assert_eq!(dm_crypt, before);

            let again = volume.materialize(|_| ()).await.expect("materialize");
            assert_eq!(again, Materialized::Complete { written_bytes: 0 });
        });
    }
}

#[test]
fn one_that_was_interrupted_is_finished_by_the_next() {
    let device = MemoryDevice::new(SECTORS);
    let volume = rig::encrypted(device.clone(), &rig::key(1), true);
    rig::run(async {
        rig::write(&volume.open_lane().expect("lane"), 3000, &rig::pattern(1, 100)).await;
        let before = rig::read_all(&volume).await;
        // Dropped in the middle, as a crash would.
        let pieces = std::cell::Cell::new(0);
        let stopped = tokio::select! {
            biased;
            () = std::future::poll_fn(|_| if pieces.get() == 1 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }) => true,
            _ = volume.materialize(|_| pieces.set(pieces.get() + 1)) => false,
        };
        assert!(stopped && pieces.get() == 1);
        assert_eq!(rig::read_all(&volume).await, before);
        let first_mib = 1 << 20;
        let done = volume.materialize(|_| ()).await.expect("materialize");
        assert_eq!(done, Materialized::Complete { written_bytes: (SECTORS - 100) * 512 - first_mib });
        assert_eq!(rig::Oracle::new(&rig::key_bytes(1)).decrypt(0, &rig::read_all(&device).await), before);
    });
}

#[test]
fn progress_ends_at_the_volumes_size() {
    let volume = rig::encrypted(MemoryDevice::new(SECTORS), &rig::key(1), true);
    let mut seen: Vec<MaterializeProgress> = Vec::new();
    rig::run(volume.materialize(|progress| seen.push(progress))).expect("materialize");
    let done: Vec<u64> = seen.iter().map(|progress| progress.done_bytes).collect();
    assert_eq!(done, [1 << 20, 2 << 20, SECTORS * 512]);
    assert!(seen.iter().all(|progress| progress.total_bytes == SECTORS * 512));
}

#[test]
fn an_unencrypted_volume_has_nothing_to_materialize() {
    let device = MemoryDevice::new(SECTORS);
    let volume = rig::plain(device.clone(), true);
    let done = rig::run(volume.materialize(|_| panic!("no progress"))).expect("materialize");
    assert_eq!(done, Materialized::NotEncrypted);
}

#[test]
fn a_device_that_refuses_writes_makes_it_fail_and_say_so() {
    let device = MemoryDevice::new(SECTORS);
    let record = rig::seal(&rig::encrypted_record(SECTORS * 512), &rig::key(1), &device).expect("blank");
    let volume = rig::open_encrypted(&record, &rig::key(1), device.with_read_only()).expect("opens");
    let error = rig::run(volume.materialize(|_| ())).expect_err("read-only");
    assert!(matches!(error, sealblk_block::BlockError::ReadOnly { .. }), "{error:?}");
}

#[test]
fn a_trim_afterwards_makes_unwritten_sectors_again() {
    let device = MemoryDevice::new(SECTORS);
    let volume = rig::encrypted(device.clone(), &rig::key(1), true);
    rig::run(async {
        volume.materialize(|_| ()).await.expect("materialize");
        let lane = volume.open_lane().expect("lane");
        let range = SectorRange { start: Lba(0), count: 128 };
        lane.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await.expect("zero");
        let again = volume.materialize(|_| ()).await.expect("materialize");
        assert_eq!(again, Materialized::Complete { written_bytes: 128 * 512 });
    });
}
