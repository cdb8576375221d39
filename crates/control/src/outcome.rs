//! The encryption outcome of CreateVolume and CopySnapshot: pure functions from what was asked, what the region's
//! defaults are and where the data comes from (ebs.md B.1 to B.3).
//!
//! They know no store and no KMS; `create` and `copy` call them before anything else happens.

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

impl<'a> EncryptionRequest<'a> {
    /// The key that was asked for, if any; a key wants `Encrypted` to be true beside it.
    fn key(self) -> Result<Option<&'a str>, OutcomeError> {
        match (self.encrypted, self.kms_key_id) {
            (None, Some(_)) => Err(OutcomeError::KeyWithoutEncrypted),
            (Some(false), Some(_)) => Err(OutcomeError::KeyWithEncryptionOff),
            (_, key) => Ok(key),
        }
    }
}

impl Source<'_> {
    fn is_encrypted(self) -> bool {
        matches!(self, Source::Snapshot { key: Some(_), .. })
    }
}

/// The row of the EBS user guide's table "Encryption outcomes" (ebs.md B.1) that a request falls under: 1 to 20.
pub fn row(request: EncryptionRequest<'_>, defaults: EncryptionDefaults<'_>, source: Source<'_>) -> u8 {
    let of_source = match source {
        Source::Empty => 1,
        Source::Snapshot { key: None, shared: false } => 2,
        Source::Snapshot { key: Some(_), shared: false } => 3,
        Source::Snapshot { key: None, shared: true } => 4,
        Source::Snapshot { key: Some(_), shared: true } => 5,
    };
    let by_default = if defaults.by_default { 10 } else { 0 };
    let encrypted = if request.encrypted == Some(true) { 5 } else { 0 };
    of_source + by_default + encrypted
}

/// Decides the encryption of a snapshot's copy (ebs.md B.2). Unlike a volume, a copy never takes over its source's
/// key unasked, and `Encrypted=false` on an encrypted source is no error: the copy is encrypted all the same.
pub fn copy_outcome<'a>(
    request: EncryptionRequest<'a>,
    defaults: EncryptionDefaults<'a>,
    source: Source<'_>,
) -> Result<Outcome<'a>, OutcomeError> {
    if let Some(key) = request.key()? {
        return Ok(Outcome::Encrypted { key });
    }
    Ok(if source.is_encrypted() || request.encrypted == Some(true) || defaults.by_default {
        Outcome::Encrypted { key: defaults.key }
    } else {
        Outcome::Unencrypted
    })
}

/// Decides a new volume's encryption (ebs.md B.1).
pub fn outcome<'a>(
    request: EncryptionRequest<'a>,
    defaults: EncryptionDefaults<'a>,
    source: Source<'a>,
) -> Result<Outcome<'a>, OutcomeError> {
    if let Some(key) = request.key()? {
        return Ok(Outcome::Encrypted { key });
    }
    if request.encrypted == Some(false) && source.is_encrypted() {
        return Err(OutcomeError::SourceStaysEncrypted);
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
            let request = EncryptionRequest { encrypted, kms_key_id: None };
            let defaults = EncryptionDefaults { by_default, key: DEFAULT };
            assert_eq!(super::row(request, defaults, source), row);
        }
    }

    /// ebs.md B.2: by default, source, Encrypted, with a key; the key of the copy.
    type CopyRow = (bool, Source<'static>, Option<bool>, bool, Result<Option<&'static str>, OutcomeError>);

    #[rustfmt::skip]
    const COPIES: [CopyRow; 22] = [
        (false, OWN_PLAIN,        None,        false, Ok(None)),
        (false, OWN_PLAIN,        Some(false), false, Ok(None)),
        (false, OWN_PLAIN,        Some(true),  false, Ok(Some(DEFAULT))),
        (false, OWN_PLAIN,        Some(true),  true,  Ok(Some(SPECIFIED))),
        (false, OWN_ENCRYPTED,    None,        false, Ok(Some(DEFAULT))),
        (false, OWN_ENCRYPTED,    Some(false), false, Ok(Some(DEFAULT))),
        (false, OWN_ENCRYPTED,    Some(true),  false, Ok(Some(DEFAULT))),
        (false, OWN_ENCRYPTED,    Some(true),  true,  Ok(Some(SPECIFIED))),
        (false, SHARED_PLAIN,     None,        false, Ok(None)),
        (false, SHARED_PLAIN,     Some(true),  false, Ok(Some(DEFAULT))),
        (false, SHARED_ENCRYPTED, None,        false, Ok(Some(DEFAULT))),
        (false, SHARED_ENCRYPTED, Some(true),  true,  Ok(Some(SPECIFIED))),
        (true,  OWN_PLAIN,        None,        false, Ok(Some(DEFAULT))),
        (true,  OWN_PLAIN,        Some(false), false, Ok(Some(DEFAULT))),
        (true,  OWN_PLAIN,        Some(true),  true,  Ok(Some(SPECIFIED))),
        (true,  OWN_ENCRYPTED,    None,        false, Ok(Some(DEFAULT))),
        (true,  OWN_ENCRYPTED,    Some(true),  true,  Ok(Some(SPECIFIED))),
        (true,  SHARED_PLAIN,     None,        false, Ok(Some(DEFAULT))),
        (true,  SHARED_ENCRYPTED, None,        false, Ok(Some(DEFAULT))),
        (true,  SHARED_ENCRYPTED, Some(true),  true,  Ok(Some(SPECIFIED))),
        (false, OWN_PLAIN,        None,        true,  Err(OutcomeError::KeyWithoutEncrypted)),
        (true,  OWN_ENCRYPTED,    Some(false), true,  Err(OutcomeError::KeyWithEncryptionOff)),
    ];

    #[test]
    fn r59_r60_every_copy_has_its_outcome() {
        for (by_default, source, encrypted, with_key, expected) in COPIES {
            let request = EncryptionRequest { encrypted, kms_key_id: with_key.then_some(SPECIFIED) };
            let found = copy_outcome(request, EncryptionDefaults { by_default, key: DEFAULT }, source);
            let key = found.map(|outcome| match outcome {
                Outcome::Unencrypted => None,
                Outcome::Encrypted { key } => Some(key),
            });
            assert_eq!(key, expected, "{by_default} {source:?} {encrypted:?} {with_key}");
        }
    }

    #[test]
    fn r49_nothing_that_comes_from_an_encrypted_snapshot_is_unencrypted() {
        for encrypted in [None, Some(false), Some(true)] {
            for (kms_key_id, by_default, source) in [None, Some(SPECIFIED)]
                .into_iter()
                .flat_map(|key| [false, true].map(|by_default| (key, by_default)))
                .flat_map(|(key, by_default)| {
                    [OWN_ENCRYPTED, SHARED_ENCRYPTED].map(|source| (key, by_default, source))
                })
            {
                let request = EncryptionRequest { encrypted, kms_key_id };
                let defaults = EncryptionDefaults { by_default, key: DEFAULT };
                assert_ne!(outcome(request, defaults, source), Ok(Outcome::Unencrypted));
                assert_ne!(copy_outcome(request, defaults, source), Ok(Outcome::Unencrypted));
            }
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
