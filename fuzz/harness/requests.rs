//! Sequences of requests that mostly mean something: each byte of the input chooses.

use super::answer::{Ask, BLOCK_STATUS, PAYLOAD_LEN};
use super::bytes::Bytes;
use super::exports::SIZE;
use super::oracle::{DISCONNECT, WRITE};
use super::transmission::{Setting, transmission};

/// Makes a client's bytes of choices, and gives them to [`transmission`].
///
/// # Panics
/// As [`transmission`] does.
pub(crate) fn requests(input: &[u8]) {
    let mut choices = Bytes(input);
    let Some(head) = choices.take(2) else { return };
    let extended = Setting::new(head[0]).terms.extended;
    let mut client = head.to_vec();
    while !choices.0.is_empty() && client.len() < 1 << 20 {
        client.extend(request(&mut choices, extended).to_bytes(extended));
    }
    transmission(&client);
}

fn request(choices: &mut Bytes<'_>, extended: bool) -> Ask {
    let command = match choices.choice(32) {
        0..8 => 0,
        8..16 => WRITE,
        16..18 => 3,
        18..21 => 4,
        21 => 5,
        22..26 => 6,
        26..30 => BLOCK_STATUS,
        30 => choices.pick(&[8_u16, 9, 255, u16::MAX]),
        // Seldom: it ends the connection.
        _ => choices.pick(&[DISCONNECT, 0, 1, 3, 4, 6, 7, 5]),
    };
    let flags = choices.pick(&[0_u16, 0, 0, 0, 0, 1, 1, 2, 4, 8, 16, 18, 32, 64, u16::MAX]);
    let (offset, length) = if command == 3 { (0, 0) } else { (offset(choices), length(choices)) };
    let mut ask = Ask::new(command, flags, offset, length);
    if command == 3 && choices.choice(16) == 1 {
        ask.length = 1;
    }
    carry(ask, choices, extended)
}

fn offset(choices: &mut Bytes<'_>) -> u64 {
    match choices.choice(16) {
        0 => choices.pick(&[SIZE - 1, SIZE, SIZE + 1, 1 << 63, u64::MAX, u64::MAX - 511]),
        1..6 => 512 * choices.choice(64),
        6..8 => 4096 * choices.choice(8),
        _ => choices.number(2).unwrap_or(0) % SIZE,
    }
}

fn length(choices: &mut Bytes<'_>) -> u64 {
    match choices.choice(16) {
        0 => 0,
        1 => choices.pick(&[SIZE, SIZE + 1, 65_536, (32 << 20) + 1, 1 << 31, u64::from(u32::MAX)]),
        2..6 => 512 * choices.choice(24),
        6..8 => 4096 * choices.choice(5),
        _ => choices.number(2).unwrap_or(0) % 3000,
    }
}

/// Gives a request the payload that it announces, and announces what it should.
fn carry(mut ask: Ask, choices: &mut Bytes<'_>, extended: bool) -> Ask {
    let payload = |length: u64, fill: u8| vec![fill; usize::try_from(length.min(1 << 17)).expect("small")];
    let fill = choices.number(1).unwrap_or(0).to_le_bytes()[0];
    if !extended {
        if ask.command == WRITE {
            ask.payload = payload(ask.length, fill);
        }
        return ask;
    }
    if ask.command == WRITE && fill != 0x99 {
        ask.flags |= PAYLOAD_LEN;
    }
    if ask.command == BLOCK_STATUS && ask.flags & PAYLOAD_LEN != 0 {
        let ids: Vec<u32> = (0..choices.choice(4)).map(|_| choices.pick(&[1_u32, 2, 1, 2, 3, 0])).collect();
        ask.payload = ask.length.to_be_bytes().to_vec();
        ask.payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        ask.length = ask.payload.len().try_into().expect("64 bits");
    } else if ask.flags & PAYLOAD_LEN != 0 {
        ask.payload = payload(ask.length, fill);
    }
    ask
}
