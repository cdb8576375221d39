//! The grant under which an encrypted volume's data key is unwrapped: Decrypt only, bound to the volume, and
//! retired with the attachment (requirement 17).

use std::fs;

use sealblk_keymem::DataKey;
use sealblk_kms::{
    DecryptRequest, EncryptionContext, GrantOperation, GrantRequest, Kms, KmsError, KmsErrorKind, Principal,
    WrappedKey,
};
use sealblk_volume::{EncryptedVolume, VolumeId};

use crate::attachment::{Announcement, GrantRecord};
use crate::error::ControlError;
use crate::pool::Pool;

/// Which key unwrapped a volume's data key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyUse {
    /// The key.
    pub key: String,
    /// The keys that come before it and could not be used, each with the reason.
    pub passed_over: Vec<(String, String)>,
}

/// A live grant; retired when dropped. Of a key service that has no grants it is empty.
pub(crate) struct HeldGrant<'p> {
    pool: &'p Pool,
    record: Option<GrantRecord>,
    /// What the grant is for, and what could not be had.
    pub(crate) key_use: KeyUse,
}

impl<'p> HeldGrant<'p> {
    /// Has the data key unwrapped by the first of the volume's keys that can be used, under a grant that is noted in
    /// `announcement`. If none can, the error is the first key's.
    pub(crate) fn unlock(
        pool: &'p Pool,
        volume: &EncryptedVolume<'_>,
        announcement: &mut Announcement,
    ) -> Result<(Self, DataKey), ControlError> {
        let id = volume.volume_id();
        let mut first_error = None;
        let mut passed_over = Vec::new();
        for (key, wrapped) in volume.wrappings() {
            let wrapped = WrappedKey(wrapped.as_bytes().to_vec());
            match Self::unwrap(pool, id, key.as_str(), &wrapped, announcement) {
                Ok((mut held, data_key)) => {
                    held.key_use.passed_over = passed_over;
                    return Ok((held, data_key));
                }
                Err(Refusal::Key(error)) => {
                    passed_over.push((key.to_string(), error.to_string()));
                    let source = Box::new(error);
                    first_error.get_or_insert(ControlError::KeyUnusable { id, key: key.to_string(), source });
                }
                Err(Refusal::Here(error)) => return Err(error),
            }
        }
        Err(first_error.expect("an encrypted volume has one key at least"))
    }

    /// One key: its grant, and the data key under it.
    fn unwrap(
        pool: &'p Pool,
        id: VolumeId,
        key: &str,
        wrapped: &WrappedKey,
        announcement: &mut Announcement,
    ) -> Result<(Self, DataKey), Refusal> {
        let context = EncryptionContext::for_resource(&id.to_string());
        let grantee = grantee(id);
        let record = create_grant(&*pool.kms, id, key).map_err(Refusal::Key)?;
        let key_use = KeyUse { key: key.to_owned(), passed_over: Vec::new() };
        let held = Self { pool, record, key_use };
        announcement.update(|record| record.grant.clone_from(&held.record)).map_err(Refusal::Here)?;
        let grant = held.record.as_ref().map(|record| (&record.grant_id, &grantee));
        let data_key = pool.kms.decrypt(&DecryptRequest { wrapped, key, context: &context, grant });
        Ok((held, data_key.map_err(Refusal::Key)?))
    }

    /// What is noted of it.
    pub(crate) fn record(&self) -> Option<&GrantRecord> {
        self.record.as_ref()
    }

    /// Ends the grant.
    pub(crate) fn retire(mut self) -> Result<(), ControlError> {
        self.record.take().map_or(Ok(()), |record| self.pool.retire(&record))
    }
}

/// Who acts under the grant of a volume's attachment on this host.
pub(crate) fn grantee(id: VolumeId) -> Principal {
    Principal(format!("host:{}/{id}", host_name()))
}

/// Creates the grant of a volume's attachment; `None`: the service's own permission for this host is all there is.
pub(crate) fn create_grant(kms: &dyn Kms, id: VolumeId, key: &str) -> Result<Option<GrantRecord>, KmsError> {
    create_grant_for(kms, id, key, &id.to_string())
}

/// The same, for a data key that was wrapped for `context_id`: the volume's own, or that of its snapshot.
pub(crate) fn create_grant_for(
    kms: &dyn Kms,
    id: VolumeId,
    key: &str,
    context_id: &str,
) -> Result<Option<GrantRecord>, KmsError> {
    let own = context_id == id.to_string();
    let request = GrantRequest {
        key: key.to_owned(),
        grantee: grantee(id),
        operations: vec![GrantOperation::Decrypt],
        constraint: EncryptionContext::for_resource(context_id),
        // Killed between this call and the note of it, the next attachment is given the same grant.
        name: Some(if own { id.to_string() } else { format!("{id}-restore") }),
    };
    match kms.create_grant(&request) {
        Ok(grant) => Ok(Some(GrantRecord { kms_key_id: key.to_owned(), grant_id: grant.id })),
        Err(error) if error.kind == KmsErrorKind::NoGrants => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why one key did not unwrap the data key.
enum Refusal {
    /// Another key may.
    Key(KmsError),
    /// The pool itself does not work.
    Here(ControlError),
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
pub(crate) fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}
