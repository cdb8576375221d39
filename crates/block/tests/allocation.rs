//! A request costs no allocation (design §1): counted, on every way that a request can take.

mod lanes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use lanes::{on_a_lane_thread, on_each_store};
use sealblk_block::{BlockLane, Buffer, ByteDevice, ByteLane, Durability, ZeroMode};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of the heap (the
// cell is const-initialised and has no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: `pointer` came from `alloc` above, hence from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIZE: u64 = 1 << 20;

/// One of each aligned request, four at a time so that the ring has something to batch.
async fn requests<L: BlockLane>(lane: &ByteLane<L>, buffers: [Buffer; 4], round: u64) -> [Buffer; 4] {
    let place = |n: u64| (round * 4 + n) * 4096 % SIZE;
    let [a, b, c, d] = buffers;
    let durable = if round.is_multiple_of(64) { Durability::Durable } else { Durability::Volatile };
    let (a, b, c, d) = tokio::join!(
        lane.read(place(0), a),
        lane.write(place(1), b, durable),
        lane.read(place(2), c),
        lane.write(place(3), d, Durability::Volatile),
    );
    if round.is_multiple_of(64) {
        lane.zero(place(1), 4096, ZeroMode::MayUnmap, Durability::Volatile).await.expect("zeroed");
        lane.discard(place(2), 4096, Durability::Volatile).await.expect("discarded");
        lane.flush().await.expect("flushed");
    }
    [a, b, c, d].map(|(outcome, buffer)| {
        outcome.expect("done");
        buffer
    })
}

#[test]
fn a_request_costs_no_allocation() {
    on_each_store(SIZE, |device, _| {
        on_a_lane_thread(async || {
            let device = ByteDevice::new(device);
            let lane = device.open_lane(8).expect("a lane");
            let mut buffers = [(); 4].map(|()| Buffer::new(4096));
            for round in 0..200 {
                buffers = requests(&lane, buffers, round).await;
            }
            let before = ALLOCATIONS.with(Cell::get);
            for round in 0..2000 {
                buffers = requests(&lane, buffers, round).await;
            }
            assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
        });
    });
}
