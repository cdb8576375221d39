//! What an operation would do about encryption, without doing it: the row of the outcomes table and the key.

use serde::Serialize;

use crate::create::{CreateVolume, usable_key};
use crate::error::ControlError;
use crate::outcome::{Outcome, Source, outcome, row};
use crate::pool::Pool;
use crate::restore::SnapshotSource;

/// The outcome of a request that was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Explanation {
    /// The row of the EBS user guide's table "Encryption outcomes", 1 to 20.
    pub row: u8,
    /// Whether encryption by default is on.
    pub ebs_encryption_by_default: bool,
    /// Whether the new object would be encrypted.
    pub encrypted: bool,
    /// The key that it would be encrypted under, looked up and found usable now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<String>,
    /// Why that key: it was named, it is the default, or it is the source's.
    pub reason: &'static str,
}

impl Pool {
    /// What [`Self::create_volume`] would do about encryption. The key is looked up (DescribeKey), nothing is stored.
    pub fn explain_create_volume(&self, request: &CreateVolume) -> Result<Explanation, ControlError> {
        let asked = request.encryption();
        let settings = self.pool_directory().settings()?;
        let snapshot = request.source(self)?;
        request.size(snapshot.as_ref())?;
        let source = snapshot.as_ref().map_or(Source::Empty, SnapshotSource::as_source);
        let defaults = settings.defaults();
        let (kms_key_id, reason) = match outcome(asked, defaults, source)? {
            Outcome::Unencrypted => (None, "encryption was not asked for, and is not on by default"),
            Outcome::Encrypted { key } => {
                let reason = if asked.kms_key_id.is_some() {
                    "the key was named"
                } else if let Source::Snapshot { key: Some(_), shared } = source {
                    if shared {
                        "the snapshot is another account's and encrypted: the default key"
                    } else {
                        "the snapshot's key"
                    }
                } else if asked.encrypted == Some(true) {
                    "encryption was asked for without a key: the default key"
                } else {
                    "encryption by default is on: the default key"
                };
                (Some(usable_key(self.kms.describe_key(key)?)?.as_str().to_owned()), reason)
            }
        };
        Ok(Explanation {
            row: row(asked, defaults, source),
            ebs_encryption_by_default: settings.ebs_encryption_by_default,
            encrypted: kms_key_id.is_some(),
            kms_key_id,
            reason,
        })
    }
}
