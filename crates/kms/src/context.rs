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

    /// Whether there are no pairs; a wrapped key is never bound to such a context.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the canonical form that a wrapped key authenticates: the number of pairs, then for each pair, sorted
    /// by the bytes of its name, name and value, each after its length. Numbers are 64 bits, little-endian.
    pub fn append_canonical(&self, out: &mut Vec<u8>) {
        let append_length =
            |out: &mut Vec<u8>, length: usize| out.extend_from_slice(&(length as u64).to_le_bytes());
        append_length(out, self.0.len());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            append_length(out, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
}

impl FromIterator<(String, String)> for EncryptionContext {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}
