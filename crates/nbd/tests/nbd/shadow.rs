//! Random requests against a plain array of bytes.

use std::collections::HashMap;

use proptest::prelude::*;
use sealblk_block::{ByteDevice, MemoryDevice};
use sealblk_testkit::nbd_client::RequestHeader;

use crate::chunks::{Ask, DF, PAYLOAD_LEN, chunked_on};
use crate::support::*;

/// Small, so that requests overlap and meet the end.
const BYTES: u64 = 32 << 10;

#[derive(Clone, Debug)]
struct Step {
    header: RequestHeader,
    fill: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let command = prop_oneof![
        4 => Just(READ), 4 => Just(WRITE), 1 => Just(FLUSH), 1 => Just(TRIM), 1 => Just(CACHE),
        2 => Just(WRITE_ZEROES), 1 => any::<u16>().prop_filter("not DISC", |command| *command != 2),
    ];
    let flags = prop_oneof![8 => Just(0), 2 => Just(1), 1 => any::<u16>()];
    let offset = prop_oneof![20 => 0..BYTES + 600, 1 => any::<u64>()];
    let length = prop_oneof![10 => 0..3000_u32, 3 => 0..20_000_u32];
    (command, flags, offset, length, 1..=u8::MAX).prop_map(|(command, flags, offset, length, fill)| {
        let (offset, length) = if command == FLUSH { (0, 0) } else { (offset, length) };
        Step { header: RequestHeader { flags, command, cookie: 0, offset, length }, fill }
    })
}

/// What the reply must be, by the words of the protocol; changes `shadow` accordingly.
fn expected(step: &Step, shadow: &mut [u8]) -> Result<Vec<u8>, u32> {
    expected_with(0, step, shadow)
}

/// The same where the flags `on_read` may stand on a READ.
fn expected_with(on_read: u16, step: &Step, shadow: &mut [u8]) -> Result<Vec<u8>, u32> {
    let RequestHeader { flags, command, offset, length, .. } = step.header;
    let allowed = match command {
        WRITE_ZEROES => 1 | 2 | 16,
        READ => 1 | on_read,
        _ => 1,
    };
    if command == 2 || command > WRITE_ZEROES || flags & !allowed != 0 {
        return Err(EINVAL);
    }
    if u128::from(offset) + u128::from(length) > u128::from(BYTES) {
        return Err(if command == WRITE || command == WRITE_ZEROES { ENOSPC } else { EINVAL });
    }
    let start = usize::try_from(offset).expect("inside");
    let range = start..start + length as usize;
    match command {
        READ => return Ok(shadow[range].to_vec()),
        WRITE => shadow[range].fill(step.fill),
        WRITE_ZEROES => shadow[range].fill(0),
        // The memory device turns whole sectors to zeros and leaves the rest; any mix is allowed.
        _ => {}
    }
    Ok(Vec::new())
}

/// After a TRIM each sector reads as before or as zeros: takes the device's word, if it is one of the two.
fn follow_trim(client: &mut Client, step: &Step, shadow: &mut [u8]) {
    let (offset, length) = (step.header.offset, step.header.length);
    let seen = client.read(offset, length).expect("a reply").expect("data");
    follow(&seen, step, shadow);
}

fn follow(seen: &[u8], step: &Step, shadow: &mut [u8]) {
    let offset = step.header.offset;
    for (index, byte) in seen.iter().copied().enumerate() {
        let at = usize::try_from(offset).expect("inside") + index;
        assert!(byte == 0 || byte == shadow[at], "byte {at} is neither old nor zero");
        shadow[at] = byte;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn one_at_a_time_every_reply_is_what_an_array_would_give(
        steps in prop::collection::vec(step(), 1..60), unit in prop::sample::select(vec![512_u32, 4096]),
    ) {
        let device = ByteDevice::new(MemoryDevice::new(BYTES / 512).with_unit(unit));
        let (mut client, session) = transmitting(&device);
        let mut shadow = vec![0; BYTES as usize];
        for step in &steps {
            let payload = if step.header.command == WRITE { vec![step.fill; step.header.length as usize] } else { vec![] };
            let expected = expected(step, &mut shadow);
            let reply = client.request(step.header, &payload).expect("a reply");
            prop_assert_eq!(&reply, &expected, "{:?}", step);
            if step.header.command == TRIM && reply.is_ok() && step.header.length > 0 {
                follow_trim(&mut client, step, &mut shadow);
            }
        }
        client.disconnect().expect("sent");
        drop(client);
        prop_assert!(session.end().is_ok());
    }

    #[test]
    fn in_chunks_every_reply_is_what_an_array_would_give(
        steps in prop::collection::vec(step(), 1..60), extended in any::<bool>(),
    ) {
        let device = ByteDevice::new(MemoryDevice::new(BYTES / 512));
        let (mut client, session) = chunked_on(&device, info(), extended, &[]);
        let mut shadow = vec![0; BYTES as usize];
        for step in &steps {
            // Whether a payload follows is not left to chance: a wrong word about it ends the connection.
            let RequestHeader { flags, command, offset, length, .. } = step.header;
            let step = Step { header: RequestHeader { flags: flags & !PAYLOAD_LEN, ..step.header }, ..*step };
            let expected = expected_with(DF, &step, &mut shadow);
            let is_write = command == WRITE;
            let sent = step.header.flags | if is_write && extended { PAYLOAD_LEN } else { 0 };
            let payload = if is_write { vec![step.fill; length as usize] } else { vec![] };
            let answer = client.ask(&Ask::new(command, sent, offset, length.into()).carrying(payload));
            prop_assert_eq!(answer.error.map_or(Ok(answer.content), Err), expected, "{:?}", step);
            if command == TRIM && answer.error.is_none() && length > 0 {
                let seen = client.read(offset, length.into());
                follow(&seen, &step, &mut shadow);
            }
        }
        drop(client);
        prop_assert!(session.end().is_ok());
    }

    #[test]
    fn pipelined_every_request_gets_one_reply_of_the_right_shape(
        steps in prop::collection::vec(step(), 1..120), split in 1..5000_usize,
    ) {
        let device = ByteDevice::new(MemoryDevice::new(BYTES / 512));
        let (mut client, session) = transmitting(&device);
        let mut bytes = Vec::new();
        for (cookie, step) in (0_u64..).zip(&steps) {
            bytes.extend(RequestHeader { cookie, ..step.header }.to_bytes());
            if step.header.command == WRITE {
                bytes.resize(bytes.len() + step.header.length as usize, step.fill);
            }
        }
        let mut sender = sealblk_testkit::nbd_client::NbdClient::new(client.stream().try_clone().expect("a clone"));
        let sending = std::thread::spawn(move || bytes.chunks(split).for_each(|piece| sender.send(piece).expect("sent")));
        let mut scratch = vec![0; BYTES as usize];
        let mut open: HashMap<u64, &Step> = (0_u64..).zip(&steps).collect();
        while !open.is_empty() {
            let (cookie, error) = client.reply().expect("a reply");
            let step = open.remove(&cookie).expect("one reply to each request");
            let expected = expected(step, &mut scratch);
            prop_assert_eq!(error, expected.as_ref().err().copied().unwrap_or(0), "{:?}", step);
            client.receive(expected.map_or(0, |data| data.len())).expect("data");
        }
        sending.join().expect("all was sent");
        client.disconnect().expect("sent");
        prop_assert_eq!(client.receive_rest().expect("the end"), b"");
        drop(client);
        prop_assert!(session.end().is_ok());
    }
}
