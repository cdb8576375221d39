//! The data keys of a copy: the key it is to be under, looked up at once, and both data keys, unwrapped into locked memory
//! under grants that last no longer than that (ebs.md A.6).

use sealblk_keymem::DataKey;
use sealblk_kms::{DecryptRequest, EncryptionContext, KmsErrorKind, WrappedKey};
use sealblk_volume::{KeyReference, SnapshotId, WrappedDataKey};

use super::CopyError;
use super::grants::{Refusal, under_grant};
use crate::create::usable_key;
use crate::error::ControlError;
use crate::pool::Pool;
use crate::snapshot::metadata::XtsSnapshot;

/// The ARN of the key that a copy is to be under. What EC2 says at once of one that cannot be used is said here too.
pub(super) fn described_key(pool: &Pool, key: &str) -> Result<KeyReference, ControlError> {
    let found = match pool.kms.describe_key(key) {
        Ok(found) => usable_key(found),
        Err(error) if matches!(error.kind, KmsErrorKind::Unreachable | KmsErrorKind::Misconfigured) => {
            return Err(error.into());
        }
        Err(error) => Err(error.into()),
    };
    found.map_err(|source| CopyError::Key { key: key.to_owned(), source: Box::new(source) }.into())
}

/// Has the data key of `snapshot` unwrapped for the copy `copy`, by the first of its keys that can be used. If none can,
/// the error is the first key's.
pub(super) fn unlock(
    pool: &Pool,
    encryption: &XtsSnapshot,
    snapshot: SnapshotId,
    copy: SnapshotId,
) -> Result<DataKey, ControlError> {
    let context_id = &encryption.encryption_context_id;
    let mut first_error = None;
    for (key, wrapped) in encryption.wrappings() {
        match unwrap(pool, key, wrapped, context_id, copy) {
            Ok(data_key) => {
                if let Some(expected) = &encryption.key_check {
                    let wrong = |source| CopyError::DataKey { id: snapshot, source };
                    expected.verify(&data_key).map_err(wrong)?;
                }
                return Ok(data_key);
            }
            Err(Refusal::Key(error)) => {
                first_error.get_or_insert((key.to_string(), error));
            }
            Err(Refusal::Here(error)) => return Err(error),
        }
    }
    let (key, source) = first_error.expect("an encrypted snapshot has one key at least");
    Err(CopyError::KeyUnusable { id: snapshot, key, source: Box::new(source) }.into())
}

/// One key: a grant, the data key under it, and the grant's end.
fn unwrap(
    pool: &Pool,
    key: &KeyReference,
    wrapped: &WrappedDataKey,
    context_id: &str,
    copy: SnapshotId,
) -> Result<DataKey, Refusal> {
    under_grant(pool, key, context_id, copy, |grant| {
        pool.kms.decrypt(&DecryptRequest {
            wrapped: &WrappedKey(wrapped.as_bytes().to_vec()),
            key: key.as_str(),
            context: &EncryptionContext::for_resource(context_id),
            grant,
        })
    })
}
