//! What is checked of a wrapped key of a token, given any bytes.

use super::{IV_BYTES, PREFIX, SEALED_BYTES, parse};
use crate::service::WrappedKey;

/// It is taken apart if it has the length and the beginning, into what it is made of.
pub(crate) fn wrapped_key(input: &[u8]) {
    let parsed = parse(&WrappedKey(input.to_vec()));
    let whole = input.len() == PREFIX.len() + IV_BYTES + SEALED_BYTES && input.starts_with(PREFIX);
    assert_eq!(parsed.is_some(), whole);
    if let Some((iv, sealed)) = parsed {
        assert_eq!([&PREFIX[..], &iv, &sealed].concat(), input);
    }
}
