//! The data keys of a copy: the key it is to be under, looked up at once, and both data keys, unwrapped into locked memory
//! under grants that last no longer than that (ebs.md A.6).

use sealblk_keymem::DataKey;
use sealblk_kms::{
    DecryptRequest, EncryptionContext, GrantOperation, GrantRequest, KmsError, KmsErrorKind, Principal,
    WrappedKey,
};
use sealblk_volume::{KeyReference, SnapshotId, WrappedDataKey};

use super::CopyError;
use crate::attachment::GrantRecord;
use crate::create::usable_key;
use crate::error::ControlError;
use crate::grant::host_name;
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
    let context = EncryptionContext::for_resource(&encryption.encryption_context_id);
    let recovery = encryption.recovery_keys.iter().map(|key| (&key.kms_key_id, &key.wrapped_key));
    let mut first_error = None;
    for (key, wrapped) in std::iter::once((&encryption.kms_key_id, &encryption.wrapped_key)).chain(recovery) {
        match unwrap(pool, key, wrapped, &context, copy) {
            Ok(data_key) => {
                if let Some(expected) = &encryption.key_check {
                    let wrong = |source| CopyError::DataKey { id: snapshot, source };
                    expected.verify(&data_key).map_err(wrong)?;
                }
                return Ok(data_key);
            }
            Err(error) => {
                first_error.get_or_insert((key.to_string(), error));
            }
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
    context: &EncryptionContext,
    copy: SnapshotId,
) -> Result<DataKey, KmsError> {
    let grantee = Principal(format!("host:{}/{copy}", host_name()));
    let request = GrantRequest {
        key: key.to_string(),
        grantee: grantee.clone(),
        operations: vec![GrantOperation::Decrypt],
        constraint: context.clone(),
        // Killed before it is retired, the copy is given the same grant when it is taken up again.
        name: Some(copy.to_string()),
    };
    let grant = match pool.kms.create_grant(&request) {
        Ok(grant) => Some(grant.id),
        Err(error) if error.kind == KmsErrorKind::NoGrants => None,
        Err(error) => return Err(error),
    };
    let data_key = pool.kms.decrypt(&DecryptRequest {
        wrapped: &WrappedKey(wrapped.as_bytes().to_vec()),
        key: key.as_str(),
        context,
        grant: grant.as_ref().map(|grant| (grant, &grantee)),
    });
    if let Some(grant_id) = grant {
        // Decrypt only, for this one context: one that stays lets nobody do what this host may not.
        let _ = pool.retire(&GrantRecord { kms_key_id: key.to_string(), grant_id });
    }
    data_key
}
