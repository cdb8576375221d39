//! The encryption outcome of CreateVolume, CopySnapshot and StartSnapshot: pure functions from what was asked, what the
//! account's defaults are and where the data comes from (ebs.md B.1 to B.4; docs/ENCRYPTION.md has the tables for users).
//!
//! They know no store and no KMS; `create` and `copy` call them before anything else happens. Snapshots that are written
//! block by block (EBS direct) have no command yet, only their rule.

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
    /// StartSnapshot with a parent, and with `Encrypted` or a key; `ValidationException`.
    #[error(
        "a snapshot with a parent is encrypted as its parent is: neither Encrypted nor KmsKeyArn can be given"
    )]
    ParentDecides,
    /// StartSnapshot with an unencrypted parent, while encryption by default is on; `ValidationException`.
    #[error("the parent is not encrypted, and encryption by default is on")]
    ParentUnencrypted,
    /// StartSnapshot with `Encrypted=false`, while encryption by default is on; `ValidationException`.
    #[error("Encrypted=false is refused while encryption by default is on")]
    CannotOptOut,
    /// StartSnapshot with a key and with `Encrypted=false`; `ValidationException`.
    #[error("Encrypted cannot be false when KmsKeyArn is specified")]
    FalseWithKey,
}

impl OutcomeError {
    /// The code that EC2, or for StartSnapshot EBS direct, has for it.
    pub fn code(self) -> &'static str {
        match self {
            Self::KeyWithoutEncrypted => "InvalidParameterDependency",
            Self::KeyWithEncryptionOff | Self::SourceStaysEncrypted => "InvalidParameterCombination",
            Self::ParentDecides | Self::ParentUnencrypted | Self::CannotOptOut | Self::FalseWithKey => {
                "ValidationException"
            }
        }
    }
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

/// Decides the encryption of a snapshot that is written block by block, upon the parent `parent` or upon none
/// ([`Source::Empty`]) (ebs.md B.4). A key is enough here; and where by-default is on, what would be unencrypted is refused
/// instead of encrypted.
pub fn start_outcome<'a>(
    request: EncryptionRequest<'a>,
    defaults: EncryptionDefaults<'a>,
    parent: Source<'a>,
) -> Result<Outcome<'a>, OutcomeError> {
    match (parent, request.encrypted, request.kms_key_id) {
        (Source::Snapshot { .. }, Some(_), _) | (Source::Snapshot { .. }, _, Some(_)) => {
            Err(OutcomeError::ParentDecides)
        }
        (Source::Snapshot { key: Some(key), .. }, None, None) => Ok(Outcome::Encrypted { key }),
        (Source::Snapshot { key: None, .. }, None, None) if defaults.by_default => {
            Err(OutcomeError::ParentUnencrypted)
        }
        (Source::Empty, Some(false), Some(_)) => Err(OutcomeError::FalseWithKey),
        (Source::Empty, Some(false), None) if defaults.by_default => Err(OutcomeError::CannotOptOut),
        (Source::Empty, _, Some(key)) => Ok(Outcome::Encrypted { key }),
        (Source::Empty, Some(true), None) => Ok(Outcome::Encrypted { key: defaults.key }),
        (Source::Empty, None, None) if defaults.by_default => Ok(Outcome::Encrypted { key: defaults.key }),
        (Source::Empty, Some(false) | None, None) | (Source::Snapshot { key: None, .. }, None, None) => {
            Ok(Outcome::Unencrypted)
        }
    }
}

#[cfg(test)]
mod tests;
