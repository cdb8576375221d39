//! Every device does what an array of bytes does, whatever the requests: one model, all back ends.

mod lanes;

use lanes::{buffer_of, file_in, on_a_lane_thread, open, pattern};
use proptest::prelude::*;
use sealblk_block::{
    BlockDevice, BlockError, ByteDevice, ByteExtent, Caching, Durability, FileDevice, MemoryDevice, ZeroMode,
};

const SIZE: u64 = 256 * 1024;

#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, u64, u64, Durability),
    Zero(u64, u64, ZeroMode, Durability),
    Discard(u64, u64),
    Flush,
}

/// Ranges that like edges: of units, pages and the device.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let offset =
        prop_oneof![0..SIZE, (0..SIZE / 4096).prop_map(|n| n * 4096), (0..SIZE / 512).prop_map(|n| n * 512)];
    let len = prop_oneof![0..600_u64, 0..40_000_u64, (0..16_u64).prop_map(|n| n * 4096), Just(SIZE)];
    (offset, len).prop_map(|(offset, len)| (offset, len.min(SIZE - offset)))
}

fn step() -> impl Strategy<Value = Step> {
    let durability = || prop_oneof![4 => Just(Durability::Volatile), 1 => Just(Durability::Durable)];
    let mode = prop_oneof![
        Just(ZeroMode::MayUnmap),
        Just(ZeroMode::KeepAllocated),
        Just(ZeroMode::FastOnly),
        Just(ZeroMode::FastKeepAllocated),
    ];
    prop_oneof![
        3 => range().prop_map(|(at, len)| Step::Read(at, len)),
        4 => (range(), any::<u64>(), durability()).prop_map(|((at, len), seed, d)| Step::Write(at, len, seed, d)),
        2 => (range(), mode, durability()).prop_map(|((at, len), mode, d)| Step::Zero(at, len, mode, d)),
        1 => range().prop_map(|(at, len)| Step::Discard(at, len)),
        1 => Just(Step::Flush),
    ]
}

async fn run<D: BlockDevice>(device: D, steps: &[Step]) {
    let device = ByteDevice::new(device);
    let lane = device.open_lane(4).expect("a lane");
    let unit = u64::from(device.geometry().unit_bytes);
    let mut model = vec![0; SIZE as usize];
    for step in steps {
        match *step {
            Step::Read(at, len) => {
                let (outcome, buffer) = lane.read(at, buffer_of(&pattern(1, len as usize))).await;
                outcome.expect("read");
                assert_eq!(&buffer[..], &model[at as usize..(at + len) as usize], "{step:?}");
            }
            Step::Write(at, len, seed, durability) => {
                let bytes = pattern(seed, len as usize);
                let (outcome, buffer) = lane.write(at, buffer_of(&bytes), durability).await;
                outcome.expect("written");
                assert_eq!(buffer.len() as u64, len);
                model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            }
            Step::Zero(at, len, mode, durability) => match lane.zero(at, len, mode, durability).await {
                Ok(()) => model[at as usize..(at + len) as usize].fill(0),
                Err(BlockError::Unsupported { .. }) => {
                    assert!(matches!(mode, ZeroMode::FastOnly | ZeroMode::FastKeepAllocated));
                }
                Err(error) => panic!("{step:?}: {error}"),
            },
            Step::Discard(at, len) => {
                lane.discard(at, len, Durability::Volatile).await.expect("discarded");
                let (from, to) = (at.next_multiple_of(unit), (at + len) / unit * unit);
                if from < to {
                    // As before or zeros, sector by sector: these stores give zeros or do nothing.
                    let (outcome, now) = lane.read(from, buffer_of(&vec![1; (to - from) as usize])).await;
                    outcome.expect("read");
                    for (now, before) in
                        now.chunks(512).zip(model[from as usize..to as usize].chunks_mut(512))
                    {
                        assert!(now == before || now.iter().all(|&byte| byte == 0), "{step:?}");
                        before.copy_from_slice(now);
                    }
                }
            }
            Step::Flush => lane.flush().await.expect("flushed"),
        }
    }
    let (outcome, all) = lane.read(0, buffer_of(&vec![1; SIZE as usize])).await;
    outcome.expect("read");
    assert!(all[..] == model[..], "the devices differ at the end");
    check_extents(&lane, &model).await;
}

/// Extents cover what was asked, and what they call zero is zero.
async fn check_extents<L: sealblk_block::BlockLane>(lane: &sealblk_block::ByteLane<L>, model: &[u8]) {
    for (from, to) in [(0, SIZE), (1, SIZE), (513, 70_001), (4096, 4097), (SIZE - 1, SIZE)] {
        let mut at = from;
        while at < to {
            let mut extents: Vec<ByteExtent> = Vec::with_capacity(3);
            lane.extents(at, to - at, &mut extents).await.expect("extents");
            assert!(!extents.is_empty() && extents.len() <= 3);
            for extent in extents {
                assert!(extent.bytes > 0 && extent.bytes <= to - at);
                if extent.allocation.zero {
                    assert!(model[at as usize..(at + extent.bytes) as usize].iter().all(|&byte| byte == 0));
                }
                at += extent.bytes;
            }
        }
    }
}

fn file_device(directory: &std::path::Path, caching: Caching) -> (FileDevice, tempfile::NamedTempFile) {
    let file = file_in(directory, SIZE);
    (open(file.path(), caching), file)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_agrees_with_the_model(steps in prop::collection::vec(step(), 1..40), shift in 0..4_u32) {
        let device = MemoryDevice::new(SIZE / 512).with_unit(512 << (shift * 2));
        on_a_lane_thread(async || run(device, &steps).await);
    }

    #[test]
    fn files_agree_with_the_model(steps in prop::collection::vec(step(), 1..40)) {
        for directory in [std::env::temp_dir(), "/dev/shm".into()] {
            for caching in [Caching::Buffered, Caching::Direct] {
                if tempfile::tempfile_in(&directory).is_err() {
                    continue;
                }
                let (device, _file) = file_device(&directory, caching);
                on_a_lane_thread(async || run(device, &steps).await);
            }
        }
    }
}
