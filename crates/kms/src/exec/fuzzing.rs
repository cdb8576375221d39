//! What is checked of a key program's replies, given any bytes.

use std::collections::BTreeMap;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use sealblk_keymem::{DATA_KEY_BYTES, DataKey};

use super::{ExecConfig, ExecKms, WRAPPED_BYTES_MAX, read_key};
use crate::attempt::Attempt;
use crate::data_key::halves_differ;
use crate::fuzzing::is_showable;
use crate::helper::Fault;

/// A reply's document: it gives a wrapped key of a length that can be kept, or an error that can be shown.
/// Whether it gives one.
pub(crate) fn document(input: &[u8]) -> bool {
    let attempt = Attempt { operation: "Encrypt", key: "a key" };
    let (program, environment) = ("/usr/libexec/wrap".into(), BTreeMap::new());
    let kms = ExecKms { config: ExecConfig { program, environment, timeout_ms: 1 } };
    let wrapped = kms.parse(attempt, input).and_then(|reply| kms.wrapped(attempt, reply));
    match &wrapped {
        Ok(key) => assert!((1..=WRAPPED_BYTES_MAX).contains(&key.0.len())),
        Err(error) => assert!(is_showable(&error.to_string()), "{error}"),
    }
    wrapped.is_ok()
}

/// What the program leaves in the pipe for the key: it is a key if it is 64 bytes, and of two halves.
/// Whether it is.
pub(crate) fn key(input: &[u8]) -> bool {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    fcntl_setfl(&ours, OFlags::NONBLOCK).expect("a pipe has flags");
    // A pipe holds 4096 bytes at least.
    let left = input.get(..input.len().min(4096)).unwrap_or_default();
    if !left.is_empty() {
        assert_eq!(rustix::io::write(&theirs, left), Ok(left.len()));
    }
    drop(theirs);
    let expected = <&[u8; DATA_KEY_BYTES]>::try_from(left).ok().filter(|bytes| halves_differ(bytes));
    let key: Result<DataKey, Fault> = DataKey::init(|bytes| read_key(&ours, bytes));
    match (key, expected) {
        (Ok(key), Some(expected)) => key.expose(|bytes| assert_eq!(bytes, expected)),
        (Err(fault), None) => assert!(is_showable(&fault.to_string()), "{fault}"),
        (key, expected) => panic!("{key:?} for {expected:?}"),
    }
    expected.is_some()
}
