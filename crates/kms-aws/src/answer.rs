//! What AWS KMS answers, checked and in the seam's types.

use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types;
use sealblk_keymem::{DATA_KEY_BYTES, DataKey};
use sealblk_kms::{KeyMetadata, KeyState, KmsError, WrappedKey};
use zeroize::Zeroizing;

use crate::error::not_its_format;

/// A wrapped key's size, at most (KMS's CiphertextBlob).
const MAX_WRAPPED_BYTES: usize = 6144;

pub(crate) fn wrapped(
    operation: &'static str,
    key: &str,
    blob: Option<Blob>,
) -> Result<WrappedKey, KmsError> {
    let bytes = blob.map(Blob::into_inner).unwrap_or_default();
    if bytes.is_empty() || bytes.len() > MAX_WRAPPED_BYTES {
        let message = format!("a ciphertext of {} bytes; there are 1 to {MAX_WRAPPED_BYTES}", bytes.len());
        return Err(not_its_format(operation, key, &message));
    }
    Ok(WrappedKey(bytes))
}

/// The plaintext goes to locked memory, and this copy of it is wiped. Those that the SDK made on the way go with the
/// process.
pub(crate) fn data_key(key: &str, plaintext: Option<Blob>) -> Result<DataKey, KmsError> {
    let bytes = Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default());
    if bytes.len() != DATA_KEY_BYTES {
        let message = format!("a data key of {} bytes instead of {DATA_KEY_BYTES}", bytes.len());
        return Err(not_its_format("Decrypt", key, &message));
    }
    DataKey::init(|slot| {
        slot.copy_from_slice(&bytes);
        Ok(())
    })
    .map_err(|error: sealblk_keymem::KeyMemError| {
        crate::error::misconfigured("no locked memory for a data key", Some(std::io::Error::other(error)))
    })
}

/// A key as the seam tells it. A state that volumes cannot be used in, and that the seam has no word for, is disabled.
pub(crate) fn key_metadata(asked: &str, key: Option<types::KeyMetadata>) -> Result<KeyMetadata, KmsError> {
    let key = key.ok_or_else(|| not_its_format("DescribeKey", asked, "no KeyMetadata"))?;
    let arn = key.arn.ok_or_else(|| not_its_format("DescribeKey", asked, "no Arn"))?;
    let state = match key.key_state {
        Some(types::KeyState::Enabled) => KeyState::Enabled,
        Some(types::KeyState::PendingDeletion | types::KeyState::PendingReplicaDeletion) => {
            KeyState::PendingDeletion
        }
        _ => KeyState::Disabled,
    };
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let spec = text(key.key_spec.as_ref().map(types::KeySpec::as_str));
    Ok(KeyMetadata {
        aws_account_id: key.aws_account_id.unwrap_or_default(),
        creation_date: key.creation_date.map_or(0.0, |date| date.as_secs_f64()),
        description: key.description.unwrap_or_default(),
        key_usage: text(key.key_usage.as_ref().map(types::KeyUsageType::as_str)),
        deletion_date: key.deletion_date.map(|date| date.as_secs_f64()),
        pending_deletion_window_in_days: key
            .pending_deletion_window_in_days
            .and_then(|days| days.try_into().ok()),
        origin: text(key.origin.as_ref().map(types::OriginType::as_str)),
        key_manager: text(key.key_manager.as_ref().map(types::KeyManagerType::as_str)),
        customer_master_key_spec: spec.clone(),
        key_spec: spec,
        multi_region: key.multi_region.unwrap_or_default(),
        ..KeyMetadata::symmetric(key.key_id, arn, state)
    })
}
