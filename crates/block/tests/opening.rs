//! What can be opened as a device, with which shape, and how everything else is refused.

mod lanes;

use lanes::{buffer_of, file_in, on_a_lane_thread};
use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Caching, Durability, FileDevice, FileOptions, Lba,
    SectorRange, StoreError, ZeroMode,
};

fn refused(path: &std::path::Path, options: &FileOptions) -> StoreError {
    FileDevice::open(path, options).expect_err("this cannot be a device")
}

#[test]
fn a_file_is_buffered_unless_asked_otherwise_and_has_its_length() {
    let file = file_in(&std::env::temp_dir(), 1 << 20);
    let device = FileDevice::open(file.path(), &FileOptions::default()).expect("a device");
    assert_eq!(device.caching(), Caching::Buffered);
    let geometry = device.geometry();
    assert_eq!((geometry.sectors, geometry.unit_bytes, geometry.read_only), (2048, 512, false));
    let direct = lanes::open(file.path(), Caching::Direct).geometry();
    assert!(direct.unit_bytes.is_power_of_two() && (512..=4096).contains(&direct.unit_bytes));
}

#[test]
fn what_is_neither_file_nor_block_device_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a fifo");
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    for (path, name) in [
        (directory.path(), "directory"),
        (&fifo, "named pipe"),
        (&socket, "socket"),
        (std::path::Path::new("/dev/zero"), "character device"),
    ] {
        let error = refused(path, &FileOptions::default());
        assert!(matches!(error, StoreError::WrongKind { kind, .. } if kind == name), "{error}");
        assert!(
            error.to_string().contains(name) && error.to_string().contains(path.to_str().expect("UTF-8"))
        );
    }
}

#[test]
fn an_absent_path_says_so() {
    let error = refused(std::path::Path::new("/nonexistent/store"), &FileOptions::default());
    let StoreError::Io { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_truncated_file_is_refused_with_both_sizes() {
    let file = file_in(&std::env::temp_dir(), 4096);
    let options = FileOptions { expected_bytes: Some(8192), ..FileOptions::default() };
    let error = refused(file.path(), &options).to_string();
    assert!(error.contains("4096") && error.contains("8192"), "{error}");
}

#[test]
fn a_size_that_is_not_whole_units_is_refused_and_not_rounded() {
    let file = file_in(&std::env::temp_dir(), 4097);
    let error = refused(file.path(), &FileOptions::default());
    assert!(matches!(error, StoreError::NotWholeUnits { bytes: 4097, unit_bytes: 512, .. }), "{error}");
    // A volume of a known size may lie in a larger file.
    let options = FileOptions { expected_bytes: Some(4096), ..FileOptions::default() };
    assert_eq!(FileDevice::open(file.path(), &options).expect("a device").geometry().sectors, 8);
}

#[test]
fn a_device_shows_more_of_a_file_that_has_grown_and_never_less() {
    let file = file_in(&std::env::temp_dir(), 4096);
    let device = lanes::open(file.path(), Caching::Buffered);
    assert!(matches!(device.grow(8192), Err(StoreError::Truncated { .. })));
    file.as_file().set_len(8192).expect("longer");
    assert_eq!(device.geometry().sectors, 8, "until it is told");
    assert!(matches!(device.grow(4097), Err(StoreError::NotWholeUnits { .. })));
    device.grow(8192).expect("it has them");
    device.grow(4096).expect("nothing to do");
    assert_eq!(device.geometry().sectors, 16);
}

#[test]
fn a_read_only_device_reads_and_refuses_every_change() {
    let file = file_in(&std::env::temp_dir(), 8192);
    std::fs::write(file.path(), [5; 8192]).expect("written");
    let options = FileOptions { read_only: true, ..FileOptions::default() };
    let device = FileDevice::open(file.path(), &options).expect("a device");
    assert!(device.geometry().read_only);
    on_a_lane_thread(async || {
        let lane = device.open_lane().expect("a lane");
        let range = SectorRange { start: Lba(0), count: 8 };
        let (outcome, buffer) = lane.read(Lba(0), Buffer::new(8192)).await;
        outcome.expect("read");
        assert_eq!(&buffer[..], &[5; 8192]);
        let read_only = |outcome| assert!(matches!(outcome, Err(BlockError::ReadOnly { .. })));
        read_only(lane.write(Lba(0), buffer_of(&[1; 512]), Durability::Volatile).await.0);
        read_only(lane.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await);
        read_only(lane.discard(range, Durability::Volatile).await);
        lane.flush().await.expect("nothing to flush");
    });
}
