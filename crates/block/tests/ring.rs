//! The ring's slab: more requests than slots, owners that go away, stores that end too soon.

mod lanes;

use std::task::Poll;

use lanes::{buffer_of, file_in, on_a_lane_thread, on_each_store, pattern};
use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Caching, Durability, FileDevice, FileOptions, Lba,
};

const UNIT: usize = 4096;

fn shallow(path: &std::path::Path, depth: u32) -> FileDevice {
    let options = FileOptions { caching: Some(Caching::Direct), ring_depth: depth, ..FileOptions::default() };
    FileDevice::open(path, &options).expect("a device")
}

/// Polls every future once and drops those that are not ready.
async fn start_and_drop<F: Future>(futures: Vec<F>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        for future in &mut futures {
            let _ = future.as_mut().poll(context);
        }
        Poll::Ready(())
    })
    .await;
}

#[test]
fn more_requests_than_slots_all_complete() {
    let file = file_in(&std::env::temp_dir(), 256 * UNIT as u64);
    let device = shallow(file.path(), 4);
    on_a_lane_thread(async || {
        let lane = std::rc::Rc::new(device.open_lane().expect("a lane"));
        let tasks: Vec<_> = (0..256_u64)
            .map(|n| {
                let lane = std::rc::Rc::clone(&lane);
                tokio::task::spawn_local(async move {
                    let at = Lba(n * 8);
                    lane.write(at, buffer_of(&pattern(n, UNIT)), Durability::Volatile)
                        .await
                        .0
                        .expect("written");
                    let (outcome, buffer) = lane.read(at, Buffer::new(UNIT)).await;
                    outcome.expect("read");
                    assert_eq!(&buffer[..], &pattern(n, UNIT)[..]);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a request");
        }
    });
}

#[test]
fn a_dropped_write_is_still_written_and_its_slot_is_used_again() {
    const ROUNDS: u64 = 20;
    let file = file_in(&std::env::temp_dir(), 8 * ROUNDS * UNIT as u64);
    let device = shallow(file.path(), 8);
    on_a_lane_thread(async || {
        for round in 0..ROUNDS {
            // A new lane, so that each write finds a slot and begins; and a place for each, since of two that are in
            // flight for one place either may be the last.
            let lane = device.open_lane().expect("a lane");
            let writes = (round * 8..round * 8 + 8)
                .map(|n| lane.write(Lba(n * 8), buffer_of(&pattern(n, UNIT)), Durability::Volatile));
            start_and_drop(writes.collect()).await;
            // Eight slots, all abandoned: this waits for one of them.
            let (outcome, _) = lane.read(Lba(0), Buffer::new(UNIT)).await;
            outcome.expect("read");
        }
    });
    // The lanes are gone, and with them what was in flight.
    let written = std::fs::read(file.path()).expect("the file");
    for (n, unit) in (0..).zip(written.chunks(UNIT)) {
        assert!(unit == pattern(n, UNIT), "write {n}");
    }
}

#[test]
fn a_lane_that_goes_away_with_requests_in_flight_finishes_them() {
    let file = file_in(&std::env::temp_dir(), 64 * UNIT as u64);
    let device = shallow(file.path(), 16);
    on_a_lane_thread(async || {
        let lane = device.open_lane().expect("a lane");
        let writes =
            (0..16).map(|n| lane.write(Lba(n * 8), buffer_of(&pattern(n, UNIT)), Durability::Durable));
        start_and_drop(writes.collect()).await;
    });
    // The runtime is gone, and with it the ring: everything that was pushed has happened.
    let written = std::fs::read(file.path()).expect("the file");
    for n in 0..16 {
        assert_eq!(written[n * UNIT..][..UNIT], pattern(n as u64, UNIT)[..], "write {n}");
    }
}

#[test]
fn a_lane_without_its_runtime_fails_and_does_not_hang() {
    let file = file_in(&std::env::temp_dir(), 64 * UNIT as u64);
    let device = shallow(file.path(), 4);
    let lane = on_a_lane_thread(async || device.open_lane().expect("a lane"));
    on_a_lane_thread(async || {
        let (outcome, buffer) = lane.read(Lba(0), Buffer::new(UNIT)).await;
        assert!(matches!(outcome, Err(BlockError::Io { .. })));
        assert_eq!(buffer.len(), UNIT);
    });
}

#[test]
fn many_lanes_one_after_the_other_leave_no_descriptor_behind() {
    let file = file_in(&std::env::temp_dir(), 64 * UNIT as u64);
    let device = shallow(file.path(), 4);
    on_a_lane_thread(async || {
        let open_files = || std::fs::read_dir("/proc/self/fd").expect("descriptors").count();
        let mut first = None;
        for _ in 0..50 {
            let lane = device.open_lane().expect("a lane");
            lane.read(Lba(0), Buffer::new(UNIT)).await.0.expect("read");
            drop(lane);
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let now = open_files();
            // Other tests of this binary open files too: a leak would be one for each of the 50.
            assert!(now < *first.get_or_insert(now) + 40, "{now} descriptors");
        }
    });
}

#[test]
fn a_store_that_was_truncated_meanwhile_gives_an_error_and_not_a_short_read() {
    on_each_store(64 * UNIT as u64, |device, path| {
        on_a_lane_thread(async || {
            let lane = device.open_lane().expect("a lane");
            let file = std::fs::OpenOptions::new().write(true).open(path).expect("the file");
            file.set_len(10 * UNIT as u64).expect("truncated");
            for (at, len) in [(9, 2 * UNIT), (10, UNIT), (60, 4 * UNIT), (0, 64 * UNIT)] {
                let (outcome, buffer) = lane.read(Lba(at * 8), Buffer::new(len)).await;
                let Err(BlockError::Io { source, .. }) = outcome else { panic!("{outcome:?} at {at}") };
                assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof);
                assert_eq!(buffer.len(), len);
            }
            lane.read(Lba(0), Buffer::new(10 * UNIT)).await.0.expect("what is left can be read");
        });
    });
}

#[test]
fn a_read_that_the_page_cache_holds_in_part_is_completed_from_the_disk() {
    const LEN: usize = 64 * UNIT;
    let file = file_in(&std::env::temp_dir(), LEN as u64);
    let bytes = pattern(7, LEN);
    std::fs::write(file.path(), &bytes).expect("written");
    file.as_file().sync_all().expect("synced");
    let device = lanes::open(file.path(), Caching::Buffered);
    on_a_lane_thread(async || {
        let lane = device.open_lane().expect("a lane");
        for (from, pages) in [(0, 64), (1, 63), (32, 32), (63, 1)] {
            let advice = rustix::fs::Advice::DontNeed;
            let len = std::num::NonZeroU64::new((pages * UNIT) as u64);
            rustix::fs::fadvise(file.as_file(), (from * UNIT) as u64, len, advice).expect("evicted");
            let (outcome, buffer) = lane.read(Lba(0), Buffer::new(LEN)).await;
            outcome.expect("read");
            assert!(buffer[..] == bytes[..]);
        }
    });
}
