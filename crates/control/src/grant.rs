//! The grant under which an encrypted volume's data key is unwrapped: Decrypt only, bound to the volume, and
//! retired with the attachment (requirement 17).

use std::fs;

use sealblk_keymem::DataKey;
use sealblk_kms::{
    DecryptRequest, EncryptionContext, GrantOperation, GrantRequest, KmsError, KmsErrorKind, Principal,
    WrappedKey,
};
use sealblk_volume::EncryptedVolume;

use crate::attachment::{Announcement, GrantRecord};
use crate::error::ControlError;
use crate::pool::Pool;

/// A live grant; retired when dropped. Of a key service that has no grants it is empty.
pub(crate) struct HeldGrant<'p> {
    pool: &'p Pool,
    record: Option<GrantRecord>,
}

impl<'p> HeldGrant<'p> {
    /// Creates the volume's grant, notes it in `announcement`, and has the data key unwrapped under it.
    pub(crate) fn unlock(
        pool: &'p Pool,
        volume: &EncryptedVolume<'_>,
        announcement: &mut Announcement,
    ) -> Result<(Self, DataKey), ControlError> {
        let id = volume.volume_id();
        let key = volume.kms_key_id().as_str();
        let unusable = |error: KmsError| {
            let (key, source) = (key.to_owned(), Box::new(error));
            ControlError::KeyUnusable { id, key, source }
        };
        let context = EncryptionContext::for_resource(&id.to_string());
        let grantee = Principal(format!("host:{}/{id}", host_name()));
        let request = GrantRequest {
            key: key.to_owned(),
            grantee: grantee.clone(),
            operations: vec![GrantOperation::Decrypt],
            constraint: context.clone(),
            // Killed between this call and the note of it, the next attachment is given the same grant.
            name: Some(id.to_string()),
        };
        let record = match pool.kms.create_grant(&request) {
            Ok(grant) => Some(GrantRecord { kms_key_id: key.to_owned(), grant_id: grant.id }),
            // The service's own permission for this host is all there is.
            Err(error) if error.kind == KmsErrorKind::NoGrants => None,
            Err(error) => return Err(unusable(error)),
        };
        let held = Self { pool, record };
        announcement.update(|record| record.grant.clone_from(&held.record))?;
        let data_key = pool.kms.decrypt(&DecryptRequest {
            wrapped: &WrappedKey(volume.wrapped_key().as_bytes().to_vec()),
            key,
            context: &context,
            grant: held.record.as_ref().map(|record| (&record.grant_id, &grantee)),
        });
        Ok((held, data_key.map_err(unusable)?))
    }

    /// Ends the grant.
    pub(crate) fn retire(mut self) -> Result<(), ControlError> {
        self.record.take().map_or(Ok(()), |record| self.pool.retire(&record))
    }
}

impl Drop for HeldGrant<'_> {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            // There is an error to tell already; the next attachment is given the same grant and retires it.
            let _ = self.pool.retire(record);
        }
    }
}

/// The machine's name, for the grantee.
fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}
