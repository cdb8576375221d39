//! A snapshot of a 16 TiB volume with few changes writes little and needs little memory. Alone in its process, because it
//! looks at the peak of the process' memory.

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use object_store::memory::InMemory;
use rig::faulty::Faulty;
use rig::*;
use sealblk_snapshot::{BLOCK_BYTES, Changed, Repository};

/// The most memory this process ever had, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "the measured figures are what somebody runs this for")]
async fn ten_changed_blocks_of_16_tib_are_little_to_write_and_little_to_hold() {
    let store = Faulty::new(Arc::new(InMemory::new()));
    let repository = Repository::with_store(store.clone()).await.expect("fit");
    let stride = 16 * TIB / BLOCK_BYTES / 10;
    // One block in each of 32 places, so that every middle page is there.
    let first = (0..32).map(|index| (index * 1024 * 1024, 1));
    let mut volume = Volume::new(16 * TIB, first);
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    for (how, number) in [("a clean map", 2), ("hashes", 3)] {
        volume.blocks.extend((0..10).map(|index| (index * stride + number, number as u8)));
        let changed = match number {
            2 => Changed::Only((0..10).map(|index| index * stride + number).collect()),
            _ => Changed::Unknown,
        };
        let before = (store.puts.load(Ordering::Relaxed), store.written_bytes.load(Ordering::Relaxed));
        let peak_before = peak_kib();
        let record =
            create(&repository, number, Some(number - 1), &volume, &changed).await.expect("a snapshot");
        assert_eq!(record.changed_blocks, 10);
        let puts = store.puts.load(Ordering::Relaxed) - before.0;
        let bytes = store.written_bytes.load(Ordering::Relaxed) - before.1;
        let index_bytes = bytes - 10 * BLOCK_BYTES;
        eprintln!("{how}: {puts} objects, {index_bytes} bytes beside the blocks, peak {} KiB", peak_kib());
        // Ten blocks, ten leaves, at most ten middle pages, the root page, and the record four times.
        assert!(puts <= 10 + 10 + 10 + 1 + 4, "{puts} objects");
        assert!(index_bytes < 64 * 1024, "{index_bytes} bytes");
        assert!(peak_kib() - peak_before < 32 * 1024, "{} KiB more", peak_kib() - peak_before);
        assert_is(&repository.snapshot(snapshot_id(number)).await.expect("completed"), &volume).await;
    }
}
