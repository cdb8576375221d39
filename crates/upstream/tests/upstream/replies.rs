//! Servers whose replies break the rules, come in no order, or tell of errors.

use std::error::Error as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockError, BlockLane, Buffer, Durability, Lba, SectorRange, ZeroMode};
use sealblk_upstream::{UpstreamDevice, UpstreamOptions};

use crate::fake::{Client, FLAGS, FLUSH, Fake, READ, Seen, WRITE, hasty};
use crate::rig::{filled, run, uri, write};

#[test]
fn a_reply_that_breaks_a_rule_ends_the_connection_and_is_named() {
    type Script = fn(&mut Client, Seen) -> std::io::Result<()>;
    let cases: &[(bool, Script, &str)] = &[
        (false, |client, _| client.send(&[&[9; 64]]), "wrong magic"),
        (false, |client, read| client.simple(read.cookie ^ 1, 0, &[0; 1024]), "was not made"),
        (false, |client, read| client.chunk(read.cookie, 0, true, &[]), "not agreed on"),
        (true, |client, read| client.simple(read.cookie, 0, &[0; 1024]), "simple reply"),
        (true, |client, read| client.chunk(read.cookie, 0, true, &[]), "only in part"),
        (true, |client, read| client.chunk(read.cookie, 0, false, &[]), "length that its type"),
        (true, |client, read| client.chunk(read.cookie, 1, true, &[0; 8]), "length that its type"),
        (true, |client, read| client.chunk(read.cookie, 77, true, &[0; 9]), "unknown type"),
        (true, |client, read| client.chunk(read.cookie, 1, true, &[0; 8 + 1025]), "beyond it"),
        (true, |client, read| client.chunk(read.cookie, 1, true, &[0xff; 8 + 1]), "elsewhere"),
        (true, |client, read| client.chunk(read.cookie, 2, true, &[0; 12]), "overlap, are empty"),
        (true, |client, read| client.chunk(read.cookie, 5, true, &[0; 12]), "does not fit its request"),
        (true, |client, read| client.chunk(read.cookie, 0x8001, true, &[0; 6]), "no error, or a text"),
        (
            true,
            |client, read| client.chunk(read.cookie, 0x8001, true, &[0, 0, 0, 5, 0, 9]),
            "no error, or a text",
        ),
        (
            true,
            |client, read| {
                client.chunk(read.cookie, 1, false, &[0; 8 + 512])?;
                client.chunk(read.cookie, 1, true, &[0; 8 + 512])
            },
            "overlap, are empty",
        ),
    ];
    for (structured, script, expected) in cases {
        let (structured, script) = (*structured, *script);
        let fake = Fake::start(move |client| {
            client.negotiate(structured, FLAGS)?;
            let read = client.request()?;
            assert_eq!((read.command, read.length), (READ, 1024));
            script(client, read)?;
            client.until_it_leaves()
        });
        let error = fake.read_error();
        assert!(error.contains(expected), "{error:?} should tell of {expected:?}");
        assert!(fake.met.load(Ordering::SeqCst) > 1, "it was tried again");
    }
}

#[test]
fn a_second_answer_to_one_request_ends_the_connection() {
    let fake = Fake::start(|client| {
        client.negotiate(true, FLAGS)?;
        loop {
            let read = client.request()?;
            if read.command != READ {
                continue;
            }
            client.chunk(read.cookie, 1, true, &[0; 8 + 1024])?;
            if client.number == 0 {
                client.chunk(read.cookie, 0, true, &[])?;
            }
        }
    });
    let options = UpstreamOptions { reconnect: Duration::from_secs(10), ..hasty() };
    let device = UpstreamDevice::open(&uri(&fake.socket), &options).expect("the negotiation is right");
    run(async {
        let lane = device.open_lane().expect("a lane");
        while fake.met.load(Ordering::SeqCst) < 2 {
            lane.read(Lba(0), Buffer::new(1024)).await.0.expect("on this connection or the next");
        }
    });
}

#[test]
fn chunks_come_in_any_order_and_mixed_with_other_replies() {
    let fake = Fake::start(|client| {
        client.negotiate(true, FLAGS)?;
        let (one, other) = (client.request()?, client.request()?);
        let piece = |offset: u64, byte: u8| [&offset.to_be_bytes()[..], &[byte; 512]].concat();
        let base = 1024;
        client.chunk(other.cookie, 1, false, &piece(base + 512, 4))?;
        client.chunk(one.cookie, 1, false, &piece(512, 2))?;
        let hole = [&base.to_be_bytes()[..], &512_u32.to_be_bytes()].concat();
        client.chunk(other.cookie, 2, false, &hole)?;
        client.chunk(one.cookie, 1, true, &piece(0, 1))?;
        client.chunk(other.cookie, 0, true, &[])?;
        client.until_it_leaves()
    });
    let device = fake.open().expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        let ((first, one), (second, other)) =
            tokio::join!(lane.read(Lba(0), filled(1024, 9)), lane.read(Lba(2), filled(1024, 9)));
        first.expect("a read");
        second.expect("a read");
        assert_eq!(*one, [[1; 512], [2; 512]].concat());
        assert_eq!(*other, [[0; 512], [4; 512]].concat());
    });
}

#[test]
fn errors_of_the_server_become_errors_of_the_device() {
    let fake = Fake::start(|client| {
        client.negotiate(false, FLAGS)?;
        for error in [28, 5, 1] {
            let write = client.request()?;
            assert_eq!(write.command, WRITE);
            client.simple(write.cookie, error, &[])?;
        }
        client.until_it_leaves()
    });
    let device = fake.open().expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        for expected in ["NoSpace", "EIO", "PermissionDenied"] {
            let (outcome, _) = lane.write(Lba(0), filled(512, 1), Durability::Volatile).await;
            let error = format!(
                "{:?}",
                outcome.map_err(|error| match error {
                    BlockError::Io { ref source, .. } => format!("{error:?} {source}"),
                    other => format!("{other:?}"),
                })
            );
            assert!(error.contains(expected), "{error}");
        }
    });
    assert_eq!(fake.met.load(Ordering::SeqCst), 1, "an error is an answer, not a lost connection");
}

#[test]
fn a_server_that_says_it_is_shutting_down_is_waited_for() {
    let fake = Fake::start(|client| {
        client.negotiate(false, FLAGS)?;
        loop {
            let request = client.request()?;
            if client.number == 0 {
                client.simple(request.cookie, 108, &[])?;
            } else {
                let data = vec![3; if request.command == READ { request.length as usize } else { 0 }];
                client.simple(request.cookie, 0, &data)?;
            }
        }
    });
    let options = UpstreamOptions { reconnect: Duration::from_secs(10), ..hasty() };
    let device = UpstreamDevice::open(&uri(&fake.socket), &options).expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        let (outcome, buffer) = lane.read(Lba(0), Buffer::new(512)).await;
        outcome.expect("the successor answers");
        assert_eq!(*buffer, [3; 512]);
    });
}

#[test]
fn a_request_that_kills_every_server_is_given_up() {
    let fake = Fake::start(|client| {
        client.negotiate(false, FLAGS)?;
        client.request().map(drop)
    });
    let options = UpstreamOptions { reconnect: Duration::from_secs(60), ..hasty() };
    let device = UpstreamDevice::open(&uri(&fake.socket), &options).expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        let (outcome, _) = lane.read(Lba(0), Buffer::new(512)).await;
        let error = outcome.expect_err("given up").source().expect("a cause").to_string();
        assert!(error.contains("each of 10 times"), "{error}");
    });
}

#[test]
fn without_fua_a_durable_write_is_a_write_and_a_flush() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let fake = Fake::start(move |client| {
        client.negotiate(false, 0b101)?;
        loop {
            let request = client.request()?;
            noted.lock().expect("nobody panics with it").push(request.command);
            client.simple(request.cookie, 0, &[])?;
        }
    });
    let device = fake.open().expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        write(&lane, 0, filled(512, 1), Durability::Durable).await;
        // Neither TRIM nor WRITE_ZEROES is offered.
        let range = SectorRange { start: Lba(0), count: 8 };
        lane.discard(range, Durability::Volatile).await.expect("nothing to do");
        lane.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await.expect("written");
        let fast = lane.zero(range, ZeroMode::FastOnly, Durability::Volatile).await;
        assert!(matches!(fast, Err(BlockError::Unsupported { .. })));
        let mut extents = Vec::with_capacity(4);
        lane.extents(range, &mut extents).await.expect("unknown is data");
        assert_eq!((extents.len(), extents[0].count, extents[0].allocation.zero), (1, 8, false));
    });
    assert_eq!(*seen.lock().expect("nobody panics with it"), [WRITE, FLUSH, WRITE]);
}
