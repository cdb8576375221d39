//! CopySnapshot, with snapshots made block by block and copies looked into with the data key in hand.

mod rig;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use rig::{Rig, plain};
use sealblk_control::{
    ControlError, CopiedSnapshot, CopyRun, CopySnapshot, CreateVolume, Pool, RepositoryName, RepositoryPlace,
    SnapshotEncryption, SnapshotMetadata, Stop, StoreOptions, VolumeDescription, XtsSnapshot,
};
use sealblk_keymem::DataKey;
use sealblk_kms::local::{KeySpec, KeyUsage, NewKey};
use sealblk_kms::{DecryptRequest, EncryptionContext, Kms, WrappedKey};
use sealblk_record::RecordFile;
use sealblk_snapshot::{
    BLOCK_BYTES, Block, BlockSource, Cause, Changed, Deletion, Location, NewSnapshot, Repository, SnapshotId,
    SnapshotRecord, State, UploadOptions,
};
use sealblk_volume::{Encryption, KeyCheck, SectorCipher, VolumeRecord};

const BLOCK: usize = BLOCK_BYTES as usize;
const BLOCKS: u64 = 64;

/// What a volume holds: plaintext by block. The blocks between are unwritten.
type Content = BTreeMap<u64, Vec<u8>>;

fn block_of(seed: u8) -> Vec<u8> {
    (0..BLOCK).map(|at| seed.wrapping_mul(37).wrapping_add((at / 7) as u8) | 1).collect()
}

fn content(seeds: &[(u64, u8)]) -> Content {
    seeds.iter().map(|&(index, seed)| (index, block_of(seed))).collect()
}

struct Blocks(BTreeMap<u64, Bytes>);

impl BlockSource for Blocks {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        Ok(self.0.get(&index).cloned().unwrap_or_else(|| vec![0; length].into()))
    }
    async fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, Cause> {
        Ok(self.0.range(from..).next().map(|(&index, _)| index..index + 1))
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let io = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&io, work)
}

fn place(rig: &Rig, name: &str) -> RepositoryPlace {
    let location = rig.path(name).display().to_string();
    let name = RepositoryName { location, options: BTreeMap::new() };
    RepositoryPlace::named(name, StoreOptions::default()).expect("a place")
}

async fn repository(rig: &Rig, name: &str) -> Repository {
    let location = Location::Directory(rig.path(name));
    Repository::open(&location, &StoreOptions::default()).await.expect("the repository")
}

fn record_of(rig: &Rig, volume: &VolumeDescription) -> VolumeRecord {
    let path = rig.path("pool/volumes").join(volume.volume_id.to_string()).join("volume.json");
    RecordFile::new(path).load().expect("the volume's record")
}

fn unwrap(rig: &Rig, key: &str, wrapped: &[u8], context: &str) -> DataKey {
    let context = EncryptionContext::for_resource(context);
    let wrapped = WrappedKey(wrapped.to_vec());
    let request = DecryptRequest { wrapped: &wrapped, key, context: &context, grant: None };
    rig.kms().decrypt(&request).expect("the owner may")
}

/// Makes a snapshot of `volume` as it would be with this content.
fn snapshot(
    rig: &Rig,
    volume: &VolumeDescription,
    content: &Content,
    parent: Option<SnapshotId>,
) -> SnapshotId {
    let record = record_of(rig, volume);
    let (encryption, cipher) = match &record.encryption {
        Encryption::Plain {} => (SnapshotEncryption::Plain {}, None),
        Encryption::Aes256Xts(xts) => {
            let id = volume.volume_id.to_string();
            let key = unwrap(rig, xts.kms_key_id.as_str(), xts.wrapped_key.as_bytes(), &id);
            let encryption = SnapshotEncryption::Aes256Xts(Box::new(XtsSnapshot {
                kms_key_id: xts.kms_key_id.clone(),
                wrapped_key: xts.wrapped_key.clone(),
                recovery_keys: Vec::new(),
                encryption_context_id: id,
                lineage: xts.lineage,
                key_check: Some(Box::new(KeyCheck::of(&key).expect("locked memory"))),
            }));
            (encryption, Some(SectorCipher::new(&key).expect("a cipher")))
        }
    };
    let metadata = SnapshotMetadata {
        owner_id: Default::default(),
        volume_id: volume.volume_id,
        description: "the source".to_owned(),
        encryption,
        copied_from: None,
        shared_with: Vec::new(),
        public: false,
    };
    let stored = content.iter().map(|(&index, plaintext)| {
        let mut block = plaintext.clone();
        if let Some(cipher) = &cipher {
            cipher.encrypt_in_place(index * 1024, &mut block);
        }
        (index, Bytes::from(block))
    });
    let blocks = Blocks(stored.collect());
    let id = SnapshotId::generate().expect("random bytes");
    run(async {
        let repository = repository(rig, "pool/snapshots").await;
        let new = NewSnapshot { id, volume_size_bytes: BLOCKS * BLOCK_BYTES, parent, metadata: &metadata };
        repository.begin(new).await.expect("begun");
        let stop = Stop::default();
        let options = UploadOptions { parallel: 2, same_source: true, progress: &|_| {}, stop: &stop };
        repository.upload(id, &blocks, &Changed::Unknown, options).await.expect("uploaded");
    });
    id
}

/// The record, and the plaintext behind its key, of a snapshot in `place`.
fn read(rig: &Rig, place: &str, id: SnapshotId) -> (SnapshotMetadata, Content, BTreeMap<u64, Bytes>) {
    run(async {
        let repository = repository(rig, place).await;
        let snapshot = repository.snapshot(id).await.expect("completed");
        let metadata: SnapshotMetadata = snapshot.record().metadata().expect("metadata");
        let cipher = match &metadata.encryption {
            SnapshotEncryption::Plain {} => None,
            SnapshotEncryption::Aes256Xts(xts) => {
                let context = &xts.encryption_context_id;
                let key = unwrap(rig, xts.kms_key_id.as_str(), xts.wrapped_key.as_bytes(), context);
                xts.key_check.as_ref().expect("known").verify(&key).expect("the copy's key");
                Some(SectorCipher::new(&key).expect("a cipher"))
            }
        };
        let (mut plain, mut stored) = (Content::new(), BTreeMap::new());
        for index in 0..BLOCKS {
            let Block::Data(block) = snapshot.read_block(index).await.expect("read") else { continue };
            let mut plaintext = block.to_vec();
            if let Some(cipher) = &cipher {
                cipher.decrypt_in_place(index * 1024, &mut plaintext);
            }
            plain.insert(index, plaintext);
            stored.insert(index, block);
        }
        (metadata, plain, stored)
    })
}

fn record(rig: &Rig, id: SnapshotId) -> Option<SnapshotRecord> {
    run(async { repository(rig, "pool/snapshots").await.record(id).await.ok() })
}

fn records(rig: &Rig, place: &str) -> usize {
    run(async { repository(rig, place).await.snapshots().await.expect("listed").len() })
}

fn holders(rig: &Rig, id: SnapshotId) -> Vec<String> {
    run(async { repository(rig, "pool/snapshots").await.holders(id).await.expect("listed") })
}

fn request(source: SnapshotId) -> CopySnapshot {
    CopySnapshot { source, encrypted: None, kms_key_id: None, description: "a copy".to_owned() }
}

fn under(source: SnapshotId, key: &str) -> CopySnapshot {
    CopySnapshot { encrypted: Some(true), kms_key_id: Some(key.to_owned()), ..request(source) }
}

fn copy(into: &Pool, from: &Pool, request: &CopySnapshot) -> Result<CopiedSnapshot, ControlError> {
    let stop = Stop::default();
    let run = CopyRun { begun: &|_| {}, progress: &|_, _| {}, stop: &stop };
    into.copy_snapshot(from, request, &run)
}

/// A copy that is asked to stop after its first block.
fn interrupted(rig: &Rig, request: &CopySnapshot) -> SnapshotId {
    let (stop, id) = (Stop::default(), Cell::new(None));
    let run = CopyRun { begun: &|copy| id.set(Some(copy)), progress: &|_, _| stop.request(), stop: &stop };
    rig.pool.copy_snapshot(&rig.pool, request, &run).expect_err("it was stopped");
    id.get().expect("it was begun")
}

fn resume(pool: &Pool, id: SnapshotId) -> Result<CopiedSnapshot, ControlError> {
    let stop = Stop::default();
    pool.resume_copy(None, id, &CopyRun { begun: &|_| {}, progress: &|_, _| {}, stop: &stop })
}

fn sized(encrypted: bool) -> CreateVolume {
    CreateVolume { size_bytes: Some(BLOCKS * BLOCK_BYTES), encrypted: Some(encrypted), ..plain() }
}

fn new_key(rig: &Rig) -> String {
    rig.kms().create_key_as(&NewKey::default()).expect("a key").arn
}

#[test]
fn r43_r61_r64_a_copy_under_another_key_is_complete_and_needs_nothing_of_the_old_one() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let data = content(&[(0, 1), (7, 2), (63, 3)]);
    let source = snapshot(&rig, &volume, &data, None);
    let before = read(&rig, "pool/snapshots", source);
    let key = new_key(&rig);
    let copied = copy(&rig.pool, &rig.pool, &under(source, &key)).expect("copied");
    assert_eq!(copied.snapshot.kms_key_id.as_ref().map(|key| key.as_str()), Some(key.as_str()));
    assert_eq!((copied.transferred_bytes, copied.incremental), (3 * BLOCK_BYTES, false));
    assert_eq!(
        (copied.snapshot.volume_id, copied.snapshot.description.as_str()),
        (volume.volume_id, "a copy")
    );
    let (metadata, plain, stored) = read(&rig, "pool/snapshots", copied.snapshot.snapshot_id);
    assert!(plain == data);
    assert!(stored.iter().all(|(index, block)| before.2[index] != block));
    let SnapshotEncryption::Aes256Xts(xts) = &metadata.encryption else { panic!("it is encrypted") };
    assert_eq!(xts.encryption_context_id, copied.snapshot.snapshot_id.to_string());
    assert!(read(&rig, "pool/snapshots", source) == before, "a copy never changes its source");
    assert_eq!(rig.grants(&volume), 0);
    assert_eq!(holders(&rig, source), [""; 0]);
    run(async { repository(&rig, "pool/snapshots").await.delete(source).await.expect("deleted") });
    assert!(read(&rig, "pool/snapshots", copied.snapshot.snapshot_id).1 == data);
}

#[test]
fn a_copy_makes_the_calls_that_ebs_makes() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let source = snapshot(&rig, &volume, &content(&[(0, 1)]), None);
    let key = new_key(&rig);
    let before = rig.calls().len();
    copy(&rig.pool, &rig.pool, &under(source, &key)).expect("copied");
    let calls = rig.calls().split_off(before);
    let unlocking = ["CreateGrant", "Decrypt", "RetireGrant"];
    let expected =
        [&["DescribeKey", "GenerateDataKeyWithoutPlaintext"], &unlocking[..], &unlocking[..]].concat();
    assert_eq!(calls, expected);
}

#[test]
fn a_copy_under_the_sources_own_key_has_a_data_key_of_its_own() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let data = content(&[(5, 9)]);
    let source = snapshot(&rig, &volume, &data, None);
    let copied = copy(&rig.pool, &rig.pool, &request(source)).expect("copied");
    let original = read(&rig, "pool/snapshots", source);
    let (metadata, plain, stored) = read(&rig, "pool/snapshots", copied.snapshot.snapshot_id);
    assert_eq!(metadata.kms_key_id(), original.0.kms_key_id());
    assert!(plain == data && stored[&5] != original.2[&5]);
    assert_ne!(copied.snapshot.data_encryption_key_id, None);
    assert_ne!(
        copied.snapshot.data_encryption_key_id,
        rig.pool.describe_snapshot(source).expect("described").data_encryption_key_id
    );
}

#[test]
fn r61_a_later_copy_under_the_same_key_moves_only_what_changed() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let mut data = content(&[(0, 1), (7, 2), (40, 3)]);
    let first = snapshot(&rig, &volume, &data, None);
    let (one, other) = (new_key(&rig), new_key(&rig));
    let first_copy = copy(&rig.pool, &rig.pool, &under(first, &one)).expect("copied").snapshot;
    data.insert(7, block_of(77));
    data.insert(9, block_of(99));
    data.remove(&40);
    let second = snapshot(&rig, &volume, &data, Some(first));
    let explained = rig.pool.explain_copy_snapshot(&rig.pool, &under(second, &one)).expect("explained");
    assert_eq!(explained.incremental_on, Some(first_copy.snapshot_id));
    let second_copy = copy(&rig.pool, &rig.pool, &under(second, &one)).expect("copied");
    assert_eq!((second_copy.transferred_bytes, second_copy.incremental), (2 * BLOCK_BYTES, true));
    let (metadata, plain, _) = read(&rig, "pool/snapshots", second_copy.snapshot.snapshot_id);
    assert!(plain == data);
    let SnapshotEncryption::Aes256Xts(xts) = &metadata.encryption else { panic!("it is encrypted") };
    assert_eq!(xts.encryption_context_id, second_copy.snapshot.snapshot_id.to_string());
    assert_eq!(second_copy.snapshot.data_encryption_key_id, first_copy.data_encryption_key_id);
    // Under a key that was not used before, it is complete again.
    let third = copy(&rig.pool, &rig.pool, &under(second, &other)).expect("copied");
    assert_eq!((third.transferred_bytes, third.incremental), (3 * BLOCK_BYTES, false));
    assert!(read(&rig, "pool/snapshots", third.snapshot.snapshot_id).1 == data);
}

#[test]
fn a_copy_does_not_build_on_one_whose_own_source_is_gone() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let data = content(&[(0, 1), (7, 2)]);
    let first = snapshot(&rig, &volume, &data, None);
    let key = new_key(&rig);
    copy(&rig.pool, &rig.pool, &under(first, &key)).expect("copied");
    let second = snapshot(&rig, &volume, &data, Some(first));
    run(async { repository(&rig, "pool/snapshots").await.delete(first).await.expect("deleted") });
    let copied = copy(&rig.pool, &rig.pool, &under(second, &key)).expect("copied");
    assert!(!copied.incremental && copied.transferred_bytes == 2 * BLOCK_BYTES);
    assert!(read(&rig, "pool/snapshots", copied.snapshot.snapshot_id).1 == data);
}

#[test]
fn r53_r59_r62_an_unencrypted_snapshot_is_encrypted_by_its_copy_and_no_plaintext_is_stored() {
    let rig = Rig::new();
    let volume = rig.create(&sized(false)).expect("a volume");
    let data = content(&[(1, 4), (2, 5)]);
    let source = snapshot(&rig, &volume, &data, None);
    let elsewhere = rig_pool(&rig).with_repository(place(&rig, "elsewhere"));
    let request = CopySnapshot { encrypted: Some(true), ..request(source) };
    let copied = copy(&elsewhere, &rig.pool, &request).expect("copied");
    assert!(copied.snapshot.encrypted);
    let (_, plain, stored) = read(&rig, "elsewhere", copied.snapshot.snapshot_id);
    assert!(plain == data);
    assert!(stored.iter().all(|(index, block)| data[index] != **block));
    // Again, to the same place under the same key: the lineage is known, nothing has changed.
    let again = copy(&elsewhere, &rig.pool, &request).expect("copied");
    assert_eq!((again.transferred_bytes, again.incremental), (0, true));
}

#[test]
fn r59_an_unencrypted_copy_is_the_same_blocks_and_in_one_repository_moves_nothing() {
    let rig = Rig::new();
    let volume = rig.create(&sized(false)).expect("a volume");
    let data = content(&[(1, 4), (2, 5)]);
    let source = snapshot(&rig, &volume, &data, None);
    let copied = copy(&rig.pool, &rig.pool, &request(source)).expect("copied");
    assert_eq!((copied.transferred_bytes, copied.snapshot.encrypted), (0, false));
    assert!(read(&rig, "pool/snapshots", copied.snapshot.snapshot_id).1 == data);
    let elsewhere = rig_pool(&rig).with_repository(place(&rig, "elsewhere"));
    let copied = copy(&elsewhere, &rig.pool, &request(source)).expect("copied");
    assert_eq!(copied.transferred_bytes, 2 * BLOCK_BYTES);
    assert!(read(&rig, "elsewhere", copied.snapshot.snapshot_id).1 == data);
}

#[test]
fn r60_with_encryption_by_default_every_copy_is_encrypted() {
    let rig = Rig::new();
    let volume = rig.create(&sized(false)).expect("a volume");
    let source = snapshot(&rig, &volume, &content(&[(1, 4)]), None);
    let directory = sealblk_control::PoolDirectory::open_or_create(&rig.path("pool")).expect("the pool");
    directory.set_encryption_by_default(true).expect("set");
    for encrypted in [None, Some(false), Some(true)] {
        let copied = copy(&rig.pool, &rig.pool, &CopySnapshot { encrypted, ..request(source) });
        assert!(copied.expect("copied").snapshot.encrypted, "{encrypted:?}");
    }
}

#[test]
fn r49_a_copy_of_an_encrypted_snapshot_is_encrypted_also_if_that_was_not_wanted() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let source = snapshot(&rig, &volume, &content(&[(1, 4)]), None);
    let request = CopySnapshot { encrypted: Some(false), ..request(source) };
    assert!(copy(&rig.pool, &rig.pool, &request).expect("copied").snapshot.encrypted);
}

#[test]
fn r33_a_key_that_cannot_be_used_is_refused_at_once_and_nothing_is_stored() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let source = snapshot(&rig, &volume, &content(&[(1, 4)]), None);
    let kms = rig.kms();
    let disabled = new_key(&rig);
    kms.disable_key(&disabled).expect("disabled");
    let asymmetric =
        NewKey { spec: KeySpec::RSA_2048, usage: Some(KeyUsage::ENCRYPT_DECRYPT), ..NewKey::default() };
    let asymmetric = kms.create_key_as(&asymmetric).expect("a key").arn;
    for (key, wrong) in [
        (disabled.as_str(), "is disabled"),
        (&asymmetric, "is invalid"),
        ("alias/nobody", "is invalid"),
        ("12345678-1234-1234-1234-123456789012", "is invalid"),
    ] {
        let error = copy(&rig.pool, &rig.pool, &under(source, key)).expect_err(key);
        assert_eq!(error.code(), "InvalidParameterValue", "{error}");
        assert!(error.to_string().contains(wrong), "{error}");
    }
    assert_eq!(records(&rig, "pool/snapshots"), 1);
    assert_eq!(holders(&rig, source), [""; 0]);
}

#[test]
fn a_source_that_is_not_there_or_not_whole_is_refused_and_nothing_is_stored() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let error = copy(&rig.pool, &rig.pool, &request(SnapshotId::generate().expect("an id")));
    assert_eq!(error.expect_err("there is none").code(), "InvalidSnapshot.NotFound");
    let source = snapshot(&rig, &volume, &content(&[(1, 4)]), None);
    let deleted = run(async {
        let repository = repository(&rig, "pool/snapshots").await;
        repository.hold(source, "somebody").await.expect("held");
        repository.delete(source).await.expect("marked")
    });
    assert!(matches!(deleted, Deletion::Held { .. }));
    let error = copy(&rig.pool, &rig.pool, &request(source)).expect_err("it is being deleted");
    assert_eq!(error.code(), "IncorrectState");
    assert_eq!(records(&rig, "pool/snapshots"), 1);
}

#[test]
fn an_interrupted_copy_holds_its_source_and_is_taken_up_again() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let data: Content = (0..40).map(|index| (index, block_of(index as u8))).collect();
    let source = snapshot(&rig, &volume, &data, None);
    let id = interrupted(&rig, &under(source, &new_key(&rig)));
    assert_eq!(record(&rig, id).expect("there").state, State::Pending);
    assert_eq!(holders(&rig, source), [id.to_string()]);
    // Its source is deleted meanwhile: closed to others, and there for this copy until it is complete.
    run(async { repository(&rig, "pool/snapshots").await.delete(source).await.expect("marked") });
    let copied = resume(&rig.pool, id).expect("taken up again");
    assert_eq!(copied.snapshot.state, State::Completed);
    assert!(read(&rig, "pool/snapshots", id).1 == data);
    assert!(record(&rig, source).is_none(), "the source is gone with the last hold on it");
    // Once more changes nothing.
    assert_eq!(resume(&rig.pool, id).expect("complete").transferred_bytes, 0);
}

#[test]
fn a_copy_that_is_given_up_releases_its_source() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let data: Content = (0..40).map(|index| (index, block_of(index as u8))).collect();
    let source = snapshot(&rig, &volume, &data, None);
    let id = interrupted(&rig, &under(source, &new_key(&rig)));
    rig.pool.give_up_copy(id).expect("given up");
    assert_eq!(holders(&rig, source), [""; 0]);
    assert_eq!(record(&rig, id).expect("there").state, State::Error);
    assert_eq!(resume(&rig.pool, id).expect_err("given up").code(), "IncorrectState");
    run(async { repository(&rig, "pool/snapshots").await.delete(id).await.expect("deleted") });
    assert!(read(&rig, "pool/snapshots", source).1 == data);
}

#[test]
fn what_a_killed_copy_still_holds_is_released_by_the_next() {
    let rig = Rig::new();
    let volume = rig.create(&sized(true)).expect("a volume");
    let source = snapshot(&rig, &volume, &content(&[(1, 4)]), None);
    let copied = copy(&rig.pool, &rig.pool, &request(source)).expect("copied").snapshot.snapshot_id;
    // As if killed between the completed record and the release.
    run(async {
        let repository = repository(&rig, "pool/snapshots").await;
        repository.hold(source, &copied.to_string()).await.expect("held");
    });
    copy(&rig.pool, &rig.pool, &request(source)).expect("copied");
    assert_eq!(holders(&rig, source), [""; 0]);
}

#[test]
fn a_copy_is_made_with_the_key_services_of_both_pools() {
    let (paris, berlin) = (Rig::new(), Rig::new());
    let volume = paris.create(&sized(true)).expect("a volume");
    let data = content(&[(3, 8), (4, 9)]);
    let source = snapshot(&paris, &volume, &data, None);
    let copied = copy(&berlin.pool, &paris.pool, &request(source)).expect("copied");
    let (metadata, plain, _) = read(&berlin, "pool/snapshots", copied.snapshot.snapshot_id);
    assert!(plain == data);
    let from = metadata.copied_from.expect("it is a copy");
    assert_eq!(from.snapshot_id, source);
    assert_eq!(
        from.repository.expect("elsewhere").location,
        paris.path("pool/snapshots").display().to_string()
    );
    assert_eq!(
        run(async { repository(&paris, "pool/snapshots").await.holders(source).await }).expect("listed"),
        [""; 0]
    );
}

fn rig_pool(rig: &Rig) -> Pool {
    rig.pool_with(|kms| std::sync::Arc::new(kms))
}
