//! What is checked of a transit engine's answers, given any bytes.

use ureq::Body as ReplyBody;
use ureq::http::Response;

use super::api::Reply;
use super::{Ciphertext, KeyInfo, Plaintext, data_key, wrapped};
use crate::attempt::Attempt;
use crate::data_key::halves_differ;
use crate::fuzzing::is_showable;

/// An answer: a key comes out of it that a volume may have, or an error that can be shown. Whether there was a key.
pub(crate) fn answer(status: u16, body: &[u8]) -> bool {
    let attempt = Attempt { operation: "Decrypt", key: "a key" };
    let body = ReplyBody::builder().data(body.to_vec());
    let mut response = Response::builder().status(status).body(body).expect("a response");
    let reply = Reply::read(attempt, &mut response).expect("the bytes are here");
    assert!(is_showable(&reply.words()), "{:?}", reply.words());
    let key = reply.data::<Plaintext<'_>>().and_then(|reply| data_key(attempt, reply.plaintext));
    if let Ok(key) = &key {
        key.expose(|bytes| assert!(halves_differ(bytes)));
    }
    if let Ok(key) = reply.data::<Ciphertext>().and_then(|reply| wrapped(attempt, reply)) {
        assert!(key.0.starts_with(b"vault:v") && key.0.iter().all(u8::is_ascii_graphic));
    }
    if let Err(error) = reply.data::<KeyInfo>() {
        assert!(is_showable(&error.to_string()), "{error}");
    }
    key.is_ok()
}
