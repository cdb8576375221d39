//! Flushes, durable writes and several lanes on one store.

mod lanes;

use std::os::unix::fs::FileExt;

use lanes::{buffer_of, on_a_lane_thread, on_each_store, pattern};
use sealblk_block::{
    BlockDevice, BlockLane, Buffer, ByteDevice, Durability, Lba, MemoryDevice, SectorRange, ZeroMode,
};

const SIZE: u64 = 1 << 20;

#[test]
fn flushes_of_many_lanes_share_syncs_and_all_return() {
    const THREADS: u64 = 3;
    const FLUSHES: u64 = 60;
    on_each_store(SIZE, |device, _| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let device = &device;
                scope.spawn(move || {
                    on_a_lane_thread(async || {
                        let lane = std::rc::Rc::new(device.open_lane().expect("a lane"));
                        let tasks: Vec<_> = (0..FLUSHES)
                            .map(|n| {
                                let lane = std::rc::Rc::clone(&lane);
                                tokio::task::spawn_local(async move {
                                    let at = Lba((thread * 16 + n % 16) * 8);
                                    let bytes = buffer_of(&pattern(n, 4096));
                                    lane.write(at, bytes, Durability::Volatile).await.0.expect("written");
                                    lane.flush().await.expect("flushed");
                                })
                            })
                            .collect();
                        for task in tasks {
                            task.await.expect("a task");
                        }
                    });
                });
            }
        });
        let syncs = device.syncs();
        assert!(syncs > 0 && syncs < THREADS * FLUSHES / 2, "{syncs} syncs for {}", THREADS * FLUSHES);
    });
}

#[test]
fn a_durable_write_needs_no_flush_and_is_in_the_file() {
    on_each_store(SIZE, |device, path| {
        on_a_lane_thread(async || {
            let lane = device.open_lane().expect("a lane");
            let (outcome, _) = lane.write(Lba(8), buffer_of(&pattern(3, 8192)), Durability::Durable).await;
            outcome.expect("written");
            let range = SectorRange { start: Lba(16), count: 8 };
            lane.zero(range, ZeroMode::MayUnmap, Durability::Durable).await.expect("zeroed");
        });
        let mut expected = pattern(3, 8192);
        expected[4096..].fill(0);
        let mut found = vec![0; 8192];
        let file = std::fs::File::open(path).expect("the file");
        file.read_exact_at(&mut found, 4096).expect("read");
        assert!(found == expected);
        assert_eq!(device.syncs(), 1, "one for the zeros, none for the write");
    });
}

#[test]
fn a_read_on_another_lane_sees_what_was_acknowledged() {
    on_each_store(SIZE, |device, _| {
        let (to_reader, written) = std::sync::mpsc::channel::<u64>();
        let (to_writer, read) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let device = &device;
            scope.spawn(move || {
                on_a_lane_thread(async || {
                    let lane = device.open_lane().expect("a lane");
                    for n in 0..50 {
                        let bytes = buffer_of(&pattern(n, 4096));
                        lane.write(Lba(0), bytes, Durability::Volatile).await.0.expect("written");
                        to_reader.send(n).expect("a reader");
                        read.recv().expect("a reader");
                    }
                });
            });
            scope.spawn(move || {
                on_a_lane_thread(async || {
                    let lane = device.open_lane().expect("a lane");
                    for n in written {
                        let (outcome, buffer) = lane.read(Lba(0), Buffer::new(4096)).await;
                        outcome.expect("read");
                        assert!(buffer[..] == pattern(n, 4096)[..]);
                        to_writer.send(()).expect("a writer");
                    }
                });
            });
        });
    });
}

/// Each thread owns every third byte of the same few units, and only ever writes those, one by one or by
/// rewriting whole units that nobody else owns: any lost update shows in the final bytes.
fn neighbours<D: BlockDevice>(device: &ByteDevice<D>) {
    const THREADS: u64 = 3;
    const ROUNDS: u64 = 300;
    let unit = u64::from(device.geometry().unit_bytes);
    let shared = 2 * unit;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                on_a_lane_thread(async || {
                    let lane = std::rc::Rc::new(device.open_lane(2).expect("a lane"));
                    for round in 0..ROUNDS {
                        let at = (round * THREADS + thread) % shared / THREADS * THREADS + thread;
                        if at < shared {
                            let value = [(round % 251) as u8 + 1];
                            let outcome = lane.write(at, buffer_of(&value), Durability::Volatile).await.0;
                            outcome.expect("written");
                            let (outcome, byte) = lane.read(at, Buffer::new(1)).await;
                            outcome.expect("read");
                            assert_eq!(byte[0], value[0], "the write at {at} was lost");
                        }
                        let own = (2 + thread) * unit;
                        let whole = buffer_of(&pattern(round, unit as usize));
                        lane.write(own, whole, Durability::Volatile).await.0.expect("written");
                        let (outcome, found) = lane.read(own, Buffer::new(unit as usize)).await;
                        outcome.expect("read");
                        assert!(found[..] == pattern(round, unit as usize)[..], "a whole unit was lost");
                        // Touches the last byte of the unit before and the first of the next thread's.
                        let edge =
                            lane.zero(own + unit - 1, 1, ZeroMode::MayUnmap, Durability::Volatile).await;
                        edge.expect("zeroed");
                    }
                });
            });
        }
    });
}

#[test]
fn writers_of_adjacent_bytes_on_many_lanes_lose_no_update() {
    neighbours(&ByteDevice::new(MemoryDevice::new(SIZE / 512)));
    neighbours(&ByteDevice::new(MemoryDevice::new(SIZE / 512).with_unit(4096)));
    on_each_store(SIZE, |device, _| neighbours(&ByteDevice::new(device)));
}

/// Aligned writes of whole units race with single-byte writes into the same units. Every byte that is only
/// written by aligned writers must in the end come from the last aligned write to its unit.
#[test]
fn a_whole_unit_write_is_never_undone_by_a_neighbours_read_modify_write() {
    const ROUNDS: u64 = 2000;
    let device = ByteDevice::new(MemoryDevice::new(SIZE / 512));
    std::thread::scope(|scope| {
        let device = &device;
        scope.spawn(move || {
            on_a_lane_thread(async || {
                let lane = device.open_lane(1).expect("a lane");
                for round in 0..ROUNDS {
                    let bytes = buffer_of(&[(round % 251) as u8; 512]);
                    lane.write(0, bytes, Durability::Volatile).await.0.expect("written");
                    let (outcome, found) = lane.read(1, Buffer::new(510)).await;
                    outcome.expect("read");
                    assert!(
                        found.iter().all(|&byte| byte == (round % 251) as u8),
                        "round {round} was undone"
                    );
                }
            });
        });
        scope.spawn(move || {
            on_a_lane_thread(async || {
                let lane = device.open_lane(1).expect("a lane");
                for round in 0..ROUNDS {
                    let at = if round % 2 == 0 { 0 } else { 511 };
                    lane.write(at, buffer_of(&[255]), Durability::Volatile).await.0.expect("written");
                }
            });
        });
    });
}
