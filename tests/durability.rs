//! What was flushed is there after a crash of the server, what was never written or was given back reads as zeros,
//! and the store really gets its space back.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use support::{Attachment, Client, MIB, Pool, foreign, noise, run};

/// What one client writes: blocks of its own, a generation at a time, each generation flushed.
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
const CLIENTS: u64 = 4;
/// Flushes that must have been answered before the server is killed.
const FLUSHES: usize = 300;

/// The content of a block in a generation; every sector of it tells.
fn content(client: u64, block: u64, generation: u64) -> Vec<u8> {
    noise(client << 48 | block << 32 | generation, BLOCK)
}

fn place(client: u64, block: u64) -> u64 {
    (client * BLOCKS + block) * BLOCK as u64
}

/// The generation in which each of a client's blocks was last covered by an answered flush, and last sent at all.
struct Written {
    client: u64,
    flushed: Vec<u64>,
    sent: Vec<u64>,
}

/// Writes until the server is gone; says after every answered flush that it was.
fn write_until_killed(socket: &Path, volume: &str, client: u64, answered: &Sender<()>) -> Written {
    let mut connection = Client::connect(socket, volume);
    let blocks = usize::try_from(BLOCKS).expect("a few");
    let mut written = Written { client, flushed: vec![0; blocks], sent: vec![0; blocks] };
    for generation in 1.. {
        // Another third of the blocks each time, so that the last generations differ between them.
        for block in (generation % 3..BLOCKS).step_by(3) {
            let index = usize::try_from(block).expect("a few");
            written.sent[index] = generation;
            if connection.write(place(client, block), &content(client, block, generation)).is_err() {
                return written;
            }
        }
        if connection.flush().is_err() {
            return written;
        }
        written.flushed.clone_from(&written.sent);
        if answered.send(()).is_err() {
            return written;
        }
    }
    unreachable!("the loop ends with the server")
}

/// Every sector of every block is of a generation that was flushed, or sent after that.
#[track_caller]
fn must_hold(written: &Written, connection: &mut Client<impl Read + Write>) {
    for (index, (&flushed, &sent)) in written.flushed.iter().zip(&written.sent).enumerate() {
        let block = u64::try_from(index).expect("a few");
        let bytes = connection.read(place(written.client, block), BLOCK).expect("the block is read");
        for (number, sector) in bytes.chunks_exact(512).enumerate() {
            let of = |generation| match generation {
                0 => vec![0; 512],
                _ => content(written.client, block, generation)[number * 512..][..512].to_vec(),
            };
            let known = (flushed..=sent).any(|generation| sector == of(generation));
            assert!(
                known,
                "client {} block {block}: neither {flushed} (flushed) nor up to {sent}",
                written.client
            );
        }
    }
}

#[test]
fn everything_flushed_is_there_after_kill_9_during_writes() {
    for encryption in ["--encrypted", "--no-encrypted"] {
        let pool = Pool::new();
        let volume = pool.create(&[encryption, "--size", "4MiB"]);
        for crash in 0..3 {
            let attachment = pool.attach(&volume, &[]);
            let socket = attachment.socket().to_owned();
            let (answered, flushes) = channel();
            let writers: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (socket, volume, answered) = (socket.clone(), volume.clone(), answered.clone());
                    std::thread::spawn(move || write_until_killed(&socket, &volume, client, &answered))
                })
                .collect();
            for _ in 0..FLUSHES {
                flushes.recv_timeout(Duration::from_secs(60)).expect("flushes are answered");
            }
            attachment.kill();
            let written: Vec<Written> =
                writers.into_iter().map(|writer| writer.join().expect("a writer ends")).collect();
            assert!(
                written.iter().any(|one| one.flushed.iter().any(|&g| g > 3)),
                "crash {crash} came late enough"
            );

            let attachment = pool.attach(&volume, &[]);
            let mut connection = attachment.client();
            written.iter().for_each(|one| must_hold(one, &mut connection));
            // The next crash begins from a known state: generation 0 is zeros.
            connection.trim(0, 4 << 20).expect("a trim");
            connection.flush().expect("a flush");
            assert!(connection.read(0, 4 << 20).expect("a read").iter().all(|&byte| byte == 0));
            drop(connection);
            attachment.terminate();
        }
    }
}

#[test]
fn a_write_with_fua_is_there_after_kill_9_without_a_flush() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "4MiB"]);
    let attachment = pool.attach(&volume, &[]);
    qemu_io(&attachment, &["write -f -P 0x61 4096 8192", "write -z -f 1M 64k"]);
    attachment.kill();
    let attachment = pool.attach(&volume, &[]);
    qemu_io(&attachment, &["read -P 0x61 4096 8192", "read -P 0 1M 64k"]);
    attachment.terminate();
}

#[track_caller]
fn qemu_io(attachment: &Attachment, commands: &[&str]) {
    let mut command = foreign("qemu-io");
    command.args(["-f", "raw", "-t", "none"]);
    commands.iter().for_each(|one| _ = command.args(["-c", one]));
    let text = run(command.arg(attachment.uri())).ok();
    assert!(!text.contains("failed") && !text.contains("error"), "{text}");
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the data file").blocks() * 512
}

#[test]
fn unwritten_trimmed_and_zeroed_ranges_read_as_zeros_and_leave_holes() {
    for encryption in ["--encrypted", "--no-encrypted"] {
        let pool = Pool::new();
        let volume = pool.create(&[encryption, "--size", "64MiB"]);
        let data = pool.data(&volume);
        let attachment = pool.attach(&volume, &[]);
        let mut client = attachment.client();
        assert!(client.read(0, 1 << 20).expect("a read").iter().all(|&byte| byte == 0), "unwritten");
        assert!(allocated(&data) < MIB, "an empty volume takes no space: {}", allocated(&data));

        client.write(0, &noise(1, 32 << 20)).expect("a write");
        client.flush().expect("a flush");
        let full = allocated(&data);
        assert!((32 * MIB..34 * MIB).contains(&full), "written space is allocated: {full}");

        client.trim(8 << 20, 8 << 20).expect("a trim");
        qemu_io(&attachment, &["write -z -u 16M 8M", "flush"]);
        for at in (8..24).map(|mib| mib << 20) {
            assert!(
                client.read(at, 1 << 20).expect("a read").iter().all(|&byte| byte == 0),
                "{encryption} {at}"
            );
        }
        assert!(
            client.read(0, 8 << 20).expect("a read") == noise(1, 32 << 20)[..8 << 20],
            "the rest is untouched"
        );
        let less = allocated(&data);
        assert!(less <= full - 15 * MIB, "{encryption}: {full} allocated before, {less} after");

        // Ragged edges: what is inside reads as zeros, what is outside stays.
        qemu_io(&attachment, &["write -z -u 1000 100000"]);
        let expected =
            [&noise(1, 32 << 20)[..1000], &[0; 100_000], &noise(1, 32 << 20)[101_000..200_000]].concat();
        assert!(client.read(0, 200_000).expect("a read") == expected, "{encryption}: ragged");
        drop(client);
        attachment.terminate();

        let attachment = pool.attach(&volume, &[]);
        let mut client = attachment.client();
        assert!(client.read(0, 200_000).expect("a read") == expected, "{encryption}: after another attach");
        assert!(client.read(8 << 20, 16 << 20).expect("a read").iter().all(|&byte| byte == 0));
        drop(client);
        attachment.terminate();
    }
}

#[test]
fn a_no_discard_volume_never_shows_the_store_what_is_unused() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--no-discard", "--size", "8MiB"]);
    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    client.write(0, &noise(1, 4 << 20)).expect("a write");
    client.trim(0, 1 << 20).expect("a trim is taken, and ignored");
    assert!(client.read(0, 1 << 20).expect("a read") == noise(1, 4 << 20)[..1 << 20]);
    qemu_io(&attachment, &["write -z -u 1M 1M", "read -P 0 1M 1M", "flush"]);
    drop(client);
    attachment.terminate();
    let stored = std::fs::read(pool.data(&volume)).expect("the data file");
    let zeros = |sectors: &[u8]| {
        sectors.chunks_exact(512).filter(|sector| sector.iter().all(|&byte| byte == 0)).count()
    };
    assert_eq!(zeros(&stored[..4 << 20]), 0, "what was written or zeroed is ciphertext");
    assert_eq!(zeros(&stored[4 << 20..]), (4 << 20) / 512, "what was never written is not there");
}

/// Two plaintext blocks that are equal are not equal in the store: the tweak is the sector's number.
#[test]
fn equal_blocks_are_stored_differently() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    client.write(0, &[0xaa; 65536]).expect("a write");
    drop(client);
    attachment.terminate();
    let stored = std::fs::read(pool.data(&volume)).expect("the data file");
    let mut blocks: Vec<&[u8]> = stored[..65536].chunks_exact(16).collect();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), 65536 / 16, "no block of ciphertext comes twice");
}
