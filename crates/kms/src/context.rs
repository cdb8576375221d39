//! The encryption context: pairs that a wrapped key is bound to (ebs.md A.6: `aws:ebs:id`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Authenticated, not secret, key-value pairs. Never empty in Sealblk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    /// The context of a volume or snapshot: `{"aws:ebs:id": resource_id}`.
    pub fn for_resource(resource_id: &str) -> Self {
        Self(BTreeMap::from([("aws:ebs:id".to_owned(), resource_id.to_owned())]))
    }

    /// The pairs, sorted by name.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether every pair of `self` is in `other` (KMS's `EncryptionContextSubset`).
    pub fn is_subset_of(&self, other: &Self) -> bool {
        self.0.iter().all(|(k, v)| other.0.get(k) == Some(v))
    }
}
