//! What the tests of this crate share: keys, records, an independent cipher, whole-disk reads.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod map;
pub mod op;

use aes::Aes256;
use aes::cipher::KeyInit;
use sealblk_block::{BlockDevice, BlockLane, Buffer, Durability, Lba, SECTOR_BYTES};
use sealblk_keymem::{DATA_KEY_BYTES, DataKey, KeyMemError};
use sealblk_volume::{
    Access, Backing, Encryption, KeyCheck, KeyReference, NullCipher, OpenError, SnapshotId, Volume, VolumeId,
    VolumeRecord, VolumeSize, WrappedDataKey, XtsEncryption,
};
use sealblk_xts::SectorCipher;
use xts_mode::{Xts128, get_tweak_default};

/// Runs `test` where lanes may be opened.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// The plain bytes of test key number `seed`: no byte repeats, the halves differ.
pub fn key_bytes(seed: u8) -> [u8; DATA_KEY_BYTES] {
    std::array::from_fn(|index| (index as u8).wrapping_mul(37).wrapping_add(seed))
}

pub fn key_of(bytes: [u8; DATA_KEY_BYTES]) -> DataKey {
    DataKey::init(|key| {
        key.copy_from_slice(&bytes);
        Ok::<(), KeyMemError>(())
    })
    .expect("locked memory")
}

pub fn key(seed: u8) -> DataKey {
    key_of(key_bytes(seed))
}

pub fn volume_id(last: u8) -> VolumeId {
    VolumeId::from_random([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, last << 4])
}

pub fn plain_record(bytes: u64) -> VolumeRecord {
    VolumeRecord {
        volume_id: volume_id(1),
        size_bytes: VolumeSize::from_bytes(bytes).expect("a size"),
        create_time: "2026-11-23T12:00:00Z".parse().expect("a time"),
        owner_id: None,
        backing: Backing::File {},
        encryption: Encryption::Plain {},
        discard: true,
        name: None,
        snapshot_id: None,
        restoring: None,
    }
}

pub fn encrypted_record(bytes: u64) -> VolumeRecord {
    let arn = "arn:aws:kms:eu-central-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let encryption = XtsEncryption::new(
        KeyReference::try_from(arn.to_owned()).expect("an ARN"),
        WrappedDataKey::from_bytes(b"wrapped by nobody".to_vec()).expect("a wrapped key"),
        volume_id(1),
    );
    VolumeRecord { encryption: Encryption::Aes256Xts(encryption), ..plain_record(bytes) }
}

/// The record of a volume made from a snapshot that is under `key` too.
pub fn restored_record(bytes: u64, key: &DataKey) -> VolumeRecord {
    let record = encrypted_record(bytes);
    let Encryption::Aes256Xts(encryption) = record.encryption else { unreachable!("it is encrypted") };
    let encryption = Encryption::Aes256Xts(encryption.expecting(KeyCheck::of(key).expect("locked memory")));
    VolumeRecord { snapshot_id: Some(SnapshotId::from_random([7; 9])), encryption, ..plain_record(bytes) }
}

/// First attach: seals the record on a device.
pub fn seal<D: BlockDevice>(
    record: &VolumeRecord,
    key: &DataKey,
    device: &D,
) -> Result<VolumeRecord, OpenError> {
    match record.access() {
        Access::Encrypted(volume) => run(volume.seal(key, device)),
        Access::Plain(_) => panic!("not an encrypted volume's record"),
    }
}

pub fn open_encrypted<D: BlockDevice>(
    record: &VolumeRecord,
    key: &DataKey,
    device: D,
) -> Result<Volume<SectorCipher, D>, OpenError> {
    match record.access() {
        Access::Encrypted(volume) => volume.open(key, device),
        Access::Plain(_) => panic!("not an encrypted volume's record"),
    }
}

pub fn open_plain<D: BlockDevice>(
    record: &VolumeRecord,
    device: D,
) -> Result<Volume<NullCipher, D>, OpenError> {
    match record.access() {
        Access::Plain(volume) => volume.open(device),
        Access::Encrypted(_) => panic!("not a plain volume's record"),
    }
}

/// A new encrypted volume on `device`, attached for the first time under `key`.
pub fn encrypted<D: BlockDevice>(device: D, key: &DataKey, discard: bool) -> Volume<SectorCipher, D> {
    let bytes = device.geometry().sectors * SECTOR_BYTES as u64;
    let record = VolumeRecord { discard, ..encrypted_record(bytes) };
    let sealed = seal(&record, key, &device).expect("a blank device is sealed");
    open_encrypted(&sealed, key, device).expect("a sealed volume opens")
}

/// A new unencrypted volume on `device`.
pub fn plain<D: BlockDevice>(device: D, discard: bool) -> Volume<NullCipher, D> {
    let bytes = device.geometry().sectors * SECTOR_BYTES as u64;
    open_plain(&VolumeRecord { discard, ..plain_record(bytes) }, device).expect("a plain volume opens")
}

pub fn buffer(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::new(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer
}

pub async fn read<L: BlockLane>(lane: &L, sector: u64, sectors: usize) -> Vec<u8> {
    // Stale bytes, so that a read that fills nothing is seen.
    let (result, buffer) = lane.read(Lba(sector), buffer(&vec![0xAA; sectors * SECTOR_BYTES])).await;
    result.expect("a read succeeds");
    buffer.to_vec()
}

pub async fn write<L: BlockLane>(lane: &L, sector: u64, bytes: &[u8]) {
    lane.write(Lba(sector), buffer(bytes), Durability::Volatile).await.0.expect("a write succeeds");
}

/// All that a device shows.
pub async fn read_all<D: BlockDevice>(device: &D) -> Vec<u8> {
    let lane = device.open_lane().expect("a lane");
    read(&lane, 0, usize::try_from(device.geometry().sectors).expect("a small device")).await
}

/// Bytes that differ from sector to sector and from seed to seed.
pub fn pattern(seed: u64, sectors: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(sectors * SECTOR_BYTES).collect()
}

/// AES-256-XTS by the `xts-mode` crate, which shares no code with ours: what dm-crypt would see.
pub struct Oracle(Xts128<Aes256>);

impl Oracle {
    pub fn new(key: &[u8; DATA_KEY_BYTES]) -> Self {
        let half = |bytes: &[u8]| Aes256::new_from_slice(bytes).expect("32 bytes");
        Self(Xts128::new(half(&key[..32]), half(&key[32..])))
    }

    pub fn encrypt(&self, first: u64, plaintext: &[u8]) -> Vec<u8> {
        let mut bytes = plaintext.to_vec();
        self.0.encrypt_area(&mut bytes, SECTOR_BYTES, u128::from(first), get_tweak_default);
        bytes
    }

    pub fn decrypt(&self, first: u64, ciphertext: &[u8]) -> Vec<u8> {
        let mut bytes = ciphertext.to_vec();
        self.0.decrypt_area(&mut bytes, SECTOR_BYTES, u128::from(first), get_tweak_default);
        bytes
    }
}
