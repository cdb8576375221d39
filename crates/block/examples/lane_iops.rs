//! How many requests one lane does on a file, without NBD or a cipher around it.
//!
//!     cargo run --release -p sealblk-block --example lane_iops -- DIRECTORY [SECONDS [MIB]]
//!
//! A file in DIRECTORY is filled, then read and written at random places: 4 KiB 32 deep and 128 KiB 16 deep,
//! buffered (writes inline and through the ring) and direct. One line for each, with the longest that a
//! task of the same lane had to wait for its turn: what inline writes may stall.
#![allow(clippy::print_stdout, reason = "a measuring program prints its figures")]

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sealblk_block::{
    BlockDevice, BlockLane, Buffer, Caching, Durability, FileDevice, FileLane, FileOptions, Lba,
};

/// What one line measures.
struct Work {
    name: &'static str,
    writes: bool,
    bytes: usize,
    depth: usize,
}

const WORKS: [Work; 4] = [
    Work { name: "4 KiB random read, 32 deep", writes: false, bytes: 4096, depth: 32 },
    Work { name: "4 KiB random write, 32 deep", writes: true, bytes: 4096, depth: 32 },
    Work { name: "128 KiB random read, 16 deep", writes: false, bytes: 128 << 10, depth: 16 },
    Work { name: "128 KiB random write, 16 deep", writes: true, bytes: 128 << 10, depth: 16 },
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let directory = arguments.first().ok_or("usage: lane_iops DIRECTORY [SECONDS [MIB]]")?;
    let seconds: f64 = arguments.get(1).map_or(Ok(3.0), |text| text.parse())?;
    let mib: u64 = arguments.get(2).map_or(Ok(1024), |text| text.parse())?;
    let path = Path::new(directory).join(format!("lane-iops-{}", std::process::id()));
    let outcome = measure(&path, Duration::from_secs_f64(seconds), mib << 20);
    std::fs::remove_file(&path)?;
    outcome
}

fn measure(path: &Path, time: Duration, size: u64) -> Result<(), Box<dyn std::error::Error>> {
    fill(path, size)?;
    let ways = [(Caching::Buffered, true), (Caching::Buffered, false), (Caching::Direct, true)];
    for (caching, inline_writes) in ways {
        let options = FileOptions { caching: Some(caching), inline_writes, ..FileOptions::default() };
        let device = FileDevice::open(path, &options)?;
        for work in &WORKS {
            if !inline_writes && !work.writes {
                continue;
            }
            let (requests, elapsed, stall) = run(&device, work, time)?;
            let rate = requests as f64 / elapsed.as_secs_f64();
            let way = match (caching, inline_writes) {
                (Caching::Direct, _) => "direct",
                (_, true) => "buffered",
                (_, false) => "buffered, writes by ring",
            };
            let mib = rate * work.bytes as f64 / (1 << 20) as f64;
            println!("{way:24} {:30} {rate:9.0} IOPS {mib:8.0} MiB/s, longest stall {stall:?}", work.name);
        }
    }
    Ok(())
}

fn fill(path: &Path, size: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    let piece = vec![0x5a; 1 << 20];
    for _ in 0..size >> 20 {
        file.write_all(&piece)?;
    }
    file.sync_all()
}

/// Requests done, in which time, and the longest stall.
fn run(
    device: &FileDevice,
    work: &Work,
    time: Duration,
) -> Result<(u64, Duration, Duration), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let lane = Rc::new(device.open_lane()?);
        let places = device.geometry().sectors * 512 / work.bytes as u64;
        let begin = Instant::now();
        let (done, stall) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(Duration::ZERO)));
        let ticker = tokio::task::spawn_local(watch_turns(begin + time, Rc::clone(&stall)));
        let workers: Vec<_> = (0..work.depth as u64)
            .map(|seed| {
                let (lane, done) = (Rc::clone(&lane), Rc::clone(&done));
                let (writes, bytes) = (work.writes, work.bytes);
                tokio::task::spawn_local(async move {
                    worker(&lane, writes, bytes, places, seed, begin + time, &done).await;
                })
            })
            .collect();
        for worker in workers {
            worker.await?;
        }
        let elapsed = begin.elapsed();
        ticker.await?;
        Ok((done.get(), elapsed, stall.get()))
    })
}

/// Asks for a turn every millisecond and notes how late it comes.
async fn watch_turns(end: Instant, stall: Rc<Cell<Duration>>) {
    let period = Duration::from_millis(1);
    while Instant::now() < end {
        let asked = Instant::now();
        tokio::time::sleep(period).await;
        stall.set(stall.get().max(asked.elapsed().saturating_sub(period)));
    }
}

async fn worker(
    lane: &FileLane,
    writes: bool,
    bytes: usize,
    places: u64,
    seed: u64,
    end: Instant,
    done: &Cell<u64>,
) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut buffer = Buffer::new(bytes);
    for round in 0_u64.. {
        if round.is_multiple_of(16) {
            // An inline request never waits: give the others, and the runtime, their turn.
            tokio::task::yield_now().await;
            if Instant::now() >= end {
                return;
            }
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = Lba((random >> 11) % places * (bytes / 512) as u64);
        let outcome;
        (outcome, buffer) = if writes {
            lane.write(at, buffer, Durability::Volatile).await
        } else {
            lane.read(at, buffer).await
        };
        outcome.expect("the store works");
        done.set(done.get() + 1);
    }
}
