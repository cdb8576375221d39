//! A snapshot in progress: the content of one instant, whatever clients do meanwhile.

mod rig;

use std::sync::Arc;

use rig::map::{
    BLOCK_SECTORS, TestSource, blank_map, block_range, kept, map_sectors, open, run_kept, snapshot_id,
    write_map,
};
use sealblk_block::{
    BlockDevice, BlockLane, Buffer, Durability, Lba, MemoryDevice, Operation, SectorRange, ZeroMode,
};
use sealblk_testkit::FaultDevice;
use sealblk_testkit::fault_device::{Effect, Fault};
use sealblk_volume::map::{
    BLOCK_BYTES, Background, ChangesKnown, FreezeError, FrozenReader, LiveSnapshot, MappedDevice,
};
use tokio::sync::Semaphore;

/// Four blocks and a short one.
const SECTORS: u64 = 4 * BLOCK_SECTORS + 8;

type Device = MappedDevice<MemoryDevice, MemoryDevice>;

fn spool() -> MemoryDevice {
    MemoryDevice::new(SECTORS)
}

fn tracked() -> Device {
    rig::run(open(MemoryDevice::new(SECTORS), blank_map(SECTORS), SECTORS, None)).expect("opens")
}

/// All that a snapshot shows, and the blocks that it named. Those that it did not name hold what they held in `base`.
async fn content<D: BlockDevice, S: BlockDevice>(
    snapshot: &LiveSnapshot<D, S>,
    base: Option<&[u8]>,
) -> (Vec<u8>, Vec<u64>) {
    let reader = snapshot.open_reader().expect("a reader");
    let mut image =
        base.map_or_else(|| vec![0; usize::try_from(SECTORS * 512).expect("small")], <[u8]>::to_vec);
    let mut named = Vec::new();
    let mut next = reader.next(0).await.expect("next");
    while let Some(block) = next {
        let bytes = read_block(&reader, block).await;
        image[usize::try_from(block).expect("small") * BLOCK_BYTES..][..bytes.len()].copy_from_slice(&bytes);
        named.push(block);
        next = reader.next(block + 1).await.expect("next");
    }
    (image, named)
}

async fn read_block<D: BlockLane, S: BlockLane>(reader: &FrozenReader<D, S>, block: u64) -> Vec<u8> {
    let (result, buffer) = reader.read(block, Buffer::new(reader.block_bytes(block))).await;
    result.expect("a frozen block is read");
    buffer.to_vec()
}

#[test]
fn writes_before_the_instant_are_in_and_later_ones_are_not() {
    let device = tracked();
    run_kept(&device, TestSource::default(), async {
        let lane = device.open_lane().expect("lane");
        rig::write(&lane, 0, &rig::pattern(1, usize::try_from(SECTORS).expect("small"))).await;
        let before = rig::read_all(&device).await;
        let snapshot = device.begin_snapshot(spool(), None).await.expect("begins");
        rig::write(&lane, 3, &[7; 512]).await;
        rig::write(&lane, BLOCK_SECTORS - 1, &[8; 1024]).await;
        lane.zero(block_range(2), ZeroMode::MayUnmap, Durability::Volatile).await.expect("zero");
        lane.discard(block_range(3), Durability::Volatile).await.expect("discard");
        rig::write(&lane, SECTORS - 8, &[9; 4096]).await;
        assert_eq!(content(&snapshot, None).await.0, before);
        let now = rig::read_all(&device).await;
        assert_eq!(now[3 * 512..4 * 512], [7; 512]);
        assert!(now[2 * BLOCK_BYTES..3 * BLOCK_BYTES].iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_first_snapshot_names_what_may_hold_data_and_the_next_what_changed() {
    let device = tracked();
    run_kept(&device, TestSource::default(), async {
        let lane = device.open_lane().expect("lane");
        rig::write(&lane, BLOCK_SECTORS, &[1; 512]).await;
        let first = device.begin_snapshot(spool(), None).await.expect("begins");
        assert_eq!((first.base(), first.changed_blocks()), (None, None));
        // Written since, and so in the spool; there was nothing in it before.
        rig::write(&lane, 2 * BLOCK_SECTORS, &[2; 512]).await;
        let (image, named) = content(&first, None).await;
        assert!(named.contains(&1) && !named.contains(&0) && !named.contains(&3), "{named:?}");
        assert!(image[2 * BLOCK_BYTES..].iter().all(|&byte| byte == 0));
        assert_eq!(device.changes_known(), ChangesKnown::Unknown);
        first.complete(snapshot_id(1)).expect("complete");
        assert_eq!(device.changes_known(), ChangesKnown::Exact { since: snapshot_id(1), blocks: 1 });

        lane.zero(block_range(0), ZeroMode::MayUnmap, Durability::Volatile).await.expect("zero");
        let second = device.begin_snapshot(spool(), Some(snapshot_id(1))).await.expect("begins");
        assert_eq!((second.base(), second.changed_blocks()), (Some(snapshot_id(1)), Some(2)));
        assert_eq!(content(&second, Some(&image)).await.1, [0, 2]);
        drop(second);
        // Who cannot build upon that snapshot gets all of it, and nothing is forgotten.
        let whole = device.begin_snapshot(spool(), Some(snapshot_id(9))).await.expect("begins");
        assert_eq!((whole.base(), content(&whole, None).await.0), (None, rig::read_all(&device).await));
        drop(whole);
        assert_eq!(device.changes_known(), ChangesKnown::Exact { since: snapshot_id(1), blocks: 2 });
    });
}

#[test]
fn an_abandoned_snapshot_changes_nothing_of_what_is_known() {
    let device = tracked();
    run_kept(&device, TestSource::default(), async {
        let lane = device.open_lane().expect("lane");
        drop(device.begin_snapshot(spool(), None).await.expect("begins"));
        assert_eq!(device.changes_known(), ChangesKnown::Unknown);
        device
            .begin_snapshot(spool(), None)
            .await
            .expect("begins")
            .complete(snapshot_id(1))
            .expect("complete");
        rig::write(&lane, 0, &[1; 512]).await;
        let abandoned = device.begin_snapshot(spool(), None).await.expect("begins");
        rig::write(&lane, BLOCK_SECTORS, &[1; 512]).await;
        let busy = device.begin_snapshot(spool(), None).await.expect_err("one at a time");
        assert!(matches!(busy, FreezeError::InProgress));
        drop(abandoned);
        assert_eq!(device.changes_known(), ChangesKnown::Exact { since: snapshot_id(1), blocks: 2 });
    });
}

#[test]
fn only_blocks_that_the_snapshot_still_wants_are_put_aside() {
    let device = tracked();
    run_kept(&device, TestSource::default(), async {
        let lane = device.open_lane().expect("lane");
        rig::write(&lane, 0, &rig::pattern(1, 3 * 1024)).await;
        device
            .begin_snapshot(spool(), None)
            .await
            .expect("begins")
            .complete(snapshot_id(1))
            .expect("complete");
        rig::write(&lane, 0, &[1; 512]).await;
        rig::write(&lane, BLOCK_SECTORS, &[1; 512]).await;
        let put_aside = spool();
        let snapshot = device.begin_snapshot(put_aside.clone(), Some(snapshot_id(1))).await.expect("begins");
        let reader = snapshot.open_reader().expect("a reader");
        let frozen = read_block(&reader, 0).await;
        reader.release(0).await.expect("release");
        // Block 0 was read, block 1 is wanted, block 2 is in the base.
        for block in 0..3 {
            rig::write(&lane, block * BLOCK_SECTORS, &[2; 512]).await;
        }
        let aside = rig::read_all(&put_aside).await;
        let holds = |block: usize| aside[block * BLOCK_BYTES..][..BLOCK_BYTES].iter().any(|&byte| byte != 0);
        assert_eq!([holds(0), holds(1), holds(2)], [false, true, false]);
        assert_eq!(frozen[..512], [1; 512]);
        assert_eq!(read_block(&reader, 1).await[..512], [1; 512]);
        reader.release(1).await.expect("release");
        assert!(rig::read_all(&put_aside).await.iter().all(|&byte| byte == 0), "space is given back");
    });
}

#[test]
fn a_spool_that_fails_breaks_the_snapshot_and_no_write() {
    let store = FaultDevice::new(blank_map(SECTORS));
    rig::run(async {
        let device = open(MemoryDevice::new(SECTORS), store, SECTORS, None).await.expect("opens");
        kept(&device, TestSource::default(), Background::Idle, async {
            let lane = device.open_lane().expect("lane");
            rig::write(&lane, 0, &[1; 512]).await;
            let spool = FaultDevice::new(spool());
            spool.add(Fault { operation: Operation::Write, nth: Some(1), effect: Effect::NoSpace });
            let snapshot = device.begin_snapshot(spool, None).await.expect("begins");
            rig::write(&lane, 0, &[2; 512]).await;
            assert_eq!(rig::read(&lane, 0, 1).await, [2; 512]);
            let reader = snapshot.open_reader().expect("a reader");
            let (result, _) = reader.read(0, Buffer::new(BLOCK_BYTES)).await;
            result.expect_err("the content is lost");
            assert!(matches!(snapshot.complete(snapshot_id(1)), Err(FreezeError::Broken(_))));
            assert_eq!(device.changes_known(), ChangesKnown::Unknown);
        })
        .await;
    });
}

#[test]
fn a_spool_without_room_gives_back_what_it_has_before_the_write_goes_on() {
    let store = FaultDevice::new(blank_map(SECTORS));
    rig::run(async {
        let device = open(MemoryDevice::new(SECTORS), store, SECTORS, None).await.expect("opens");
        kept(&device, TestSource::default(), Background::Idle, async {
            let lane = device.open_lane().expect("lane");
            for block in 0..3 {
                rig::write(&lane, block * BLOCK_SECTORS, &[1; 512]).await;
            }
            let spool = FaultDevice::new(spool());
            spool.add(Fault { operation: Operation::Write, nth: Some(3), effect: Effect::NoSpace });
            let snapshot = device.begin_snapshot(spool.clone(), None).await.expect("begins");
            let reader = snapshot.open_reader().expect("a reader");
            let (mut known, own) = (Vec::with_capacity(1), spool.open_lane().expect("lane"));
            let all = SectorRange { start: Lba(0), count: SECTORS };
            for block in 0..2 {
                rig::write(&lane, block * BLOCK_SECTORS, &[2; 512]).await;
            }
            own.extents(all, &mut known).await.expect("told");
            assert!(!known[0].allocation.zero, "two blocks are put aside");
            let gate = Arc::new(Semaphore::new(0));
            let effect = Effect::WaitFor(Arc::clone(&gate));
            spool.add(Fault { operation: Operation::Discard, nth: Some(1), effect });
            let write = async {
                rig::write(&lane, 2 * BLOCK_SECTORS, &[2; 512]).await;
                known.clear();
                own.extents(all, &mut known).await.expect("told");
                assert!(known[0].allocation.zero && known[0].count == SECTORS, "{known:?}");
            };
            let open_the_gate = async {
                while reader.read(0, Buffer::new(BLOCK_BYTES)).await.0.is_ok() {
                    tokio::task::yield_now().await;
                }
                // It is lost, and not emptied: a write that did not wait for that would be through by now.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                gate.add_permits(1);
            };
            tokio::join!(write, open_the_gate);
            let (result, _) = reader.read(1, Buffer::new(BLOCK_BYTES)).await;
            result.expect_err("what was put aside is lost too");
            assert_eq!(rig::read(&lane, 2 * BLOCK_SECTORS, 1).await, [2; 512]);
        })
        .await;
    });
}

#[test]
fn a_snapshot_begins_between_the_writes_on_their_way_and_those_after() {
    let data = FaultDevice::new(MemoryDevice::new(SECTORS));
    rig::run(async {
        let device = open(data.clone(), blank_map(SECTORS), SECTORS, None).await.expect("opens");
        kept(&device, TestSource::default(), Background::Idle, async {
            let (lane, other) = (device.open_lane().expect("lane"), device.open_lane().expect("lane"));
            let stuck = Arc::new(Semaphore::new(0));
            let effect = Effect::WaitFor(Arc::clone(&stuck));
            data.add(Fault { operation: Operation::Write, nth: Some(1), effect });
            let first = rig::write(&lane, 0, &[1; 512]);
            let begin = device.begin_snapshot(spool(), None);
            let later = async {
                // By then the first write is stuck, and the snapshot waits for it.
                rig::read(&other, 0, 1).await;
                let blocked = rig::write(&other, 8, &[2; 512]);
                tokio::pin!(blocked);
                tokio::select! {
                    biased;
                    () = &mut blocked => panic!("it must wait for the snapshot's instant"),
                    () = tokio::task::yield_now() => {}
                }
                rig::read(&other, 0, 1).await;
                stuck.add_permits(1);
                blocked.await;
            };
            let ((), snapshot, ()) = tokio::join!(first, begin, later);
            let snapshot = snapshot.expect("begins");
            let (image, _) = content(&snapshot, None).await;
            assert_eq!(image[..512], [1; 512], "on its way before");
            assert_eq!(image[8 * 512..9 * 512], [0; 512], "asked for after");
        })
        .await;
    });
}

#[test]
fn a_volume_that_is_being_restored_is_frozen_whole() {
    let source = TestSource::new(3, 3);
    let store = MemoryDevice::new(map_sectors(SECTORS));
    rig::run(async {
        // Another data key: nothing is known of changes, so the snapshot names all blocks.
        write_map(&store, SECTORS, &[0, 1, 2], false).await;
        let device =
            open(MemoryDevice::new(SECTORS), store, SECTORS, Some(snapshot_id(1))).await.expect("opens");
        kept(&device, source.clone(), Background::Idle, async {
            let lane = device.open_lane().expect("lane");
            let snapshot = device.begin_snapshot(spool(), None).await.expect("begins");
            // Whole and in part, missing and not.
            rig::write(&lane, 0, &vec![7; BLOCK_BYTES]).await;
            rig::write(&lane, BLOCK_SECTORS + 1, &[7; 512]).await;
            rig::write(&lane, 3 * BLOCK_SECTORS, &[7; 512]).await;
            let (image, named) = content(&snapshot, None).await;
            assert_eq!(image[..3 * BLOCK_BYTES], **source.image);
            assert!(image[3 * BLOCK_BYTES..].iter().all(|&byte| byte == 0));
            assert_eq!(named[..3], [0, 1, 2]);
        })
        .await;
    });
}

#[test]
fn a_volume_of_the_same_data_key_is_frozen_as_what_changed_since_its_origin() {
    let source = TestSource::new(3, 3);
    let store = MemoryDevice::new(map_sectors(SECTORS));
    rig::run(async {
        write_map(&store, SECTORS, &[0, 1, 2], true).await;
        let device =
            open(MemoryDevice::new(SECTORS), store, SECTORS, Some(snapshot_id(1))).await.expect("opens");
        kept(&device, source.clone(), Background::Idle, async {
            let lane = device.open_lane().expect("lane");
            rig::write(&lane, BLOCK_SECTORS, &[7; 512]).await;
            rig::read(&lane, 0, 8).await;
            let snapshot = device.begin_snapshot(spool(), Some(snapshot_id(1))).await.expect("begins");
            assert_eq!((snapshot.base(), snapshot.changed_blocks()), (Some(snapshot_id(1)), Some(1)));
            let reader = snapshot.open_reader().expect("a reader");
            assert_eq!(reader.next(0).await.expect("next"), Some(1));
            assert_eq!(reader.next(2).await.expect("next"), None);
            // What the snapshot does not want need not be fetched to be replaced.
            rig::write(&lane, 2 * BLOCK_SECTORS, &vec![7; BLOCK_BYTES]).await;
            assert_eq!(*source.fetched.borrow(), [1, 0]);
        })
        .await;
    });
}

#[test]
fn changes_are_known_after_a_clean_end_and_unknown_after_any_other() {
    let (data, store) = (MemoryDevice::new(SECTORS), blank_map(SECTORS));
    let reopen = || rig::run(open(data.clone(), store.clone(), SECTORS, None)).expect("opens");
    let device = reopen();
    run_kept(&device, TestSource::default(), async {
        device
            .begin_snapshot(spool(), None)
            .await
            .expect("begins")
            .complete(snapshot_id(1))
            .expect("complete");
        rig::write(&device.open_lane().expect("lane"), 0, &[1; 512]).await;
        device.close().await.expect("closes");
    });
    let known = |blocks| ChangesKnown::Exact { since: snapshot_id(1), blocks };
    let device = reopen();
    assert_eq!(device.changes_known(), known(1));
    run_kept(&device, TestSource::default(), async {
        // Reading changes nothing, and needs no clean end.
        rig::read_all(&device).await;
    });
    let device = reopen();
    assert_eq!(device.changes_known(), known(1));
    run_kept(&device, TestSource::default(), async {
        let two = SectorRange { start: Lba(BLOCK_SECTORS - 8), count: 16 };
        let lane = device.open_lane().expect("lane");
        lane.zero(two, ZeroMode::MayUnmap, Durability::Volatile).await.expect("zero");
        device.close().await.expect("closes");
    });
    let device = reopen();
    assert_eq!(device.changes_known(), known(2));
    run_kept(&device, TestSource::default(), async {
        rig::write(&device.open_lane().expect("lane"), 0, &[2; 512]).await;
    });
    assert_eq!(reopen().changes_known(), ChangesKnown::Unknown, "killed after a write");
}

/// Clients in threads of their own, each writing stamps into sectors of its own; at an instant each sector holds a
/// stamp that its client had issued, and at least the last one that was acknowledged before.
#[test]
fn many_lanes_and_a_reader_in_threads_of_their_own_agree_on_the_instant() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const CLIENTS: u64 = 3;
    const ROUNDS: u8 = 12;
    let device = tracked();
    let acknowledged: [AtomicU64; CLIENTS as usize] = Default::default();
    let issued: [AtomicU64; CLIENTS as usize] = Default::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let keeper = device.clone();
        scope.spawn(move || rig::run(keeper.keep(TestSource::default(), Background::Idle)).expect("keeps"));
        for client in 0..CLIENTS {
            let (device, acknowledged, issued, done) = (&device, &acknowledged, &issued, &done);
            scope.spawn(move || {
                rig::run(async {
                    let lane = device.open_lane().expect("lane");
                    let mut stamp = 0_u64;
                    while !done.load(Ordering::Acquire) {
                        stamp += 1;
                        issued[client as usize].store(stamp, Ordering::SeqCst);
                        let bytes = stamp.to_le_bytes().repeat(64);
                        // One sector in each block, so that all clients meet in all blocks.
                        rig::write(&lane, (stamp % 4) * BLOCK_SECTORS + client, &bytes).await;
                        acknowledged[client as usize].store(stamp, Ordering::SeqCst);
                    }
                });
            });
        }
        rig::run(async {
            let _end = End { done: &done, device: &device };
            let mut base: Option<(sealblk_volume::SnapshotId, Vec<u8>)> = None;
            for round in 0..ROUNDS {
                let before: Vec<u64> = acknowledged.iter().map(|at| at.load(Ordering::SeqCst)).collect();
                let snapshot =
                    device.begin_snapshot(spool(), base.as_ref().map(|(id, _)| *id)).await.expect("begins");
                let after: Vec<u64> = issued.iter().map(|at| at.load(Ordering::SeqCst)).collect();
                let (image, _) = content(&snapshot, base.as_ref().map(|(_, image)| &image[..])).await;
                for client in 0..CLIENTS as usize {
                    let newest = (0..4).map(|block| stamp_in(&image, block, client)).max().expect("four");
                    assert!(
                        (before[client]..=after[client]).contains(&newest),
                        "client {client}, round {round}: {newest} of {before:?} to {after:?}"
                    );
                    // A client writes one after the other: its last four stamps are there, none from between.
                    let mut stamps: Vec<u64> = (0..4).map(|block| stamp_in(&image, block, client)).collect();
                    stamps.sort_unstable();
                    let expected: Vec<u64> = (newest.saturating_sub(3)..=newest).collect();
                    assert!(newest < 4 || stamps == expected, "client {client}: {stamps:?}");
                }
                snapshot.complete(snapshot_id(round + 1)).expect("complete");
                base = Some((snapshot_id(round + 1), image));
            }
        });
    });
}

/// Ends the clients and the keeper, also when an assertion fails: nothing else would.
struct End<'a> {
    done: &'a std::sync::atomic::AtomicBool,
    device: &'a Device,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.done.store(true, std::sync::atomic::Ordering::Release);
        self.device.stop();
    }
}

/// The stamp of a client in a block of an image; all of its sector holds it.
fn stamp_in(image: &[u8], block: usize, client: usize) -> u64 {
    let sector = &image[block * BLOCK_BYTES + client * 512..][..512];
    let words = sector.as_chunks::<8>().0;
    assert!(words.iter().all(|word| word == &words[0]), "a torn sector");
    u64::from_le_bytes(words[0])
}
