//! What is checked of both ends of a helper's pipes, given any bytes from the other end.

use std::fs::File;
use std::io::{Cursor, Read, Seek};

use rustix::fs::{MemfdFlags, memfd_create};
use sealblk_keymem::{DATA_KEY_BYTES, DataKey, KeyMemError};

use super::child::{HelperError, answer};
use super::exchange::{Ending, Fault};
use super::reply::{self, Output};
use super::wire::{self, Answer, DOCUMENT_BYTES_MAX, LENGTH_BYTES, Reply, Request};
use crate::context::EncryptionContext;
use crate::error::{KmsError, KmsErrorKind};
use crate::fuzzing::is_showable;
use crate::service::{
    DecryptRequest, Grant, GrantId, GrantRequest, KeyMetadata, KeyState, Kms, ReEncryptRequest, WrappedKey,
};

/// The key that every wrapped key of the made-up service unwraps to.
const KEY: [u8; DATA_KEY_BYTES] = [0x5a; DATA_KEY_BYTES];

/// A parent's bytes, for the helper: it answers with exactly one reply, or writes nothing at all. Whether it answered.
pub(crate) fn requests(input: &[u8]) -> bool {
    if let Ok(request) = wire::read::<Request>(&mut Cursor::new(input)) {
        let written = wire::encode(&request).expect("what was short enough once");
        let again: Request = wire::read(&mut Cursor::new(&written)).expect("what we wrote");
        assert_eq!(format!("{request:?}"), format!("{again:?}"), "it is read as it was written");
    }
    let memory = memfd_create("a reply", MemfdFlags::CLOEXEC).expect("memory for the reply");
    let mut written = File::from(memory);
    let outcome = answer(Cursor::new(input), &written, |_, _| Ok(Box::new(Made)));
    let mut reply = Vec::new();
    written.rewind().and_then(|()| written.read_to_end(&mut reply)).expect("it can be read");
    match &outcome {
        Ok(()) => must_be_one_reply(&reply),
        Err(HelperError::Request(_) | HelperError::Passphrase(_)) => assert!(reply.is_empty(), "{reply:?}"),
        // The one way: an answer that repeats what was asked, escaped, and so is longer than any may be.
        Err(HelperError::Reply(_)) => assert!(reply.is_empty() && input.len() > DOCUMENT_BYTES_MAX / 8),
    }
    outcome.is_ok()
}

fn must_be_one_reply(reply: &[u8]) {
    let mut rest = reply;
    let parsed: Reply = wire::read(&mut rest).expect("a reply");
    match parsed {
        Reply::Ok(Answer::DataKey) => assert_eq!(rest, KEY, "the key behind the document, and no more"),
        _ => assert!(rest.is_empty(), "no bytes of a key where none was asked for"),
    }
}

/// A helper's bytes, for the parent: a key is what stood behind a reply that says so, and nothing stood behind that.
/// Whether there was a key.
pub(crate) fn replies(input: &[u8]) -> bool {
    let key = reply::take(&mut Said(input), reply::data_key);
    let answered = reply::take(&mut Said(input), |_, answer| Ok(answer));
    let document_bytes = input
        .first_chunk::<LENGTH_BYTES>()
        .and_then(|field| usize::try_from(u32::from_le_bytes(*field)).ok())
        .unwrap_or(usize::MAX);
    let whole = document_bytes.saturating_add(LENGTH_BYTES);
    match &key {
        Ok(Ok(key)) => {
            assert_eq!(input.len(), whole + DATA_KEY_BYTES);
            key.expose(|bytes| assert_eq!(Some(&bytes[..]), input.get(whole..)));
            assert!(matches!(answered, Err(Fault::LongReply)), "the key is not left unread");
        }
        Ok(Err(error)) => must_be_told(error, input.len() == whole),
        Err(fault) => assert!(is_showable(&fault.to_string()), "{fault}"),
    }
    match answered {
        Ok(Ok(answer)) => {
            assert_eq!(input.len(), whole);
            must_be_written_as_it_was_read(&Reply::Ok(answer));
        }
        Ok(Err(error)) => must_be_told(&error, input.len() == whole),
        Err(fault) => assert!(is_showable(&fault.to_string()), "{fault}"),
    }
    matches!(key, Ok(Ok(_)))
}

fn must_be_told(error: &KmsError, whole: bool) {
    assert!(whole && !error.operation.is_empty(), "{error}");
}

fn must_be_written_as_it_was_read(reply: &Reply) {
    // Numbers beyond what JSON can say again come from nobody who writes JSON.
    if let Ok(written) = wire::encode(reply) {
        wire::read::<Reply>(&mut &written[..]).expect("what we wrote");
    }
}

/// Bytes that a helper wrote before it ended well.
struct Said<'i>(&'i [u8]);

impl Output for Said<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.0.read(buffer)?)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        if self.0.is_empty() { Ok(()) } else { Err(Fault::LongReply) }
    }

    fn ending(&mut self) -> Result<Ending, Fault> {
        Ok(Ending::well())
    }
}

/// A key service that does what it is asked, and refuses what names a key without a name.
struct Made;

impl Made {
    fn of<T>(operation: &'static str, key: &str, value: T) -> Result<T, KmsError> {
        if !key.is_empty() {
            return Ok(value);
        }
        let (message, request_id) = ("no name".to_owned(), "none".to_owned());
        let kind = KmsErrorKind::InvalidRequest;
        Err(KmsError { kind, operation, key: key.to_owned(), message, request_id, source: None })
    }
}

impl Kms for Made {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        Self::of("DescribeKey", key, KeyMetadata::symmetric(key, key, KeyState::Enabled))
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        _: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        Self::of("GenerateDataKeyWithoutPlaintext", key, WrappedKey(key.into()))
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        let key = DataKey::init(|bytes| {
            *bytes = KEY;
            Ok::<(), KeyMemError>(())
        });
        Self::of("Decrypt", request.key, key.expect("locked memory"))
    }

    fn encrypt(&self, key: &str, _: &DataKey, _: &EncryptionContext) -> Result<WrappedKey, KmsError> {
        Self::of("Encrypt", key, WrappedKey(key.into()))
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        Self::of("ReEncrypt", request.to_key, request.wrapped.clone())
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        let grant = Grant { id: GrantId("0".repeat(64)) };
        Self::of("CreateGrant", &request.key, grant)
    }

    fn retire_grant(&self, key: &str, _: &GrantId) -> Result<(), KmsError> {
        Self::of("RetireGrant", key, ())
    }
}
