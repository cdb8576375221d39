//! Lower-case hexadecimal, as KMS writes key material ids and grant ids. For public identifiers only:
//! it is not constant in time. Used by the records, the wrapped key and the audit log.

use std::fmt::Write;

/// The lower-case digits of `bytes`.
pub(super) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

/// The 32 bytes that 64 lower-case digits stand for; `None` for anything else.
pub(super) fn decode_32(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; 32];
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_undoes_encoding() {
        let bytes: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 8 + 3).expect("below 256"));
        assert_eq!(decode_32(&encode(&bytes)), Some(bytes));
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in ["", "0", &"0".repeat(63), &"0".repeat(65), &"A".repeat(64), &"g".repeat(64)] {
            assert_eq!(decode_32(text), None, "{text}");
        }
    }
}
