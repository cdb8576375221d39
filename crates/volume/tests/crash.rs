//! The plug is pulled at any moment: what was flushed is there, and every sector is one that somebody wrote.
//! A failing case is printed with the seed that decides which sectors survive.

mod rig;

use proptest::prelude::*;
use rig::op::{Op, SECTORS, apply, op};
use sealblk_block::BlockDevice;
use sealblk_testkit::crash_device::Plug;
use sealblk_testkit::{CrashDevice, Model};
use sealblk_volume::{Cipher, Materialized, Volume, VolumeRecord};

fn plug() -> impl Strategy<Value = Plug> {
    prop_oneof![
        (1_u64..40).prop_map(Plug::AtChange),
        (1_u64..6).prop_map(Plug::AtFlush),
        (1_u64..6).prop_map(Plug::AfterFlush),
    ]
}

/// Runs `ops` until the power is gone, or all are done.
async fn until_the_crash<C: Cipher>(volume: &Volume<C, CrashDevice>, model: &mut Model, ops: &[Op]) {
    let lane = volume.open_lane().expect("lane");
    for op in ops {
        if let Err(error) = apply(&lane, model, op).await {
            assert!(volume.device().is_off(), "{op:?} failed without a crash: {error}");
            break;
        }
    }
}

/// Runs `ops` in two lives of one machine; `open` opens the volume on what survived.
fn two_lives<C: Cipher>(
    first: CrashDevice,
    plugs: (Plug, Plug),
    ops: &(Vec<Op>, Vec<Op>),
    open: impl Fn(CrashDevice) -> Volume<C, CrashDevice>,
) {
    let mut model = Model::new(usize::try_from(SECTORS * 512).expect("small"));
    let mut device = first.restart(plugs.0);
    for (ops, next) in [(&ops.0, plugs.1), (&ops.1, Plug::Stays)] {
        rig::run(until_the_crash(&open(device.clone()), &mut model, ops));
        device = device.restart(next);
        // Looking is no change, and pulls no plug.
        let survived = rig::run(rig::read_all(&open(device.clone())));
        model.recover(&survived).expect("everything flushed is there");
    }
}

fn ops() -> impl Strategy<Value = (Vec<Op>, Vec<Op>)> {
    (prop::collection::vec(op(1), 1..40), prop::collection::vec(op(1), 1..40))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn everything_flushed_survives_on_an_encrypted_volume(
        ops in ops(), plugs in (plug(), plug()), seed in any::<u64>(), discard in any::<bool>(),
    ) {
        let blank = CrashDevice::new(SECTORS, seed, Plug::Stays);
        let record = VolumeRecord { discard, ..rig::encrypted_record(SECTORS * 512) };
        let sealed = rig::seal(&record, &rig::key(1), &blank).expect("blank");
        two_lives(blank, plugs, &ops, |device| {
            rig::open_encrypted(&sealed, &rig::key(1), device).expect("opens after a crash")
        });
    }

    #[test]
    fn everything_flushed_survives_on_a_plain_volume(
        ops in ops(), plugs in (plug(), plug()), seed in any::<u64>(),
    ) {
        let blank = CrashDevice::new(SECTORS, seed, Plug::Stays);
        two_lives(blank, plugs, &ops, |device| rig::plain(device, true));
    }

    #[test]
    fn a_crash_during_materialize_changes_nothing_that_is_read_and_the_next_run_finishes(
        writes in prop::collection::vec((0..SECTORS, 1_usize..20, any::<u64>()), 1..40),
        change in 1_u64..20,
        seed in any::<u64>(),
    ) {
        let blank = CrashDevice::new(SECTORS, seed, Plug::Stays);
        let sealed = rig::seal(&rig::encrypted_record(SECTORS * 512), &rig::key(1), &blank).expect("blank");
        let open = |device| rig::open_encrypted(&sealed, &rig::key(1), device).expect("opens");
        let volume = open(blank.clone());
        rig::run(async {
            let lane = volume.open_lane().expect("lane");
            for (at, count, seed) in writes {
                let count = count.min(usize::try_from(SECTORS - at).expect("small"));
                rig::write(&lane, at, &rig::pattern(seed, count)).await;
            }
            sealblk_block::BlockLane::flush(&lane).await.expect("flush");
        });
        let before = rig::run(rig::read_all(&volume));

        let device = blank.restart(Plug::AtChange(change));
        let crashed = rig::run(open(device.clone()).materialize(|_| ()));
        prop_assert_eq!(crashed.is_err(), device.is_off());

        let device = device.restart(Plug::Stays);
        let volume = open(device.clone());
        prop_assert_eq!(&rig::run(rig::read_all(&volume)), &before);
        let done = rig::run(volume.materialize(|_| ())).expect("finishes");
        prop_assert_ne!(done, Materialized::NotEncrypted);
        let survived = device.restart(Plug::Stays).durable_bytes();
        prop_assert_eq!(rig::Oracle::new(&rig::key_bytes(1)).decrypt(0, &survived), before);
    }
}
