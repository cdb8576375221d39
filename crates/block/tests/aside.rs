//! Large transfers that overlap, some of them in threads of the kernel's: each brings and leaves what it should, and a
//! lane that goes away waits for them.

use std::rc::Rc;

use sealblk_block::{BlockDevice, BlockLane, Buffer, Durability, FileDevice, FileOptions, Lba};
use tokio::task::{JoinSet, LocalSet};

const BYTES: usize = 128 << 10;
const SECTORS: u64 = (BYTES / 512) as u64;
const PLACES: u64 = 8;
/// More than it takes until one is sent aside to find out.
const ROUNDS: u64 = 48;

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, work)
}

/// On tmpfs if there is one, and on a disk: they take different ways.
fn devices() -> Vec<(tempfile::NamedTempFile, FileDevice)> {
    let memory =
        std::path::Path::new("/dev/shm").is_dir().then(|| tempfile::NamedTempFile::new_in("/dev/shm"));
    let disk = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR"));
    let files = memory.into_iter().chain([disk]);
    files
        .map(|file| {
            let file = file.expect("a file");
            file.as_file().set_len(PLACES * BYTES as u64).expect("a size");
            let device = FileDevice::open(file.path(), &FileOptions::default()).expect("a device");
            (file, device)
        })
        .collect()
}

fn filled(byte: u8) -> Buffer {
    let mut buffer = Buffer::new(BYTES);
    buffer.fill(byte);
    buffer
}

/// What `place` holds after `round`.
fn content(place: u64, round: u64) -> u8 {
    u8::try_from((place * 31 + round) % 251).expect("below 251")
}

#[test]
fn large_transfers_that_overlap_bring_what_was_written() {
    for (_file, device) in devices() {
        run(async {
            let lane = Rc::new(device.open_lane().expect("a lane"));
            let mut clients = JoinSet::new();
            for place in 0..PLACES {
                let lane = Rc::clone(&lane);
                clients.spawn_local(async move {
                    for round in 0..ROUNDS {
                        let (at, byte) = (Lba(place * SECTORS), content(place, round));
                        let (written, mut buffer) = lane.write(at, filled(byte), Durability::Volatile).await;
                        written.expect("written");
                        // A read that brings nothing must not find it here already.
                        buffer.fill(!byte);
                        let (read, buffer) = lane.read(at, buffer).await;
                        read.expect("read");
                        assert!(buffer.iter().all(|&found| found == byte), "place {place}, round {round}");
                    }
                });
            }
            while let Some(ended) = clients.join_next().await {
                ended.expect("no panic");
            }
        });
    }
}

#[test]
fn a_lane_that_goes_away_waits_for_what_was_abandoned_aside() {
    for (file, device) in devices() {
        run(async {
            let lane = Rc::new(device.open_lane().expect("a lane"));
            let mut clients = JoinSet::new();
            for place in 0..PLACES {
                let lane = Rc::clone(&lane);
                clients.spawn_local(async move {
                    for round in 0..u64::MAX {
                        let byte = content(place, round);
                        lane.write(Lba(place * SECTORS), filled(byte), Durability::Volatile)
                            .await
                            .0
                            .expect("written");
                        tokio::task::yield_now().await;
                    }
                });
            }
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            clients.shutdown().await;
        });
        // Nothing changes any more, and no write is half there.
        let before = std::fs::read(file.path()).expect("its bytes");
        for place in before.chunks_exact(BYTES) {
            assert!(place.iter().all(|byte| Some(byte) == place.first()));
        }
        assert_eq!(std::fs::read(file.path()).expect("its bytes"), before);
    }
}
