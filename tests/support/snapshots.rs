//! Snapshots of a test's pool, read without the commands under test: bytes as they are stored, and the objects there are.

use std::path::{Path, PathBuf};

use sealblk_snapshot::{BLOCK_BYTES, Block, Location, Repository, StoreOptions};

use super::pool::Pool;

/// Bytes in a block.
pub const BLOCK: usize = BLOCK_BYTES as usize;

/// What a completed snapshot in the pool's own repository holds, every block checked against its hash.
#[track_caller]
pub fn snapshot_bytes(pool: &Pool, snapshot: &str) -> Vec<u8> {
    bytes_in(&Location::Directory(pool.path().join("snapshots")), &StoreOptions::default(), snapshot)
}

/// The same, of a repository anywhere.
#[track_caller]
pub fn bytes_in(location: &Location, options: &StoreOptions, snapshot: &str) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let repository = Repository::open(location, options).await.expect("a repository");
        let id = snapshot.parse().expect("a snapshot's id");
        let snapshot = repository.snapshot(id).await.unwrap_or_else(|error| panic!("{snapshot}: {error}"));
        let size = usize::try_from(snapshot.record().volume_size_bytes).expect("a small volume");
        let mut bytes = vec![0; size];
        for (index, piece) in (0_u64..).zip(bytes.chunks_mut(BLOCK)) {
            if let Block::Data(data) = snapshot.read_block(index).await.expect("a block") {
                piece.copy_from_slice(&data);
            }
        }
        bytes
    })
}

/// The objects of a kind (`blocks`, `pages`, `snapshots`) in the pool's own repository.
pub fn objects(pool: &Pool, kind: &str) -> Vec<PathBuf> {
    files_below(&pool.path().join("snapshots").join(kind))
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (mut dirs, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = dirs.pop() {
        // A directory that is not there yet, or not any more.
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // What is being written has another name, and `.keep` is no object.
            let object = !name.contains(['#', '~']) && name != ".keep";
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(_) if object => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}
