//! Random operations on many lanes, compared with a shadow: against our own server, calm and under cuts.

use std::rc::Rc;
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockLane, Buffer, Durability, Lba, MemoryDevice, SectorRange, ZeroMode};
use sealblk_upstream::{UpstreamDevice, UpstreamLane};

use crate::rig::{GoBetween, OurServer, PATIENCE, Random, open, run};

/// Sectors of the device; every task has a share of its own.
pub(crate) const SECTORS: u64 = 2048;
/// Tasks that work side by side.
const TASKS: u64 = 8;

/// One task's part of the device, and what should be in it.
struct Share {
    lane: Rc<UpstreamLane>,
    first: u64,
    shadow: Vec<u8>,
    random: Random,
}

impl Share {
    async fn step(&mut self) {
        let share = SECTORS / TASKS;
        let start = self.random.below(share);
        let count = 1 + self.random.below((share - start).min(40));
        let at = Lba(self.first + start);
        let range = SectorRange { start: at, count };
        let bytes = (start * 512) as usize..((start + count) * 512) as usize;
        let durability = if self.random.below(4) == 0 { Durability::Durable } else { Durability::Volatile };
        match self.random.below(8) {
            0..=2 => {
                let mut buffer = Buffer::new(bytes.len());
                let seed = self.random.next().to_le_bytes();
                buffer.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&seed[..chunk.len()]));
                self.shadow[bytes].copy_from_slice(&buffer);
                self.lane.write(at, buffer, durability).await.0.expect("a write");
            }
            3 => {
                let mode =
                    if self.random.below(2) == 0 { ZeroMode::MayUnmap } else { ZeroMode::KeepAllocated };
                self.shadow[bytes].fill(0);
                self.lane.zero(range, mode, durability).await.expect("zeros");
            }
            4 => {
                // Memory discards to zeros, and so does a CrashDevice.
                self.shadow[bytes].fill(0);
                self.lane.discard(range, durability).await.expect("a discard");
            }
            5 => self.lane.flush().await.expect("a flush"),
            6 => {
                let mut extents = Vec::with_capacity(4);
                self.lane.extents(range, &mut extents).await.expect("extents");
                let mut from = bytes.start;
                for extent in extents {
                    let to = from + extent.count as usize * 512;
                    let zeros = self.shadow[from..to].iter().all(|byte| *byte == 0);
                    assert!(!extent.allocation.zero || zeros, "zeros that are none");
                    from = to;
                }
                assert!(from > bytes.start && from <= bytes.end);
            }
            _ => {
                let (outcome, buffer) = self.lane.read(at, Buffer::new(bytes.len())).await;
                outcome.expect("a read");
                assert!(*buffer == self.shadow[bytes], "a read shows what was written, at {at}");
            }
        }
    }
}

/// `steps` random operations in each of [`TASKS`] tasks over `lanes` lanes, while `meanwhile` runs; then the
/// whole device is compared, through a lane of its own.
pub(crate) fn exercise(
    device: &UpstreamDevice,
    lanes: usize,
    steps: usize,
    seed: u64,
    meanwhile: impl Future<Output = ()> + 'static,
) {
    run(async {
        let lanes: Vec<Rc<UpstreamLane>> =
            (0..lanes).map(|_| Rc::new(device.open_lane().expect("a lane"))).collect();
        let tasks = (0..TASKS).map(|number| {
            let mut share = Share {
                lane: Rc::clone(&lanes[number as usize % lanes.len()]),
                first: number * (SECTORS / TASKS),
                shadow: vec![0; (SECTORS / TASKS * 512) as usize],
                random: Random(seed ^ number << 32),
            };
            tokio::task::spawn_local(async move {
                for _ in 0..steps {
                    share.step().await;
                }
                share.shadow
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let meanwhile = tokio::task::spawn_local(meanwhile);
        let mut expected = Vec::new();
        for task in tasks {
            expected.extend(task.await.expect("a task"));
        }
        meanwhile.abort();
        drop(lanes);
        let lane = device.open_lane().expect("a lane");
        let (outcome, found) = lane.read(Lba(0), Buffer::new(expected.len())).await;
        outcome.expect("a read");
        assert!(*found == expected[..], "the device holds what was written, seed {seed}");
        lane.flush().await.expect("a last flush");
    });
}

#[test]
fn one_lane_and_several_agree_with_a_shadow() {
    for lanes in [1, 4] {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let _server = OurServer::start(MemoryDevice::new(SECTORS), &socket);
        exercise(&open(&socket, PATIENCE), lanes, 400, 1, std::future::ready(()));
    }
}

#[test]
fn larger_units_are_kept_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let _server = OurServer::start(MemoryDevice::new(64).with_unit(4096), &socket);
    // Our server takes every byte range and says so; what it prefers is passed on.
    assert_eq!(open(&socket, PATIENCE).geometry().sectors, 64);
}

#[test]
fn connections_that_are_cut_again_and_again_lose_nothing() {
    for lanes in [1, 3] {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("server");
        let _server = OurServer::start(MemoryDevice::new(SECTORS), &socket);
        let between = GoBetween::start(directory.path().join("between"), &socket);
        let device = open(&between.socket, PATIENCE);
        exercise(&device, lanes, 300, 7, async move {
            loop {
                tokio::time::sleep(Duration::from_millis(40)).await;
                between.cut();
                between.lead_to(&socket);
            }
        });
    }
}
