//! What a copy would be, without making it.

use sealblk_volume::SnapshotId;
use serde::Serialize;

use super::{CopySnapshot, Sites};
use crate::error::ControlError;
use crate::offline;
use crate::pool::Pool;

/// The outcome of a copy that was not made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CopyExplanation {
    /// Whether encryption by default is on.
    pub ebs_encryption_by_default: bool,
    /// Whether the source is encrypted.
    pub source_encrypted: bool,
    /// Whether the copy would be encrypted.
    pub encrypted: bool,
    /// The key that it would be encrypted under, looked up and found usable now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<String>,
    /// The earlier copy that it would build on: only what changed since would be moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incremental_on: Option<SnapshotId>,
    /// Why that key.
    pub reason: &'static str,
}

impl Pool {
    /// What [`Self::copy_snapshot`] would do about encryption. The key is looked up (DescribeKey), nothing is stored.
    pub fn explain_copy_snapshot(
        &self,
        from: &Self,
        request: &CopySnapshot,
    ) -> Result<CopyExplanation, ControlError> {
        offline::run(async {
            let sites = Sites::open(self, from, &from.repository).await?;
            let source = sites.original(request.source).await?;
            let key = sites.key_of_outcome(request, &source)?;
            let earlier = sites.earlier(&source, key.as_ref()).await?;
            let source_encrypted = source.metadata.kms_key_id().is_some();
            let reason = match (&key, &request.kms_key_id, request.encrypted) {
                (None, ..) => "encryption was not asked for, and is not on by default",
                (_, Some(_), _) => "the key was named",
                (_, None, Some(true)) => "encryption was asked for without a key: the default key",
                _ if source_encrypted => {
                    "a copy of an encrypted snapshot is encrypted, and never takes over its key: the default key"
                }
                _ => "encryption by default is on: the default key",
            };
            Ok(CopyExplanation {
                ebs_encryption_by_default: self.pool_directory().settings()?.ebs_encryption_by_default,
                source_encrypted,
                encrypted: key.is_some(),
                kms_key_id: key.map(String::from),
                incremental_on: earlier.map(|earlier| earlier.copies.copy),
                reason,
            })
        })?
    }
}
