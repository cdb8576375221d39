//! A key that is taken from an open volume and given back (r19's extension): nothing fails in a freeze, nothing is lost
//! or wrong after it, and no other key is taken.

mod rig;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Durability, Extent, Lba, MemoryDevice, SectorRange, ZeroMode,
};
use sealblk_volume::{Access, KeyHold, OpenError, SealError, Volume, VolumeRecord};
use sealblk_xts::SectorCipher;

const SECTORS: u64 = 2048;
const FEW: SectorRange = SectorRange { start: Lba(8), count: 8 };

fn revocable(discard: bool) -> (Volume<SectorCipher, MemoryDevice>, KeyHold) {
    let device = MemoryDevice::new(SECTORS);
    let record = VolumeRecord { discard, ..rig::encrypted_record(SECTORS * 512) };
    let sealed = rig::seal(&record, &rig::key(1), &device).expect("a blank device is sealed");
    match sealed.access() {
        Access::Encrypted(volume) => volume.open_revocable(&rig::key(1), device).expect("it opens"),
        Access::Plain(_) => panic!("an encrypted volume"),
    }
}

/// Whether a request waits.
fn waits<T>(request: impl Future<Output = T>) -> bool {
    matches!(pin!(request).poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

#[test]
fn r19_requests_wait_in_a_freeze_and_go_on_after_it() {
    let (volume, hold) = revocable(true);
    let (old, new) = (rig::pattern(1, 16), rig::pattern(2, 16));
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        rig::write(&lane, 0, &old).await;
        hold.freeze();
        assert!(hold.is_frozen());
        let thaw = async {
            tokio::task::yield_now().await;
            hold.restore(&rig::key(1)).expect("the same key");
        };
        let (seen, (), ()) = tokio::join!(rig::read(&lane, 0, 16), rig::write(&lane, 64, &new), thaw);
        assert_eq!(seen, old);
        assert_eq!(rig::read(&lane, 64, 16).await, new);
        let later = volume.open_lane().expect("lane");
        assert_eq!(rig::read(&later, 0, 16).await, old);
    });
    // Under the same key as ever.
    let stored = rig::run(rig::read_all(volume.device()));
    assert_eq!(rig::Oracle::new(&rig::key_bytes(1)).decrypt(64, &stored[64 * 512..80 * 512]), new);
}

#[test]
fn r19_every_request_but_a_flush_waits_in_a_freeze() {
    for discard in [true, false] {
        let (volume, hold) = revocable(discard);
        rig::run(async {
            let lane = volume.open_lane().expect("lane");
            hold.freeze();
            let late = volume.open_lane().expect("a lane in a freeze");
            for lane in [&lane, &late] {
                let mut extents: Vec<Extent> = Vec::with_capacity(4);
                assert!(waits(lane.read(Lba(0), rig::buffer(&[0; 512]))));
                assert!(waits(lane.write(Lba(0), rig::buffer(&[0; 512]), Durability::Volatile)));
                assert!(waits(lane.zero(FEW, ZeroMode::MayUnmap, Durability::Volatile)));
                assert!(waits(lane.discard(FEW, Durability::Volatile)));
                assert!(waits(lane.extents(FEW, &mut extents)));
                lane.flush().await.expect("what was acknowledged becomes durable");
            }
        });
    }
}

#[test]
fn r19_waiting_and_later_requests_fail_once_the_key_is_gone() {
    let (volume, hold) = revocable(true);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        let before = rig::read_all(volume.device()).await;
        hold.freeze();
        let give_up = async {
            tokio::task::yield_now().await;
            hold.fail();
        };
        let write = lane.write(Lba(0), rig::buffer(&[7; 512]), Durability::Volatile);
        let ((written, _), ()) = tokio::join!(write, give_up);
        assert!(matches!(written, Err(BlockError::Io { .. })), "{written:?}");
        let read = lane.read(Lba(0), rig::buffer(&[0; 512])).await.0;
        assert!(matches!(read, Err(BlockError::Io { .. })), "{read:?}");
        lane.flush().await.expect("a flush needs no key");
        hold.restore(&rig::key(1)).expect("the right key, too late");
        assert!(lane.read(Lba(0), rig::buffer(&[0; 512])).await.0.is_err(), "gone is gone");
        assert_eq!(rig::read_all(volume.device()).await, before, "nothing was stored");
    });
}

#[test]
fn r19_a_freeze_ends_with_the_volume_s_own_key_only() {
    let (volume, hold) = revocable(true);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        hold.freeze();
        let refused = hold.restore(&rig::key(2)).expect_err("another key");
        assert!(matches!(refused, OpenError::Seal(SealError::WrongKey)), "{refused}");
        assert!(hold.is_frozen() && waits(lane.read(Lba(0), rig::buffer(&[0; 512]))));
        hold.restore(&rig::key(1)).expect("its own");
        assert_eq!(rig::read(&lane, 0, 1).await, vec![0; 512]);
    });
}
