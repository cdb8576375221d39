//! Volumes with content, snapshots of them, and volumes made of those: what tests of restoring have in common.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::attachment::Attachment;
use super::noise;
use super::pool::Pool;
use super::process::{foreign, run};
use super::repository::Snapshots;

/// Bytes in a block.
pub const BLOCK: usize = 512 << 10;

/// A key of the pool's own; its ARN.
pub fn new_key(pool: &Pool) -> String {
    let made = pool.json(&["key", "create"]);
    made["Arn"].as_str().or(made["KeyMetadata"]["Arn"].as_str()).expect("an ARN").to_owned()
}

/// A detached volume of 8 MiB that holds `image`, which is 8 MiB; zeros in it were never written.
pub fn filled(pool: &Pool, args: &[&str], image: &[u8]) -> String {
    let volume = pool.create(&[&["--size", "8MiB"], args].concat());
    let attachment = pool.attach(&volume, &[]);
    write_data(&attachment, image);
    attachment.terminate();
    volume
}

/// A pool, what an encrypted volume in it holds, and that volume's snapshot: where most tests begin.
#[track_caller]
pub fn snapshotted(seed: u64) -> (Pool, Vec<u8>, String) {
    let (pool, image) = (Pool::new(), image(seed));
    let volume = filled(&pool, &["--encrypted"], &image);
    let snapshot = Snapshots::of(&pool).create(&volume);
    (pool, image, snapshot)
}

/// A block of a snapshot that cannot be had until it is put back.
pub struct MissingBlock {
    file: PathBuf,
    aside: PathBuf,
}

impl MissingBlock {
    /// Block `block`, with data, that the snapshot's own making wrote.
    #[track_caller]
    pub fn of(snapshots: &Snapshots<'_>, snapshot: &str, block: u64) -> Self {
        let file = snapshots.block_file(snapshot, block);
        let aside = file.with_extension("aside");
        fs::rename(&file, &aside).expect("moved");
        Self { file, aside }
    }

    /// The same, and whoever asks for it waits: in its place is a pipe that nobody writes to.
    #[track_caller]
    pub fn hanging(snapshots: &Snapshots<'_>, snapshot: &str, block: u64) -> Self {
        let this = Self::of(snapshots, snapshot, block);
        run(foreign("mkfifo").arg(&this.file)).ok();
        this
    }

    /// It is there again, in place of the pipe too.
    #[track_caller]
    pub fn put_back(self) {
        fs::rename(self.aside, self.file).expect("moved back");
    }
}

/// Writes what of `image` is not zeros, durably.
pub fn write_data(attachment: &Attachment, image: &[u8]) {
    let mut client = attachment.client();
    for (block, bytes) in image.chunks(BLOCK).enumerate() {
        if bytes.iter().any(|&byte| byte != 0) {
            client.write((block * BLOCK) as u64, bytes).expect("written");
        }
    }
    client.flush().expect("flushed");
}

/// 8 MiB, of which blocks 0, 1, 5, 6, 7 and 15 hold noise, and block 9 ten sectors of it.
pub fn image(seed: u64) -> Vec<u8> {
    let mut image = vec![0; 8 << 20];
    for block in [0, 1, 5, 6, 7, 15] {
        image[block * BLOCK..][..BLOCK].copy_from_slice(&noise(seed + block as u64, BLOCK));
    }
    image[9 * BLOCK + 1024..][..5120].copy_from_slice(&noise(seed + 9, 5120));
    image
}

/// The first `bytes` that a client reads of a volume.
pub fn content(pool: &Pool, volume: &str, bytes: usize) -> Vec<u8> {
    let attachment = pool.attach(volume, &["--read-only"]);
    let mut client = attachment.client();
    let mut image = Vec::new();
    for at in (0..bytes).step_by(BLOCK) {
        let read = client.read(at as u64, BLOCK.min(bytes - at));
        image.extend(read.unwrap_or_else(|error| panic!("{at}: {error}: {}", attachment.log())));
    }
    drop(client);
    attachment.terminate();
    image
}

/// Brings all blocks, offline.
pub fn complete(pool: &Pool, volume: &str) {
    let restored = pool.json(&["volume", "restore", volume]);
    assert_eq!(restored["Restoring"], Value::Null, "{restored}");
}

/// A volume made of a snapshot.
pub fn from_snapshot(pool: &Pool, snapshot: &str, args: &[&str]) -> String {
    pool.create(&[&["--snapshot-id", snapshot], args].concat())
}

/// The code of an error in JSON.
pub fn code(error: &str) -> String {
    let error: Value = serde_json::from_str(error.lines().last().expect("an error")).expect("JSON");
    error["Error"]["Code"].as_str().expect("a code").to_owned()
}

/// The code that a command is refused with.
#[track_caller]
pub fn refused(pool: &Pool, args: &[&str], exit: i32) -> String {
    code(&pool.run(&[&["--output", "json"], args].concat()).refused(exit))
}
