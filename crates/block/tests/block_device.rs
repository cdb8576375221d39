//! A real block device: a loop device on a file of our own. Needs root and losetup (Debian's package mount).

mod lanes;

use std::process::Command;

use lanes::{buffer_of, file_in, on_a_lane_thread, pattern};
use sealblk_block::blank::{Content, erase, inspect};
use sealblk_block::{
    BlockDevice, BlockLane, Buffer, Caching, Durability, Extent, FileDevice, FileOptions, Lba, SectorRange,
    StoreError, ZeroMode,
};

const SIZE: u64 = 16 << 20;

/// A loop device that is detached with the value.
struct Loop {
    path: std::path::PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    fn new(logical_block_bytes: u32) -> Self {
        let file = file_in(&std::env::temp_dir(), SIZE);
        let block = logical_block_bytes.to_string();
        let output = Command::new("losetup")
            .args(["--find", "--show", "-b", &block])
            .arg(file.path())
            .output()
            .expect("losetup (Debian's package mount)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "no loop device (this test needs root): {said}");
        let path = String::from_utf8(output.stdout).expect("a path").trim().to_owned();
        Self { path: path.into(), _file: file }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).output();
    }
}

#[test]
fn a_block_device_is_direct_has_its_logical_block_and_keeps_what_is_written() {
    for block in [512, 4096] {
        let disk = Loop::new(block);
        for caching in [None, Some(Caching::Buffered)] {
            let options = FileOptions { caching, ..FileOptions::default() };
            let device = FileDevice::open(&disk.path, &options).expect("a device");
            let geometry = device.geometry();
            assert_eq!(device.caching(), caching.unwrap_or(Caching::Direct));
            assert_eq!(geometry.sectors, SIZE / 512);
            assert_eq!(geometry.unit_bytes, if caching.is_none() { block } else { 512 });
            on_a_lane_thread(async || exercise(&device).await);
        }
    }
}

async fn exercise(device: &FileDevice) {
    let lane = device.open_lane().expect("a lane");
    let bytes = pattern(5, 1 << 20);
    for durability in [Durability::Volatile, Durability::Durable] {
        lane.write(Lba(4096), buffer_of(&bytes), durability).await.0.expect("written");
    }
    lane.flush().await.expect("flushed");
    let (outcome, found) = lane.read(Lba(4096), Buffer::new(1 << 20)).await;
    outcome.expect("read");
    assert!(found[..] == bytes[..]);
    for mode in [ZeroMode::MayUnmap, ZeroMode::KeepAllocated] {
        let units = u64::from(device.geometry().unit_bytes) / 512;
        let range = SectorRange { start: Lba(4096 + units), count: 3 * units };
        lane.write(Lba(4096), buffer_of(&bytes), Durability::Volatile).await.0.expect("written");
        lane.zero(range, mode, Durability::Durable).await.expect("zeroed");
        let (outcome, found) = lane.read(range.start, Buffer::new(range.bytes() as usize)).await;
        outcome.expect("read");
        assert!(found.iter().all(|&byte| byte == 0), "{mode:?}");
        let (_, before) = lane.read(Lba(4096), Buffer::new(units as usize * 512)).await;
        assert!(before[..] == bytes[..before.len()], "{mode:?} reached the unit before");
    }
    lane.discard(SectorRange { start: Lba(0), count: SIZE / 512 }, Durability::Durable)
        .await
        .expect("discarded");
    let (outcome, found) = lane.read(Lba(4096), Buffer::new(1 << 20)).await;
    outcome.expect("read");
    let zeros = found.iter().all(|&byte| byte == 0);
    assert!(zeros || found[..512] == bytes[..512], "neither as before nor zeros");
    let mut extents: Vec<Extent> = Vec::with_capacity(1);
    lane.extents(SectorRange { start: Lba(0), count: 96 }, &mut extents).await.expect("extents");
    assert_eq!(extents.iter().map(|extent| extent.count).sum::<u64>(), 96);
}

#[test]
fn a_block_device_is_inspected_and_erased_but_not_while_it_is_mounted() {
    let disk = Loop::new(512);
    let formatted = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.path).status();
    if !formatted.is_ok_and(|status| status.success()) {
        return; // No mkfs here.
    }
    let found = inspect(&disk.path, &mut |_, _| {}).expect("readable");
    assert!(matches!(&found, Content::Found { what, .. } if what == "ext4 file system"), "{found:?}");
    let directory = tempfile::tempdir().expect("a directory");
    let mounted = Command::new("mount").arg(&disk.path).arg(directory.path()).status();
    if mounted.is_ok_and(|status| status.success()) {
        let refusals = [
            erase(&disk.path, &mut |_, _| {}).err(),
            inspect(&disk.path, &mut |_, _| {}).err(),
            FileDevice::open(&disk.path, &FileOptions::default()).err(),
        ];
        let unmounted = Command::new("umount").arg(directory.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
        for refused in refusals {
            assert!(matches!(refused, Some(StoreError::InUse { .. })), "{refused:?}");
        }
    }
    erase(&disk.path, &mut |done, total| assert!(done <= total && total == SIZE)).expect("erased");
    assert_eq!(inspect(&disk.path, &mut |_, _| {}).expect("readable"), Content::Blank);
}
