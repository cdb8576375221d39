//! What the property files share: a runtime like a lane's thread has, and the stores of this machine.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::print_stderr, reason = "a failing test says on which store")]

use std::path::Path;

use sealblk_block::{Buffer, Caching, FileDevice, FileOptions};

/// Runs `body` as a lane's thread would: a current-thread runtime with I/O, inside a `LocalSet`.
pub(crate) fn on_a_lane_thread<T>(body: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, body())
}

/// A file of `bytes` zeros that is gone with the value.
pub(crate) fn file_in(directory: &Path, bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in(directory).expect("a temporary file");
    file.as_file().set_len(bytes).expect("a length");
    file
}

pub(crate) fn open(path: &Path, caching: Caching) -> FileDevice {
    let options = FileOptions { caching: Some(caching), ..FileOptions::default() };
    FileDevice::open(path, &options).expect("a device")
}

/// Runs `body` on a fresh file of `bytes` zeros on each kind of store: the disk and memory (`/dev/shm`),
/// buffered and direct.
pub(crate) fn on_each_store(bytes: u64, body: impl Fn(FileDevice, &Path)) {
    let memory = Path::new("/dev/shm");
    let disk = std::env::temp_dir();
    for directory in [disk.as_path(), memory] {
        for caching in [Caching::Buffered, Caching::Direct] {
            let file = file_in(directory, bytes);
            eprintln!("store: {} {caching:?}", directory.display());
            body(open(file.path(), caching), file.path());
        }
    }
}

/// A buffer of these bytes, with room for one shift by up to two units.
pub(crate) fn buffer_of(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::new(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
