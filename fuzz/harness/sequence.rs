//! Sequences of options that mostly mean something: each byte of the input chooses.

use super::bytes::Bytes;
use super::exports::{ALIAS, NAME, OWN_CONTEXT};
use super::options::options;

/// Makes a client's bytes of choices, and gives them to [`options`].
///
/// # Panics
/// As [`options`] does.
pub(crate) fn sequence(input: &[u8]) {
    let mut choices = Bytes(input);
    let mut client = vec![choices.pick(&[0_u8, 1, 2, 3]), choices.number(1).unwrap_or(0).to_le_bytes()[0]];
    client.extend(choices.pick(&[3_u32, 3, 3, 3, 3, 1, 0, 2, 4]).to_be_bytes());
    while !choices.0.is_empty() && client.len() < 1 << 20 {
        client.extend(option(&mut choices));
    }
    options(&client);
}

/// An option, damaged now and then.
fn option(choices: &mut Bytes<'_>) -> Vec<u8> {
    // Often what leads on: framing, contexts, information; STARTTLS anywhere.
    let option = choices.pick(&[8_u32, 11, 10, 10, 9, 6, 6, 3, 5, 5, 7, 1, 2, 0, 4, 12, u32::MAX]);
    let mut data = match option {
        1 => name(choices),
        6 | 7 => information(choices),
        9 | 10 => queries(choices),
        _ => choices.pick(&[&[][..], &[], &[], &[], &[0], &[0xff; 40]]).to_vec(),
    };
    let mut surplus = 0;
    match choices.choice(24) {
        0 => data.extend([0]),
        1 => {
            data.pop();
        }
        2 => data.resize(choices.pick(&[4096, 4097, 262_144, 262_145]), 0x61),
        3 => surplus = choices.pick(&[1, 1 << 20, (1 << 20) + 1, 1 << 31, u32::MAX]),
        4 => {
            let at = usize::try_from(choices.choice(64)).expect("small");
            if let Some(byte) = data.get_mut(at) {
                *byte ^= choices.pick(&[0x80_u8, 0xff, 1]);
            }
        }
        _ => {}
    }
    let announced = u32::try_from(data.len()).expect("test options are small").saturating_add(surplus);
    let magic = if choices.choice(64) == 1 { b"IHAVEOPS" } else { b"IHAVEOPT" };
    [magic, &option.to_be_bytes()[..], &announced.to_be_bytes(), &data].concat()
}

fn name(choices: &mut Bytes<'_>) -> Vec<u8> {
    match choices.choice(12) {
        0..4 => Vec::new(),
        4..7 => NAME.into(),
        7 | 8 => ALIAS.into(),
        9 => b"vol-".to_vec(),
        10 => choices.pick(&[&b"a\0b"[..], &[0xff, 0xfe], "テスト".as_bytes(), b"/"]).to_vec(),
        _ => vec![b'n'; choices.pick(&[256, 257, 4095, 4096, 4097])],
    }
}

fn length(bytes: &[u8], choices: &mut Bytes<'_>) -> [u8; 4] {
    let length = u32::try_from(bytes.len()).expect("test strings are small");
    let wrong = choices.pick(&[length + 1, length.wrapping_sub(1), u32::MAX, 0]);
    if choices.choice(32) == 1 { wrong } else { length }.to_be_bytes()
}

fn information(choices: &mut Bytes<'_>) -> Vec<u8> {
    let name = name(choices);
    let asked: Vec<u16> =
        (0..choices.choice(6)).map(|_| choices.pick(&[0_u16, 1, 2, 3, 3, 9, u16::MAX])).collect();
    let count = u16::try_from(asked.len()).expect("few");
    let count = if choices.choice(24) == 1 { choices.pick(&[count + 1, u16::MAX, 0]) } else { count };
    let asked: Vec<u8> = asked.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    [&length(&name, choices)[..], &name, &count.to_be_bytes(), &asked].concat()
}

fn queries(choices: &mut Bytes<'_>) -> Vec<u8> {
    let known = [
        &b"base:allocation"[..],
        b"base:",
        OWN_CONTEXT.as_bytes(),
        b"x-fuzz:",
        b"x-other:one",
        b"base:other",
    ];
    let strange = [&b""[..], b"base", b":", b"x\0:y", &[0xff, b':'], &[b'q'; 4097], &[b'q'; 4096]];
    let name = name(choices);
    let count = choices.choice(6);
    let mut data = [&length(&name, choices)[..], &name].concat();
    let announced = if choices.choice(24) == 1 { u32::MAX } else { u32::try_from(count).expect("few") };
    data.extend(announced.to_be_bytes());
    for _ in 0..count {
        let query = if choices.choice(8) == 1 { choices.pick(&strange) } else { choices.pick(&known) };
        data.extend(length(query, choices));
        data.extend(query);
    }
    data
}
