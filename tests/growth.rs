//! Volumes that grow under the hands of clients and of those who kill: `volume modify --size` through the binary.

mod support;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::hanging::{HeldRecords, has_spool, spool, wait_until};
use support::snapshots::{BLOCK, snapshot_bytes};
use support::{Attachment, Client, LoopDevice, MIB, Nbdkit, Pool, foreign, noise, run, wait_within};

const OLD: u64 = 4 * MIB;
/// So much that the block map needs more room, too.
const NEW: u64 = 65536 * MIB;
/// What one write carries.
const PIECE: u64 = 64 << 10;

/// A point in the course of a growth that can be seen from outside.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Begun,
    /// The data file has the new length.
    Room,
    /// The block map's file has.
    MapRoom,
    /// The record says the new size.
    Recorded,
}

/// Whether a growth has come to `moment`.
fn has_come(pool: &Pool, volume: &str, moment: Moment, map_before: u64) -> bool {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    let directory = pool.volume_dir(volume);
    match moment {
        Moment::Begun => true,
        Moment::Room => length(&pool.data(volume)) >= NEW,
        Moment::MapRoom => length(&directory.join("map")) > map_before,
        Moment::Recorded => {
            let record = std::fs::read(directory.join("volume.json")).expect("the record");
            let record: Value = serde_json::from_slice(&record).expect("whole at every moment");
            record.to_string().contains(&NEW.to_string())
        }
    }
}

/// Writes and flushes one piece after the other, round and round, until the server is gone; how many were flushed.
fn write_until_killed(mut client: Client<UnixStream>) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        for number in 0.. {
            let written =
                client.write(place(number), &noise(number, PIECE as usize)).and_then(|()| client.flush());
            if written.is_err() {
                return number;
            }
        }
        unreachable!("the loop ends with the server")
    })
}

fn place(number: u64) -> u64 {
    number * PIECE % OLD
}

/// Every piece is there in the last state that was flushed, or the one after it.
#[track_caller]
fn must_hold(client: &mut Client<UnixStream>, flushed: u64) {
    let pieces = OLD / PIECE;
    for number in flushed.saturating_sub(pieces)..flushed {
        let found = client.read(place(number), PIECE as usize).expect("a read");
        // The one that was on its way overwrites the oldest, sector by sector.
        let overwritten = place(number) == place(flushed);
        let (old, new) = (noise(number, PIECE as usize), noise(flushed, PIECE as usize));
        let same = found.chunks(512).zip(old.chunks(512).zip(new.chunks(512)));
        let holds =
            same.fold(true, |all, (found, (old, new))| all && (found == old || overwritten && found == new));
        assert!(holds, "piece {number} of {flushed} flushed");
    }
}

fn modify(pool: &Pool, volume: &str) -> Child {
    let mut command = pool.command(&["--quiet", "volume", "modify", volume, "--size", &NEW.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
}

#[test]
fn killed_in_the_middle_of_a_growth_the_volume_has_the_old_size_or_the_new_one_and_all_that_was_flushed() {
    for encryption in ["--encrypted", "--no-encrypted"] {
        for moment in [Moment::Begun, Moment::Room, Moment::MapRoom, Moment::Recorded] {
            let pool = Pool::new();
            let volume = pool.create(&[encryption, "--size", &OLD.to_string()]);
            let attachment = pool.attach(&volume, &[]);
            let map_before = std::fs::metadata(pool.volume_dir(&volume).join("map")).expect("a map").len();
            let writer = write_until_killed(attachment.client());
            let mut growth = modify(&pool, &volume);
            let deadline = Instant::now() + Duration::from_secs(60);
            while !has_come(&pool, &volume, moment, map_before) {
                assert!(Instant::now() < deadline, "{moment:?} never came");
            }
            attachment.kill();
            let flushed = writer.join().expect("the writer ends with the server");
            // It finds nobody at the volume then, and may grow it itself.
            wait_within(&mut growth, Duration::from_secs(60)).expect("modify ends");

            let attachment = pool.attach(&volume, &[]);
            let mut client = attachment.client();
            let size = client.size();
            assert!(size == OLD || size == NEW, "{encryption} {moment:?}: {size}");
            must_hold(&mut client, flushed);
            if size == NEW {
                grown_part_works(&mut client).expect("the grown part is served");
            }
            drop(client);
            pool.run(&["volume", "modify", &volume, "--size", &NEW.to_string()]).ok();
            let mut client = attachment.client();
            assert_eq!(client.size(), NEW);
            must_hold(&mut client, flushed);
            grown_part_works(&mut client).expect("the grown part is served");
            drop(client);
            attachment.terminate();
        }
    }
}

/// Zeros at both ends of what is new, or what was written there.
fn grown_part_works(client: &mut Client<UnixStream>) -> io::Result<()> {
    for at in [OLD, NEW - PIECE] {
        let found = client.read(at, PIECE as usize)?;
        assert!(found.iter().all(|&byte| byte == 0) || found == noise(at, PIECE as usize), "at {at}");
        client.write(at, &noise(at, PIECE as usize))?;
        assert!(client.read(at, PIECE as usize)? == noise(at, PIECE as usize));
    }
    client.flush()
}

fn shown_size(attachment: &Attachment) -> (String, u64) {
    let nbdinfo = run(foreign("nbdinfo").args(["--size", attachment.uri()])).ok();
    let qemu = run(foreign("qemu-img").args(["info", "--output=json", attachment.uri()])).ok();
    let qemu: Value = serde_json::from_str(&qemu).expect("JSON");
    (nbdinfo.trim().to_owned(), qemu["virtual-size"].as_u64().expect("a size"))
}

#[test]
fn libnbd_and_qemu_see_the_new_size_when_they_connect_again_and_copy_all_of_it() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "4MiB", "--name", "growing"]);
    let attachment = pool.attach(&volume, &[]);
    let mut old = attachment.client();
    old.write(0, &noise(1, 4 << 20)).expect("a write");
    assert_eq!(shown_size(&attachment), ((4 << 20).to_string(), 4 << 20));
    let grown = pool.json(&["volume", "modify", &volume, "--size", "6MiB"]);
    assert_eq!(grown["SizeBytes"].as_u64(), Some(6 << 20), "{grown}");
    assert_eq!(shown_size(&attachment), ((6 << 20).to_string(), 6 << 20));
    attachment.client().write(5 << 20, &noise(2, 1 << 20)).expect("a write to what is new");
    old.read(5 << 20, 512).expect_err("the connection that was open keeps its size");

    let copy = pool.root().join("copy");
    let uri = attachment.uri().replace(&volume, "growing");
    run(foreign("nbdcopy").arg(&uri).arg(&copy)).ok();
    let expected = [noise(1, 4 << 20), vec![0; 1 << 20], noise(2, 1 << 20)].concat();
    assert!(std::fs::read(&copy).expect("the copy") == expected);
    drop(old);
    attachment.terminate();
}

#[test]
fn a_backing_that_cannot_grow_is_named_with_both_sizes_and_nothing_is_changed() {
    let pool = Pool::new();
    let socket = pool.root().join("nbdkit.sock");
    let nbdkit = Nbdkit::start(&socket, &pool.root().join("nbdkit.pid"), &["memory".as_ref(), "2M".as_ref()]);
    let export = format!("nbd+unix:///?socket={}", socket.display());
    let volume = pool.create(&["--encrypted", "--size", "1MiB", "--backing", &export]);
    let modify = |size: &str| pool.run(&["volume", "modify", &volume, "--size", size]);
    for attached in [false, true] {
        let attachment = attached.then(|| pool.attach(&volume, &[]));
        let refused = modify("3MiB").refused(support::exit::USAGE);
        for part in ["nbdkit.sock", "2097152 bytes", "3145728"] {
            assert!(refused.contains(part), "{refused}");
        }
        assert_eq!(pool.describe(&volume)["SizeBytes"].as_u64(), Some(MIB));
        if let Some(attachment) = attachment {
            modify("2MiB").ok();
            let mut client = attachment.client();
            assert_eq!(client.size(), 2 * MIB);
            client.write(2 * MIB - 512, &[7; 512]).expect("a write to the end");
            drop(client);
            attachment.terminate();
        }
    }
    drop(nbdkit);
}

/// What a refused growth must leave as it was: the record, the map's length, and what a client is told.
fn state(pool: &Pool, volume: &str) -> (Vec<u8>, u64) {
    let directory = pool.volume_dir(volume);
    let record = std::fs::read(directory.join("volume.json")).expect("the record");
    (record, std::fs::metadata(directory.join("map")).map_or(0, |map| map.len()))
}

#[test]
fn a_block_device_that_is_too_small_or_holds_something_is_refused_and_one_that_has_grown_is_used() {
    for attached in [false, true] {
        let pool = Pool::new();
        let file = pool.root().join("disk");
        std::fs::write(&file, vec![0; 6 << 20]).expect("a disk");
        let disk = LoopDevice::over(&file);
        let volume = pool.create(&["--encrypted", "--size", "4MiB", "--backing", disk.path()]);
        let attachment = pool.attach(&volume, &[]);
        attachment.client().write(0, &noise(1, 1 << 20)).expect("a write");
        let attachment = if attached {
            Some(attachment)
        } else {
            attachment.terminate();
            None
        };
        let (before, stored) = (state(&pool, &volume), std::fs::read(&file).expect("the disk"));
        let modify = |size: &str| pool.run(&["volume", "modify", &volume, "--size", size]);
        let unchanged = |stored: &[u8]| {
            assert!(state(&pool, &volume) == before, "the record and the map are as they were");
            assert!(std::fs::read(&file).expect("the disk") == stored, "so is the device");
            assert_eq!(pool.describe(&volume)["SizeBytes"].as_u64(), Some(4 * MIB));
            if let Some(attachment) = &attachment {
                assert_eq!(attachment.client().size(), 4 * MIB);
            }
        };

        let refused = modify("8MiB").refused(support::exit::USAGE);
        for part in [disk.path(), "6291456 bytes", "8388608"] {
            assert!(refused.contains(part), "{refused}");
        }
        unchanged(&stored);

        // The device grows, under the volume; what is in the new part is somebody's.
        let longer = [&stored[..], &[0; 1 << 20], &[7; 512], &[0; (1 << 20) - 512]].concat();
        std::fs::write(&file, &longer).expect("a longer disk");
        disk.look_again();
        let refused = modify("8MiB").refused(support::exit::WRONG_STATE);
        assert!(refused.contains(disk.path()) && refused.contains("byte 7340032"), "{refused}");
        unchanged(&longer);

        modify("7MiB").ok();
        let attachment = attachment.unwrap_or_else(|| pool.attach(&volume, &[]));
        let mut client = attachment.client();
        assert_eq!(client.size(), 7 * MIB);
        assert!(client.read(0, 1 << 20).expect("a read") == noise(1, 1 << 20));
        assert!(client.read(MIB, 6 << 20).expect("a read").iter().all(|&byte| byte == 0));
        client.write(7 * MIB - 4096, &[1; 4096]).expect("a write to the end");
        client.flush().expect("a flush");
        drop(client);
        attachment.terminate();
    }
}

/// A `snapshot create` that has frozen the volume, and gets no further until what is returned with it is dropped.
fn held_in_the_middle(pool: &Pool, volume: &str, attachment: Option<&Attachment>) -> (Child, HeldRecords) {
    let held = HeldRecords::of(pool);
    let mut command = pool.command(&["--quiet", "snapshot", "create", volume]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary starts");
    wait_until("the volume is frozen", || match attachment {
        Some(attachment) => spool(attachment).is_some(),
        None => has_spool(pool, volume),
    });
    (child, held)
}

/// How it ends; the snapshot.
#[track_caller]
fn finished(mut child: Child) -> String {
    let status = wait_within(&mut child, Duration::from_secs(120)).expect("it ends");
    assert!(status.success(), "{status}");
    let mut out = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    out.trim().to_owned()
}

/// Blocks of a volume that is caught in the middle of its snapshot.
const BLOCKS: u64 = 160;

fn fill(attachment: &Attachment) {
    let mut client = attachment.client();
    for block in 0..BLOCKS {
        client.write(block * BLOCK as u64, &noise(block, BLOCK)).expect("a write");
    }
    client.flush().expect("a flush");
}

#[test]
fn while_a_snapshot_is_made_a_volume_does_not_grow_and_afterwards_it_does() {
    for attached in [true, false] {
        let pool = Pool::new();
        let volume = pool.create(&["--encrypted", "--size", "96MiB"]);
        pool.run(&["snapshot", "create", &volume]).ok();
        let attachment = pool.attach(&volume, &[]);
        fill(&attachment);
        let attachment = if attached {
            Some(attachment)
        } else {
            attachment.terminate();
            None
        };
        let (child, held) = held_in_the_middle(&pool, &volume, attachment.as_ref());
        let (before, stored) = (state(&pool, &volume), std::fs::read(pool.data(&volume)).expect("the data"));
        let modify = || pool.run(&["--output", "json", "volume", "modify", &volume, "--size", "128MiB"]);
        let refused = modify().refused(support::exit::WRONG_STATE);
        let code = if attached { "IncorrectState" } else { "VolumeInUse" };
        assert!(refused.contains(code), "{refused}");
        assert!(state(&pool, &volume) == before, "nothing has changed");
        if let Some(attachment) = &attachment {
            let mut client = attachment.client();
            assert_eq!(client.size(), 96 * MIB);
            client.write(0, &noise(999, BLOCK)).expect("writes go on");
            client.flush().expect("a flush");
        }
        drop(held);
        let snapshot = finished(child);
        assert!(snapshot_bytes(&pool, &snapshot) == stored, "it is of the instant when it began");

        modify().ok();
        let attachment = attachment.unwrap_or_else(|| pool.attach(&volume, &[]));
        let mut client = attachment.client();
        assert_eq!(client.size(), 128 * MIB);
        client.write(128 * MIB - BLOCK as u64, &noise(7, BLOCK)).expect("a write to what is new");
        drop(client);
        let snapshot = pool.run(&["snapshot", "create", &volume]).ok();
        attachment.terminate();
        let stored = std::fs::read(pool.data(&volume)).expect("the data");
        assert_eq!(stored.len() as u64, 128 * MIB);
        assert!(snapshot_bytes(&pool, snapshot.trim()) == stored, "the next one is of the new size");
    }
}
