//! What a data key is known by, to everybody who does not have it.

use std::fmt;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::id::VolumeId;

/// What is hashed before the lineage.
const DOMAIN: &[u8] = b"sealblk data key id v1";

/// A data key's identifier (EC2: `DataEncryptionKeyId`): a function of its lineage, which a volume's seal covers, and so
/// equal exactly where the data key is. Tells nothing of the key. Displays as a UUID (RFC 9562, version 8).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataKeyId(u128);

impl DataKeyId {
    /// Of the data key that was generated for `lineage`.
    pub fn of_lineage(lineage: VolumeId) -> Self {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(lineage.to_string());
        let digest: [u8; 32] = hash.finalize().into();
        let bits = u128::from_be_bytes(*digest.first_chunk().expect("16 of 32 bytes"));
        // Version 8 and the variant of RFC 9562, each in its place.
        let fixed = (0xF << 76) | (0b11 << 62);
        Self(bits & !fixed | (8 << 76) | (0b10 << 62))
    }
}

impl fmt::Display for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        f.pad(&parts.join("-"))
    }
}

impl Serialize for DataKeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r13_the_id_is_that_of_the_lineage_and_a_uuid() {
        let id = |last: u8| DataKeyId::of_lineage(VolumeId::from_random([1, 2, 3, 4, 5, 6, 7, 8, last << 4]));
        assert_eq!(id(1), id(1));
        assert_ne!(id(1), id(2));
        let text = id(1).to_string();
        let shape: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(shape, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "8");
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}
