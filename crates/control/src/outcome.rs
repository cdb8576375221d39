//! The encryption outcome of CreateVolume: one pure function from what was asked, what the region's
//! defaults are and where the data comes from (ebs.md B.1 and B.3).
//!
//! It knows no store and no KMS; `create` calls it before anything else happens.

/// What the caller said about encryption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncryptionRequest<'a> {
    /// `--encrypted`, `--no-encrypted`, or neither.
    pub encrypted: Option<bool>,
    /// `--kms-key-id`: id, ARN, alias name or alias ARN.
    pub kms_key_id: Option<&'a str>,
}

/// The region's settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncryptionDefaults<'a> {
    /// Whether encryption by default is on.
    pub by_default: bool,
    /// The default key: `alias/aws/ebs`, or the ARN of the customer key chosen instead.
    pub key: &'a str,
}

/// Where the volume's data comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source<'a> {
    /// Nowhere: the volume is empty.
    Empty,
    /// A snapshot.
    Snapshot {
        /// The ARN of the key it is encrypted under; `None`: unencrypted.
        key: Option<&'a str>,
        /// Whether it belongs to another account.
        shared: bool,
    },
}

/// What the volume will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// Its data is stored as it is.
    Unencrypted,
    /// Encrypted under this key (as named: still to be looked up).
    Encrypted {
        /// Id, ARN or alias.
        key: &'a str,
    },
}

/// A combination that EC2 refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OutcomeError {
    /// A key without `Encrypted` (r54); `InvalidParameterDependency`.
    #[error("the parameter KmsKeyId requires the parameter Encrypted to be set (--encrypted)")]
    KeyWithoutEncrypted,
    /// A key with `Encrypted=false`; `InvalidParameterCombination`.
    #[error("the parameter KmsKeyId requires Encrypted to be true")]
    KeyWithEncryptionOff,
    /// `Encrypted=false` for an encrypted source (r49); `InvalidParameterCombination`.
    #[error("Encrypted=false is inconsistent with the snapshot's encryption: encryption cannot be removed")]
    SourceStaysEncrypted,
}

/// Decides a new volume's encryption.
pub fn outcome<'a>(
    request: EncryptionRequest<'a>,
    defaults: EncryptionDefaults<'a>,
    source: Source<'a>,
) -> Result<Outcome<'a>, OutcomeError> {
    let source_is_encrypted = matches!(source, Source::Snapshot { key: Some(_), .. });
    match (request.encrypted, request.kms_key_id) {
        (None, Some(_)) => return Err(OutcomeError::KeyWithoutEncrypted),
        (Some(false), Some(_)) => return Err(OutcomeError::KeyWithEncryptionOff),
        (Some(false), None) if source_is_encrypted => return Err(OutcomeError::SourceStaysEncrypted),
        (Some(true), Some(key)) => return Ok(Outcome::Encrypted { key }),
        (_, None) => {}
    }
    Ok(match source {
        // The caller's own snapshot hands its key on; one shared by another account does not.
        Source::Snapshot { key: Some(key), shared: false } => Outcome::Encrypted { key },
        Source::Snapshot { key: Some(_), shared: true } => Outcome::Encrypted { key: defaults.key },
        Source::Snapshot { key: None, .. } | Source::Empty => {
            if request.encrypted == Some(true) || defaults.by_default {
                Outcome::Encrypted { key: defaults.key }
            } else {
                Outcome::Unencrypted
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = "default";
    const SPECIFIED: &str = "specified";
    const SNAPSHOTS: &str = "snapshot's";

    const EMPTY: Source<'_> = Source::Empty;
    const OWN_PLAIN: Source<'_> = Source::Snapshot { key: None, shared: false };
    const OWN_ENCRYPTED: Source<'_> = Source::Snapshot { key: Some(SNAPSHOTS), shared: false };
    const SHARED_PLAIN: Source<'_> = Source::Snapshot { key: None, shared: true };
    const SHARED_ENCRYPTED: Source<'_> = Source::Snapshot { key: Some(SNAPSHOTS), shared: true };

    /// ebs.md B.1: row, Encrypted set, by default, source, key without KmsKeyId, key with KmsKeyId.
    type Row = (u8, bool, bool, Source<'static>, Option<&'static str>, Option<&'static str>);

    #[rustfmt::skip]
    const TABLE: [Row; 20] = [
        ( 1, false, false, EMPTY,            None,            None),
        ( 2, false, false, OWN_PLAIN,        None,            None),
        ( 3, false, false, OWN_ENCRYPTED,    Some(SNAPSHOTS), None),
        ( 4, false, false, SHARED_PLAIN,     None,            None),
        ( 5, false, false, SHARED_ENCRYPTED, Some(DEFAULT),   None),
        ( 6, true,  false, EMPTY,            Some(DEFAULT),   Some(SPECIFIED)),
        ( 7, true,  false, OWN_PLAIN,        Some(DEFAULT),   Some(SPECIFIED)),
        ( 8, true,  false, OWN_ENCRYPTED,    Some(SNAPSHOTS), Some(SPECIFIED)),
        ( 9, true,  false, SHARED_PLAIN,     Some(DEFAULT),   Some(SPECIFIED)),
        (10, true,  false, SHARED_ENCRYPTED, Some(DEFAULT),   Some(SPECIFIED)),
        (11, false, true,  EMPTY,            Some(DEFAULT),   None),
        (12, false, true,  OWN_PLAIN,        Some(DEFAULT),   None),
        (13, false, true,  OWN_ENCRYPTED,    Some(SNAPSHOTS), None),
        (14, false, true,  SHARED_PLAIN,     Some(DEFAULT),   None),
        (15, false, true,  SHARED_ENCRYPTED, Some(DEFAULT),   None),
        (16, true,  true,  EMPTY,            Some(DEFAULT),   Some(SPECIFIED)),
        (17, true,  true,  OWN_PLAIN,        Some(DEFAULT),   Some(SPECIFIED)),
        (18, true,  true,  OWN_ENCRYPTED,    Some(SNAPSHOTS), Some(SPECIFIED)),
        (19, true,  true,  SHARED_PLAIN,     Some(DEFAULT),   Some(SPECIFIED)),
        (20, true,  true,  SHARED_ENCRYPTED, Some(DEFAULT),   Some(SPECIFIED)),
    ];

    fn ask(
        encrypted: Option<bool>,
        kms_key_id: Option<&'static str>,
        by_default: bool,
        source: Source<'static>,
    ) -> Result<Outcome<'static>, OutcomeError> {
        let defaults = EncryptionDefaults { by_default, key: DEFAULT };
        outcome(EncryptionRequest { encrypted, kms_key_id }, defaults, source)
    }

    #[test]
    fn r45_every_row_of_the_table_has_its_outcome() {
        for (row, encrypted, by_default, source, without_key, with_key) in TABLE {
            let encrypted = encrypted.then_some(true);
            let expected = without_key.map_or(Outcome::Unencrypted, |key| Outcome::Encrypted { key });
            assert_eq!(ask(encrypted, None, by_default, source), Ok(expected), "row {row} without a key");
            let expected =
                with_key.map(|key| Outcome::Encrypted { key }).ok_or(OutcomeError::KeyWithoutEncrypted);
            assert_eq!(ask(encrypted, Some(SPECIFIED), by_default, source), expected, "row {row} with a key");
        }
    }

    #[test]
    fn r39_encrypted_false_is_encrypted_under_the_default_key_when_encryption_by_default_is_on() {
        for source in [EMPTY, OWN_PLAIN, SHARED_PLAIN] {
            assert_eq!(ask(Some(false), None, true, source), Ok(Outcome::Encrypted { key: DEFAULT }));
            assert_eq!(ask(Some(false), None, false, source), Ok(Outcome::Unencrypted));
        }
    }

    #[test]
    fn r49_encrypted_false_is_refused_for_an_encrypted_source() {
        for (source, by_default) in [
            (OWN_ENCRYPTED, false),
            (OWN_ENCRYPTED, true),
            (SHARED_ENCRYPTED, false),
            (SHARED_ENCRYPTED, true),
        ] {
            assert_eq!(ask(Some(false), None, by_default, source), Err(OutcomeError::SourceStaysEncrypted));
        }
    }

    #[test]
    fn a_key_with_encryption_switched_off_is_refused() {
        for source in [EMPTY, OWN_PLAIN, OWN_ENCRYPTED, SHARED_PLAIN, SHARED_ENCRYPTED] {
            for by_default in [false, true] {
                assert_eq!(
                    ask(Some(false), Some(SPECIFIED), by_default, source),
                    Err(OutcomeError::KeyWithEncryptionOff)
                );
            }
        }
    }
}
