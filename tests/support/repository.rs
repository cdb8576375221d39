//! Snapshots in a test's pool, made of what a detached volume stores: without the commands that are under test elsewhere.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use sealblk_snapshot::{
    BLOCK_BYTES, BlockSource, Cause, Changed, Location, NewSnapshot, Progress, Repository, SnapshotError,
    SnapshotId, State, Stop, StoreOptions, UploadOptions,
};
use serde_json::{Value, json};

use super::pool::Pool;

/// The repository of a pool.
pub struct Snapshots<'p> {
    pool: &'p Pool,
    location: Location,
}

impl<'p> Snapshots<'p> {
    /// The pool's own.
    pub fn of(pool: &'p Pool) -> Self {
        Self { pool, location: Location::Directory(pool.path().join("snapshots")) }
    }

    /// One in a directory elsewhere.
    pub fn at(pool: &'p Pool, directory: PathBuf) -> Self {
        Self { pool, location: Location::Directory(directory) }
    }

    fn run<T>(&self, work: impl AsyncFnOnce(Repository) -> Result<T, SnapshotError>) -> T {
        let io = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        io.block_on(async {
            let repository = Repository::open(&self.location, &StoreOptions::default()).await?;
            work(repository).await
        })
        .expect("the repository works")
    }

    /// A completed snapshot of a volume that is not attached.
    pub fn create(&self, volume: &str) -> String {
        self.make(volume, None, true)
    }

    /// The same, that takes over from `parent` what has not changed.
    pub fn create_upon(&self, volume: &str, parent: &str) -> String {
        self.make(volume, Some(parent), true)
    }

    /// One that is begun and not completed.
    pub fn begin(&self, volume: &str) -> String {
        self.make(volume, None, false)
    }

    fn make(&self, volume: &str, parent: Option<&str>, complete: bool) -> String {
        let id = SnapshotId::generate().expect("random bytes");
        let record: Value = serde_json::from_slice(
            &fs::read(self.pool.volume_dir(volume).join("volume.json")).expect("the record"),
        )
        .expect("JSON");
        let metadata = json!({
            "OwnerId": "000000000000",
            "VolumeId": volume,
            "Encryption": encryption(volume, &record["Encryption"]),
        });
        let size = record["SizeBytes"].as_u64().expect("a size");
        let source = DataFile(File::open(self.pool.data(volume)).expect("the data"));
        self.run(async |repository| {
            let parent = parent.map(|parent| parent.parse().expect("an id"));
            let new = NewSnapshot { id, volume_size_bytes: size, parent, metadata: &metadata };
            repository.begin(new).await?;
            if complete {
                let stop = Stop::default();
                let progress: &dyn Fn(Progress) = &|_| {};
                let options = UploadOptions { parallel: 2, same_source: false, progress, stop: &stop };
                repository.upload(id, &source, &Changed::Unknown, options).await?;
            }
            Ok(())
        });
        id.to_string()
    }

    /// Gives up one that was begun.
    pub fn fail(&self, snapshot: &str) {
        let id = snapshot.parse().expect("an id");
        self.run(async |repository| repository.fail(id, "a test gave it up").await);
    }

    /// Deletes it, as far as nobody holds it.
    pub fn delete(&self, snapshot: &str) {
        let id = snapshot.parse().expect("an id");
        self.run(async |repository| repository.delete(id).await);
    }

    /// Its state; `None`: it is gone.
    pub fn state(&self, snapshot: &str) -> Option<State> {
        let id = snapshot.parse().expect("an id");
        self.run(async |repository| match repository.record(id).await {
            Ok(record) => Ok(Some(record.state)),
            Err(SnapshotError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Who holds it.
    pub fn holders(&self, snapshot: &str) -> Vec<String> {
        let id = snapshot.parse().expect("an id");
        self.run(async |repository| repository.holders(id).await)
    }

    /// How many of its blocks have data, and how many of those its own making wrote.
    pub fn written_blocks(&self, snapshot: &str) -> usize {
        let Location::Directory(directory) = &self.location else { panic!("a directory") };
        let dir = directory.join("blocks").join(snapshot);
        files_below(&dir).len()
    }

    /// The file of a block with data that the snapshot's own making wrote, by the block's number.
    pub fn block_file(&self, snapshot: &str, block: u64) -> PathBuf {
        let Location::Directory(directory) = &self.location else { panic!("a directory") };
        let files = files_below(&directory.join("blocks").join(snapshot));
        let mut files: Vec<PathBuf> = files.into_iter().filter(|file| is_of(file, block)).collect();
        assert_eq!(files.len(), 1, "block {block}");
        files.remove(0)
    }
}

/// Whether a block's object, named by leaf and slot and hash, is of this number.
fn is_of(file: &std::path::Path, block: u64) -> bool {
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    let slot = name.split('-').next().expect("a slot");
    u64::from_str_radix(slot, 16).ok() == Some(block % 1024)
}

fn files_below(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

/// What a snapshot says of its encryption, from what its volume's record says.
fn encryption(volume: &str, of: &Value) -> Value {
    if of["Cipher"] == "none" {
        return json!({ "Cipher": "none" });
    }
    let mut encryption = json!({
        "Cipher": "aes-256-xts",
        "KmsKeyId": of["KmsKeyId"],
        "WrappedKey": of["WrappedKey"],
        "EncryptionContextId": volume,
        "Lineage": of["Lineage"],
    });
    let key_check = of["Seal"]["KeyCheck"].as_str().or(of["ExpectedKeyCheck"].as_str());
    if let Some(key_check) = key_check {
        encryption["KeyCheck"] = key_check.into();
    }
    if of["RecoveryKeys"].is_array() {
        encryption["RecoveryKeys"] = of["RecoveryKeys"].clone();
    }
    encryption
}

/// A volume's data, as it is stored.
struct DataFile(File);

impl BlockSource for DataFile {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, index * BLOCK_BYTES)?;
        Ok(bytes.into())
    }
}
