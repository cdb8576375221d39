//! What kinds of key there are: specs, usages, and which algorithms and grant operations go with them.
//!
//! Only `SYMMETRIC_DEFAULT` has material here and can wrap. The other kinds exist as records, so that naming one for a
//! volume is refused for what it is (requirement 33) and not as a key that does not exist.

use serde::{Deserialize, Serialize};

use crate::service::GrantOperation;

/// A key's spec, as KMS names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(non_camel_case_types, missing_docs, reason = "these are KMS's names")]
pub enum KeySpec {
    #[default]
    SYMMETRIC_DEFAULT,
    RSA_2048,
    RSA_3072,
    RSA_4096,
    ECC_NIST_P256,
    ECC_NIST_P384,
    ECC_NIST_P521,
    ECC_SECG_P256K1,
    HMAC_224,
    HMAC_256,
    HMAC_384,
    HMAC_512,
}

/// What a key is for, as KMS names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(non_camel_case_types, missing_docs, reason = "these are KMS's names")]
pub enum KeyUsage {
    ENCRYPT_DECRYPT,
    SIGN_VERIFY,
    GENERATE_VERIFY_MAC,
    KEY_AGREEMENT,
}

impl KeySpec {
    /// Every spec.
    pub const ALL: [Self; 12] = [
        Self::SYMMETRIC_DEFAULT,
        Self::RSA_2048,
        Self::RSA_3072,
        Self::RSA_4096,
        Self::ECC_NIST_P256,
        Self::ECC_NIST_P384,
        Self::ECC_NIST_P521,
        Self::ECC_SECG_P256K1,
        Self::HMAC_224,
        Self::HMAC_256,
        Self::HMAC_384,
        Self::HMAC_512,
    ];

    /// KMS's name for it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Whether it can wrap data keys.
    pub fn is_symmetric(self) -> bool {
        self == Self::SYMMETRIC_DEFAULT
    }

    /// The usages that it can have; the first is meant where none is given, unless there are several.
    pub(super) fn usages(self) -> &'static [KeyUsage] {
        use KeyUsage::{ENCRYPT_DECRYPT, GENERATE_VERIFY_MAC, KEY_AGREEMENT, SIGN_VERIFY};
        match self {
            Self::SYMMETRIC_DEFAULT => &[ENCRYPT_DECRYPT],
            Self::RSA_2048 | Self::RSA_3072 | Self::RSA_4096 => &[ENCRYPT_DECRYPT, SIGN_VERIFY],
            Self::ECC_NIST_P256 | Self::ECC_NIST_P384 | Self::ECC_NIST_P521 => &[SIGN_VERIFY, KEY_AGREEMENT],
            Self::ECC_SECG_P256K1 => &[SIGN_VERIFY],
            Self::HMAC_224 | Self::HMAC_256 | Self::HMAC_384 | Self::HMAC_512 => &[GENERATE_VERIFY_MAC],
        }
    }

    fn algorithm_names(self, usage: KeyUsage) -> &'static [&'static str] {
        match (self, usage) {
            (Self::SYMMETRIC_DEFAULT, _) => &["SYMMETRIC_DEFAULT"],
            (Self::RSA_2048 | Self::RSA_3072 | Self::RSA_4096, KeyUsage::ENCRYPT_DECRYPT) => {
                &["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]
            }
            (Self::RSA_2048 | Self::RSA_3072 | Self::RSA_4096, _) => &[
                "RSASSA_PKCS1_V1_5_SHA_256",
                "RSASSA_PKCS1_V1_5_SHA_384",
                "RSASSA_PKCS1_V1_5_SHA_512",
                "RSASSA_PSS_SHA_256",
                "RSASSA_PSS_SHA_384",
                "RSASSA_PSS_SHA_512",
            ],
            (_, KeyUsage::KEY_AGREEMENT) => &["ECDH"],
            (Self::ECC_NIST_P256 | Self::ECC_SECG_P256K1, _) => &["ECDSA_SHA_256"],
            (Self::ECC_NIST_P384, _) => &["ECDSA_SHA_384"],
            (Self::ECC_NIST_P521, _) => &["ECDSA_SHA_512"],
            (Self::HMAC_224, _) => &["HMAC_SHA_224"],
            (Self::HMAC_256, _) => &["HMAC_SHA_256"],
            (Self::HMAC_384, _) => &["HMAC_SHA_384"],
            (Self::HMAC_512, _) => &["HMAC_SHA_512"],
        }
    }
}

impl KeyUsage {
    /// Every usage.
    pub const ALL: [Self; 4] =
        [Self::ENCRYPT_DECRYPT, Self::SIGN_VERIFY, Self::GENERATE_VERIFY_MAC, Self::KEY_AGREEMENT];

    /// KMS's name for it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// The algorithms that a key has if `usage` is what it is for, else none.
pub(super) fn algorithms(spec: KeySpec, usage: KeyUsage, wanted: KeyUsage) -> Vec<String> {
    let names = if usage == wanted { spec.algorithm_names(usage) } else { &[] };
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Whether a key of this kind can do what a grant would allow.
pub(super) fn can(spec: KeySpec, usage: KeyUsage, operation: GrantOperation) -> bool {
    use GrantOperation as Op;
    match operation {
        Op::CreateGrant | Op::RetireGrant | Op::DescribeKey => true,
        Op::Decrypt | Op::Encrypt | Op::ReEncryptFrom | Op::ReEncryptTo => usage == KeyUsage::ENCRYPT_DECRYPT,
        Op::GenerateDataKey
        | Op::GenerateDataKeyWithoutPlaintext
        | Op::GenerateDataKeyPair
        | Op::GenerateDataKeyPairWithoutPlaintext => spec.is_symmetric(),
        Op::Sign | Op::Verify => usage == KeyUsage::SIGN_VERIFY,
        Op::GetPublicKey => !spec.is_symmetric() && usage != KeyUsage::GENERATE_VERIFY_MAC,
        Op::GenerateMac | Op::VerifyMac => usage == KeyUsage::GENERATE_VERIFY_MAC,
        Op::DeriveSharedSecret => usage == KeyUsage::KEY_AGREEMENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_serde_writes() {
        for spec in KeySpec::ALL {
            assert_eq!(serde_json::json!(spec), spec.name());
        }
        for usage in KeyUsage::ALL {
            assert_eq!(serde_json::json!(usage), usage.name());
        }
    }

    #[test]
    fn every_kind_has_algorithms_for_its_own_usages_only() {
        for spec in KeySpec::ALL {
            for &usage in spec.usages() {
                for wanted in KeyUsage::ALL {
                    assert_eq!(
                        algorithms(spec, usage, wanted).is_empty(),
                        usage != wanted,
                        "{spec:?} {usage:?}"
                    );
                }
            }
        }
    }
}
