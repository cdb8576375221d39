//! Servers that break the rules of the negotiation, or are merely old: each is met with an error that names what was
//! wrong, in bounded time, or with what the protocol allows.

use std::path::Path;

use sealblk_block::{BlockDevice, BlockLane, Buffer, Lba};
use sealblk_upstream::UpstreamDevice;

use crate::fake::{
    ACK, Client, ERR_UNSUP, FLAGS, Fake, OPT_EXPORT_NAME, OPT_GO, OPT_META, export_fact, hasty,
};
use crate::rig::{run, uri};

#[test]
fn a_negotiation_that_breaks_a_rule_is_named() {
    type Script = fn(&mut Client) -> std::io::Result<()>;
    let cases: &[(Script, &str)] = &[
        (|client| client.send(&[b"HTTP/1.1 400 Bad"]), "does not begin with NBDMAGIC"),
        (|client| client.send(&[b"NBDMAGIC", &0x4202_8186_1253_u64.to_be_bytes()]), "before options"),
        (|client| client.send(&[b"NBDMAGICNBDMAGIC"]), "wrong magic"),
        (|client| client.send(&[b"NBDMAG"]), "cannot be reached"),
        (|client| client.until_it_leaves(), "in time"),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option + 1, ACK, &[])
            },
            "an option that was not asked",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
                client.send(&[&magic, &option.to_be_bytes(), &ACK.to_be_bytes(), &[0xff; 4]])
            },
            "longer than any may be",
        ),
        (
            |client| {
                client.greet(3)?;
                client.option()?;
                client.send(&[&[7; 20]])
            },
            "wrong magic",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                client.reply(OPT_GO, ACK, &[])
            },
            "does not tell the export's size",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                loop {
                    client.reply(OPT_GO, 3, &[0, 9])?;
                }
            },
            "without end",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                client.reply(OPT_GO, 3, &export_fact(FLAGS)[..11])
            },
            "wrong length",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ACK, &[])?;
                client.option()?;
                client.reply(OPT_META, 4, b"\0\0\0\x01base:other")
            },
            "was not asked for",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                client.reply(OPT_GO, (1 << 31) | 6, b"no \x07 such thing")
            },
            "no such export (\"no ? such thing\")",
        ),
    ];
    for (script, expected) in cases {
        let script = *script;
        let refusal = Fake::start(script).refusal();
        assert!(refusal.contains(expected), "{refusal:?} should tell of {expected:?}");
    }
}

#[test]
fn an_export_that_cannot_hold_a_volume_is_refused_at_once() {
    for (flags, expected) in
        [(0b1111, "read-only"), (1, "neither FLUSH nor FUA"), (0b1100, "transmission flags")]
    {
        let fake = Fake::start(move |client| {
            client.negotiate(false, flags)?;
            client.until_it_leaves()
        });
        let refusal = fake.refusal();
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn a_server_from_before_go_is_spoken_to_in_its_way() {
    for (fixed, no_zeroes) in [(true, true), (true, false), (false, true), (false, false)] {
        let fake = Fake::start(move |client| {
            client.greet(u16::from(fixed) | u16::from(no_zeroes) << 1)?;
            loop {
                let (option, name) = client.option()?;
                if option != OPT_EXPORT_NAME {
                    assert!(fixed, "a server that is not fixed knows no other option");
                    client.reply(option, ERR_UNSUP, &[])?;
                    continue;
                }
                assert_eq!(name, b"");
                client.send(&[&(64 * 512_u64).to_be_bytes(), &FLAGS.to_be_bytes()])?;
                client.send(&[&vec![0; if no_zeroes { 0 } else { 124 }]])?;
                let read = client.request()?;
                client.simple(read.cookie, 0, &vec![5; read.length as usize])?;
                return client.until_it_leaves();
            }
        });
        let device = fake.open().expect("an old server will do");
        assert_eq!((device.geometry().sectors, device.geometry().unit_bytes), (64, 512));
        run(async {
            let lane = device.open_lane().expect("a lane");
            let (outcome, buffer) = lane.read(Lba(1), Buffer::new(512)).await;
            outcome.expect("a read");
            assert_eq!(*buffer, [5; 512]);
        });
    }
}

/// A file that is no socket, and a socket that nobody listens at.
#[test]
fn nobody_there_is_told_from_a_refusal() {
    let directory = tempfile::tempdir().expect("a directory");
    let unreachable = |path: &Path| {
        UpstreamDevice::open(&uri(path), &hasty()).expect_err("nobody is there").is_unreachable()
    };
    assert!(unreachable(&directory.path().join("none")));
    std::fs::write(directory.path().join("file"), b"").expect("a file");
    assert!(unreachable(&directory.path().join("file")));
    let refusing = Fake::start(|client| client.send(&[b"NBDMAGICNBDMAGIC"]));
    assert!(!refusing.open().expect_err("it is wrong").is_unreachable());
}
