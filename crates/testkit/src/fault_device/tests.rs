//! Faults happen when told and not otherwise; and what the byte layer makes of them.

use std::io::ErrorKind;
use std::sync::Arc;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, ByteDevice, Durability, Lba, MemoryDevice, Operation,
    ZeroMode,
};
use tokio::sync::Semaphore;

use super::{Effect, Fault, FaultDevice};

fn on_a_lane_thread<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, body)
}

fn bytes(value: u8, len: usize) -> Buffer {
    let mut buffer = Buffer::new(len);
    buffer.fill(value);
    buffer
}

fn device(operation: Operation, nth: Option<u64>, effect: Effect) -> FaultDevice<MemoryDevice> {
    let device = FaultDevice::new(MemoryDevice::new(64));
    device.add(Fault { operation, nth, effect });
    device
}

#[test]
fn only_the_nth_operation_fails() {
    on_a_lane_thread(async {
        let device = device(Operation::Write, Some(2), Effect::NoSpace);
        let lane = device.open_lane().expect("a lane");
        lane.write(Lba(0), bytes(1, 512), Durability::Volatile).await.0.expect("the first");
        let full = lane.write(Lba(0), bytes(2, 512), Durability::Volatile).await.0;
        assert!(matches!(full, Err(BlockError::NoSpace { operation: Operation::Write, at: Lba(0) })));
        lane.write(Lba(1), bytes(3, 512), Durability::Volatile).await.0.expect("the third");
        assert_eq!(lane.read(Lba(0), bytes(0, 512)).await.1[0], 1);
        assert_eq!(device.count(Operation::Write), 3);
    });
}

#[test]
fn a_shortened_write_does_half_and_says_so() {
    on_a_lane_thread(async {
        let device = device(Operation::Write, None, Effect::Shorten);
        let lane = device.open_lane().expect("a lane");
        let (outcome, buffer) = lane.write(Lba(0), bytes(9, 2048), Durability::Volatile).await;
        assert!(
            matches!(outcome, Err(BlockError::Io { source, .. }) if source.kind() == ErrorKind::WriteZero)
        );
        assert_eq!(buffer.len(), 2048);
        let (_, found) = lane.read(Lba(0), bytes(1, 2048)).await;
        assert_eq!((found[1023], found[1024]), (9, 0));
    });
}

#[test]
fn a_failed_flush_is_latched_and_reads_go_on() {
    on_a_lane_thread(async {
        let device = device(Operation::Flush, Some(1), Effect::Fail(ErrorKind::Other));
        let lane = device.open_lane().expect("a lane");
        assert!(matches!(lane.flush().await, Err(BlockError::Io { .. })));
        device.heal();
        assert!(matches!(lane.flush().await, Err(BlockError::Latched { .. })));
        let refused = lane.write(Lba(0), bytes(1, 512), Durability::Volatile).await.0;
        assert!(matches!(refused, Err(BlockError::Latched { .. })));
        lane.read(Lba(0), bytes(1, 512)).await.0.expect("read");
    });
}

/// A read-modify-write whose caller goes away while it waits for the store still ends, and keeps its range
/// until then: otherwise its old bytes would come over the neighbour's newer ones.
#[test]
fn a_given_up_read_modify_write_does_not_undo_a_later_write_next_to_it() {
    on_a_lane_thread(async {
        let gate = Arc::new(Semaphore::new(0));
        let device = device(Operation::Write, Some(1), Effect::WaitFor(Arc::clone(&gate)));
        let device = ByteDevice::new(device);
        let lane = device.open_lane(4).expect("a lane");
        {
            let given_up = lane.write(0, bytes(1, 10), Durability::Volatile);
            let mut given_up = std::pin::pin!(given_up);
            // Until its write has reached the device and waits there.
            while device.device().count(Operation::Write) == 0 {
                tokio::select! {
                    biased;
                    _ = &mut given_up => panic!("it cannot have finished"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        let mut whole = std::pin::pin!(lane.write(0, bytes(2, 512), Durability::Volatile));
        tokio::select! {
            biased;
            _ = &mut whole => panic!("the range is still held"),
            () = tokio::task::yield_now() => {}
        }
        gate.add_permits(1);
        whole.await.0.expect("written");
        let (_, found) = lane.read(0, bytes(0, 512)).await;
        assert!(found.iter().all(|&byte| byte == 2));
    });
}

#[test]
fn an_error_at_an_edge_leaves_the_neighbours_alone() {
    on_a_lane_thread(async {
        let device = FaultDevice::new(MemoryDevice::new(64));
        let device = ByteDevice::new(device);
        let lane = device.open_lane(4).expect("a lane");
        lane.write(0, bytes(5, 4096), Durability::Volatile).await.0.expect("written");
        device.device().add(Fault {
            operation: Operation::Read,
            nth: Some(2),
            effect: Effect::Fail(ErrorKind::Other),
        });
        let (outcome, buffer) = lane.write(100, bytes(6, 1000), Durability::Volatile).await;
        assert!(matches!(outcome, Err(BlockError::Io { operation: Operation::Read, .. })));
        assert_eq!(buffer.len(), 1000);
        let (_, found) = lane.read(0, bytes(0, 4096)).await;
        assert!(found.iter().all(|&byte| byte == 5));
        // The lock was released: the same again succeeds.
        lane.write(100, bytes(6, 1000), Durability::Volatile).await.0.expect("written");
        lane.zero(50, 2000, ZeroMode::MayUnmap, Durability::Volatile).await.expect("zeroed");
        let (_, found) = lane.read(0, bytes(1, 4096)).await;
        assert!(
            found[..50].iter().all(|&b| b == 5)
                && found[50..2050].iter().all(|&b| b == 0)
                && found[2050] == 5
        );
    });
}
