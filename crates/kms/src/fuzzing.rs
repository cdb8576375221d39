//! What is checked of the bytes that wrap keys, and of those that bring them. Compiled for tests and for the fuzz targets
//! (`fuzz/targets/wrapped_keys.rs`, `key_helper.rs`, `key_services.rs`), and in nothing that is shipped.
//!
//! Each function takes bytes and panics if a promise is broken. The first byte chooses what the others are taken for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealblk_keymem::{KeyMemError, Secret};

use crate::key_uri::KeyUri;
use crate::local::Scope;
use crate::{exec, helper, local, pkcs11, transit};

/// How many characters an error has at most, a service's own words (300) and its name among them.
const LONGEST_ERROR: usize = 600;

/// Wrapped data keys, backing keys and root keys: any bytes, and good ones that were edited. Nothing opens but what was
/// wrapped, for whom it was wrapped.
pub fn wrapped_keys(input: &[u8]) {
    let (&what, input) = input.split_first().unwrap_or((&0, &[]));
    match what % 7 {
        0 => local::fuzzing::data_key(input),
        1 => local::fuzzing::data_key_edits(input),
        2 => local::fuzzing::material(input),
        3 => local::fuzzing::material_edits(input),
        4 => local::fuzzing::root_key::record(input),
        5 => local::fuzzing::root_key::edits(input),
        _ => pkcs11::fuzzing::wrapped_key(input),
    }
}

/// Both directions between a process and its key helper.
pub fn key_helper(input: &[u8]) {
    helped(input);
}

/// The same; whether a request was answered, or a reply brought a key.
fn helped(input: &[u8]) -> bool {
    let (&what, input) = input.split_first().unwrap_or((&0, &[]));
    if what % 2 == 0 { helper::fuzzing::requests(input) } else { helper::fuzzing::replies(input) }
}

/// What key services and key programs answer, and the names of their keys.
pub fn key_services(input: &[u8]) {
    served(input);
}

/// The same; whether a key came.
fn served(input: &[u8]) -> bool {
    let (&what, input) = input.split_first().unwrap_or((&0, &[]));
    match what % 4 {
        0 => {
            let statuses = [200, 204, 400, 403, 404, 429, 472, 503];
            let status = statuses.get(usize::from(what >> 2) % statuses.len()).copied();
            transit::fuzzing::answer(status.unwrap_or(200), input)
        }
        1 => exec::fuzzing::document(input),
        2 => exec::fuzzing::key(input),
        _ => names(input),
    }
}

/// The name of a key: what it is parsed to says it again, and an error repeats no PIN. Whether it is one.
fn names(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let parsed = KeyUri::parse(text);
    let is_name = parsed.is_ok();
    match parsed {
        Ok(KeyUri::Local(name)) => local::fuzzing::name(&name, &Scope::default()),
        Ok(uri) => assert_eq!(KeyUri::parse(&uri.to_string()), Ok(uri), "{text}"),
        Err(error) => {
            let value = text.split_once("pin-value=").map_or("", |(_, value)| value);
            let told = error.to_string();
            assert!(is_showable(&told.chars().take(LONGEST_ERROR - 1).collect::<String>()), "{told}");
            assert!(value.len() < 8 || !told.contains(value), "{told}");
        }
    }
    is_name
}

/// Whether it can be an error on a terminal and in a log.
pub(crate) fn is_showable(text: &str) -> bool {
    text.chars().count() < LONGEST_ERROR && !text.chars().any(char::is_control)
}

/// A secret of `N` bytes of this value.
pub(crate) fn filled<const N: usize>(value: u8) -> Secret<N> {
    let filled = Secret::init(|bytes| {
        *bytes = [value; N];
        Ok::<(), KeyMemError>(())
    });
    filled.expect("locked memory")
}

/// `whole`, edited as `edits` say, two bytes each: a place, and what to turn over there; at 255 what follows is cut off, or
/// something is added.
pub(crate) fn edited(whole: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for edit in edits.chunks_exact(2) {
        let (place, value) = (usize::from(edit[0]), edit[1]);
        match place {
            255 if value < 128 => bytes.truncate(usize::from(value)),
            255 => bytes.push(value),
            _ => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= value;
                }
            }
        }
    }
    bytes
}

/// The same to what a string in a record holds in base64; an odd number of bytes: to its characters instead.
pub(crate) fn edited_base64(field: &mut serde_json::Value, edits: &[u8]) {
    let text = field.as_str().expect("a string");
    let changed = if edits.len().is_multiple_of(2) {
        STANDARD.encode(edited(&STANDARD.decode(text).expect("base64"), edits))
    } else {
        String::from_utf8_lossy(&edited(text.as_bytes(), edits)).into_owned()
    };
    *field = changed.into();
}

#[cfg(test)]
mod tests {
    use sealblk_testkit::fuzz_input::{corpus, many, seed};

    use super::*;

    #[test]
    fn the_corpus_of_wrapped_keys_keeps_the_promises() {
        corpus("wrapped_keys", wrapped_keys);
    }

    #[test]
    fn the_corpus_of_the_helpers_pipes_keeps_the_promises() {
        corpus("key_helper", key_helper);
    }

    #[test]
    fn the_corpus_of_key_services_keeps_the_promises() {
        corpus("key_services", key_services);
    }

    /// So that the targets are not ones that only refuse.
    #[test]
    fn right_bytes_are_answered_and_bring_keys() {
        for call in ["describe", "generate", "decrypt", "re-encrypt", "retire", "with-passphrase", "across"] {
            assert!(helped(&seed("key_helper", &format!("request-{call}"))), "{call}");
        }
        assert!(helped(&seed("key_helper", "reply-key")));
        for name in ["transit-key", "program-ciphertext", "program-key-of-64", "name-5", "name-8"] {
            assert!(served(&seed("key_services", name)), "{name}");
        }
        for name in ["reply-key-of-63", "reply-key-of-65", "reply-key-unannounced", "request-of-version-2"] {
            assert!(!helped(&seed("key_helper", name)), "{name}");
        }
        assert!(!served(&seed("key_services", "transit-key-of-equal-halves")));
    }

    #[test]
    fn any_bytes_open_nothing_that_was_not_wrapped() {
        many(180, wrapped_keys);
    }

    #[test]
    fn any_bytes_in_a_helpers_pipes_are_a_reply_or_an_error() {
        many(180, key_helper);
    }

    #[test]
    fn any_bytes_of_a_key_service_are_a_key_or_an_error() {
        many(180, key_services);
    }
}
